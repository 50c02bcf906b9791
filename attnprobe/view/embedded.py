"""Maps embedded in a page that is sent as one file: as many as fit."""

import base64
import shlex
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnprobe.core.browse import StageShape
from attnprobe.core.text import visible
from attnprobe.view.described import Viewed, described, explorable, left_out, queries_of
from attnprobe.view.packing import largest_error, pack

ENOUGH = 2
"""Images that come before detail: with fewer, a habit of a head cannot be told from an accident."""


@dataclass(frozen=True, slots=True)
class Detail:
    """Level of detail: every head, or their mean (and every head of the prefix tokens); every n-th layer."""

    every_head: bool
    every: int

    def layers(self, shape: StageShape) -> range:
        """Positions of the layers of a stage that are kept."""
        return range(0, len(shape.layers), self.every)


DETAILS = (Detail(True, 1), *(Detail(False, every) for every in (1, 2, 4, 8, 16)))
"""From the richest to the poorest; the first that fits with enough images is taken."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Data of a page: `index` as JSON, and `maps` in base64 by name (image-run-stage-site, as positions)."""

    index: dict[str, Any]
    maps: dict[str, str]


def embed(
    runs: Sequence[Viewed], image_ids: Sequence[str], pictures: Mapping[str, str], budget: int
) -> Embedded | None:
    """Maps of as many of the images as fit into `budget` bytes, as detailed as they can be.

    Args:
        image_ids: candidates, the most wanted first.
        pictures: data URIs by image id; an image without one is explored over an empty image.

    Returns:
        None if there is nothing to explore or nothing fits.
    """
    shown = [run for run in runs if explorable(run.maps)]
    image_ids = [i for i in image_ids if any(i in run.places for run in shown)]
    for detail in DETAILS if image_ids else ():
        names, maps = _fitting(shown, image_ids, pictures, budget, detail)
        if len(names) >= min(ENOUGH, len(image_ids)) or (names and detail == DETAILS[-1]):
            return Embedded(_index(runs, shown, names, len(image_ids), pictures, detail), maps)
    return None


def _fitting(
    runs: Sequence[Viewed], image_ids: Sequence[str], pictures: Mapping[str, str], budget: int, detail: Detail
) -> tuple[list[str], dict[str, str]]:
    """The first images, until the next would be too much."""
    kept: list[str] = []
    maps: dict[str, str] = {}
    expected = (_expected_bytes(run, shape, image_ids[0], detail) for run in runs for shape in explorable(run.maps))
    if min(ENOUGH, len(image_ids)) * sum(expected) > budget:
        return kept, maps
    for image_id in image_ids:
        more = {
            f"{len(kept)}-{r}-{s}-{t}": _packed(run, shape, site, image_id, detail, detail.layers(shape))
            for r, run in enumerate(runs)
            if image_id in run.places
            for s, shape in enumerate(explorable(run.maps))
            for t, site in enumerate(shape.sites)
        }
        budget -= sum(map(len, more.values())) + len(pictures.get(image_id, "")) + 100 * len(more)
        if budget < 0:
            break
        kept.append(image_id)
        maps |= more
    return kept, maps


def _expected_bytes(run: Viewed, shape: StageShape, image_id: str, detail: Detail) -> float:
    """Estimated bytes of an image, from its middle layer; somewhat less, since packing decides what fits."""
    if image_id not in run.places:
        return 0
    layers = detail.layers(shape)
    middle = [layers[len(layers) // 2]]
    return 0.8 * len(layers) * sum(len(_packed(run, shape, site, image_id, detail, middle)) for site in shape.sites)


def _packed(
    run: Viewed, shape: StageShape, site: tuple[str, bool], image_id: str, detail: Detail, layers: Sequence[int]
) -> str:
    """Layers of an image: the two largest of each row, then all codes; deflated, in base64.

    Each of both holds first the maps of every head [layer, head, query(, key)], then those of the mean of heads
    [layer, query(, key)]; the heads of all queries and no mean, or the heads of the prefix tokens and all means.
    """
    queries = np.array(queries_of(shape))
    of_heads = np.ones(len(queries), bool) if detail.every_head else queries < shape.grid.n_prefix
    name, sums = site
    values = [run.layer(shape, name, image_id, layer) for layer in layers]
    parts = [np.stack([heads[:, of_heads] for heads in values])]
    if not detail.every_head:
        parts.append(np.stack([heads.mean(0) for heads in values]))
    packed = [pack(part, shape.grid.n_prefix, signed=not sums) for part in parts]
    data = b"".join(part[k].tobytes() for k in range(2) for part in packed)  # type: ignore[index]
    return base64.b64encode(zlib.compress(data, 9)).decode()


def viewer_command(runs: Sequence[Viewed]) -> str:
    """The command that shows all maps of these runs."""
    paths = [getattr(run.maps, "path", None) for run in runs]
    return (
        shlex.join(["attnprobe", "view", *(visible(str(path)) for path in paths)]) if all(paths) else "attnprobe view"
    )


def _index(
    runs: Sequence[Viewed],
    shown: Sequence[Viewed],
    image_ids: Sequence[str],
    wanted: int,
    pictures: Mapping[str, str],
    detail: Detail,
) -> dict[str, Any]:
    images = [{"id": visible(i), "src": pictures.get(i, ""), "told": [run.told(i) for run in shown]} for i in image_ids]
    signed = any(not sums for run in shown for shape in explorable(run.maps) for _, sums in shape.sites)
    off, off_signed = (f"{100 * largest_error(kind):.1f} %" for kind in (False, True))
    notes = [
        f"Weights are kept in one byte each, off by at most {off} of the largest patch in their row"
        + (f" ({off_signed} where a map has negative weights)." if signed else ".")
    ]
    if len(image_ids) < wanted:
        notes.append(f"To keep the page small, {wanted - len(image_ids)} of {wanted} images were left out.")
    if not detail.every_head:
        notes.append("To keep the page small, patches have only the mean of the heads; prefix tokens have every head.")
    if detail.every > 1:
        notes.append(f"To keep the page small, only one block in {detail.every} is here.")
    notes += left_out(runs)
    notes.append(f"{viewer_command(runs)} shows every image, block and head as it was stored.")
    return {
        "runs": [described(run, every=detail.every) for run in shown],
        "images": images,
        "total": len(images),
        "everyHead": detail.every_head,
        "notes": notes,
    }
