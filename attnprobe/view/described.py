"""Stages of a run that can be explored, and their description for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnprobe.core.browse import Browsable, StageShape
from attnprobe.core.sites import SITES
from attnprobe.core.text import visible

TOKENS = {"cls": "class token", "dist": "distillation token", "reg": "register"}


@dataclass(frozen=True, slots=True)
class Viewed:
    """A run as the explorer needs it.

    Attributes:
        name: unique among those shown together.
        maps: read when a page asks for them.
        class_names: in label order; empty if there are none.
    """

    name: str
    maps: Browsable
    class_names: Sequence[str] = ()
    places: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", {image_id: i for i, image_id in enumerate(self.maps.image_ids)})

    def told(self, image_id: str) -> dict[str, Any] | None:
        """Label, prediction and probability in words; None if the run has not seen the image."""
        if image_id not in self.places:
            return None
        label, prediction, probability = self.maps.told(self.places[image_id])
        known = probability == probability  # not NaN, which JSON does not have
        return {
            "label": self._class(label),
            "prediction": self._class(prediction),
            "probability": round(probability, 4) if known else None,
        }

    def layer(self, shape: StageShape, site: str, image_id: str, layer: int) -> np.ndarray:
        """[head, query, key] of one layer of one image as the page counts tokens: see `queries_of`."""
        values = self.maps.layer(shape.name, site, self.places[image_id], layer)
        order = np.argsort(_slots(shape))
        return shape.grid.laid_out(values[:, order])

    def _class(self, number: int) -> str:
        if 0 <= number < len(self.class_names):
            return visible(self.class_names[number])
        return f"class {number}" if number >= 0 else ""


def queries_of(shape: StageShape) -> list[int]:
    """The queries as the page counts tokens: first those that are no patches, then all patches row by row."""
    return sorted(_slots(shape))


def _slots(shape: StageShape) -> list[int]:
    if shape.kind != "self":  # its queries are none of the keys
        return list(shape.queries)
    return [shape.grid.slots[query] for query in shape.queries]


def explorable(maps: Browsable) -> list[StageShape]:
    """Stages whose keys are the tokens of the image and whose queries are some of these."""
    return [shape for shape in maps.shapes() if not why_not(shape)]


def why_not(shape: StageShape) -> str:
    """Reason why a stage cannot be drawn over the image; empty if it can."""
    if shape.kind not in ("self", "class"):
        return f"its maps are of kind {shape.kind!r}, not between the tokens of the image"
    if not shape.grid.rows * shape.grid.cols:
        return "where its tokens sit in the image is not known"
    if shape.keys != shape.grid.n_tokens:
        return "its keys are not the tokens of the image"
    return ""


def left_out(runs: Sequence[Viewed]) -> list[str]:
    """Sentences on the stages that cannot be drawn."""
    return [
        f"Not shown: stage {visible(shape.name)} of {visible(run.name)}; {why}."
        for run in runs
        for shape in run.maps.shapes()
        if (why := why_not(shape))
    ]


def described(run: Viewed, *, every: int = 1) -> dict[str, Any]:
    """Description of a run for the page, before it asks for maps; with every n-th layer only."""
    return {"name": visible(run.name), "stages": [_stage(shape, every) for shape in explorable(run.maps)]}


def _stage(shape: StageShape, every: int) -> dict[str, Any]:
    sites = [
        {"name": name, "title": SITES.get(name, name).removesuffix(" maps"), "signed": not sums}
        for name, sums in shape.sites
    ]
    return {
        "name": visible(shape.name),
        "blocks": [number for i, number in enumerate(shape.layers) if i % every == 0],
        "of": shape.n_blocks or max(shape.layers),
        "heads": list(shape.heads),
        "queries": queries_of(shape),
        "rows": shape.grid.rows,
        "cols": shape.grid.cols,
        "prefix": [_token(name) for name in shape.grid.prefix],
        "absent": [n for n, value in enumerate(shape.grid.laid_out(np.zeros(shape.keys))) if np.isnan(value)],
        "sites": sites,
    }


def _token(name: str) -> str:
    """ "reg0" -> "register 1"; an unknown name stays as it is."""
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    title = TOKENS.get(stem, visible(name))
    return f"{title} {int(number) + 1}" if number and stem in TOKENS else title
