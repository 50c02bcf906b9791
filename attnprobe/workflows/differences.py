"""Differences of one run or method from another, whose depths, heads or images may not be the same."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from attnprobe.core.errors import InputError, option
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.sites import Site
from attnprobe.core.text import blocks_text
from attnprobe.metrics import METRICS
from attnprobe.metrics.engine.heads import matching
from attnprobe.reports.numbers import telling_cells
from attnprobe.stats.alignment import (
    APART,
    at_images,
    at_relative_depth,
    mean_over_heads,
    one_number,
    over_stages,
    with_heads_ordered,
)
from attnprobe.stats.blocks import chosen_threshold
from attnprobe.stats.bootstrap import interval_of_mean
from attnprobe.stats.methods import difference_of_methods
from attnprobe.stats.paired import KEPT, Difference, paired_difference, paired_with_mean, unlike
from attnprobe.store.reader import MapReader

ANY_NUMBER_OF_TOKENS = frozenset(
    (
        "head_dependence", "head_divergence", "head_divergence_across_layers", "head_output_norm",
        "head_output_similarity", "head_similarity", "head_similarity_across_layers", "layer_similarity",
        "layer_similarity_centred", "map_cka", "own_value_similarity", "query_information", "row_entropy_relative",
        "similar_blocks", "token_cka", "token_layer_similarity", "token_similarity", "value_similarity",
    )
)  # fmt: skip
"""Metrics that compare runs on other numbers of tokens: cosines, and what is relative to that number."""

SITES: tuple[Site, ...] = ("effective", "weights")

MATCH_IMAGES = 64
"""Images whose maps decide which heads of two runs belong together."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One metric of a run or method, minus that of the first.

    Attributes:
        metric, site, stage: what was compared where; "effective" is the effective attention of each run, where
            that is not the softmax map in both. `of`: as in `Measurement`.
        cells: the difference of every cell; None where there is none, and `why` says why not.
        overall: the same of one number: of similar blocks their count, else the mean over the summary's cells.
        depth: "block", or "relative" where the two have other numbers of blocks.
        coords: labels of the cells' axes that are not plain positions.
        rounding: differences of cells up to this may come of how maps were stored, see `rounding`.
    """

    run: str
    metric: str
    site: str
    stage: str
    cells: Difference | None = None
    overall: Difference | None = None
    depth: str = "block"
    coords: dict[str, list[object]] | None = None
    why: str = ""
    of: str = "maps"
    rounding: np.ndarray | float = 0.0


STORED = {"float16": 2.0**-11, "bfloat16": 2.0**-9, "float32": 2.0**-24}
"""Largest share of a number that rounding to it changes."""


def rounding(runs: Sequence[Examined]) -> float:
    """The share of a number by which the coarsest stored maps are rounded; 0 where none were stored."""
    attrs = [e.maps.attrs for e in runs if isinstance(e.maps, MapReader)]
    return max((STORED.get(its.get("dtype", ""), 0.0) for its in attrs), default=0.0)


def common_measurements(first: Examined, other: Examined) -> Iterator[tuple[Measurement, Measurement, str]]:
    """Pairs of each metric of both models, on effective attention and, where it is another matrix, on softmax maps.

    Where `stages_differ`, only those of the first of the stages, which stand for all of them.
    """
    for stage, metric in dict.fromkeys((m.stage, m.metric) for m in first.measurements.values()):
        seen = None
        for site in SITES:
            one, two = (e.measurements.get(metric, site=site, stage=stage) for e in (first, other))
            if one is None or two is None:
                continue
            apart = stages_differ([(first, one), (other, two)]) and stage not in (one.together[:1] or two.together[:1])
            if not apart and (one, two) != seen:
                yield one, two, one.site if one.site == two.site else site
                seen = one, two


def stages_differ(measured: Sequence[tuple[Examined, Measurement]]) -> bool:
    """True if blocks of one of the models have unequal numbers of heads, and not the same ones as in the others."""
    return len({tuple(m.block_numbers for m in e.measurements.through(one)) for e, one in measured}) > 1 and any(
        m.together for _, m in measured
    )


def whole_network(e: Examined, m: Measurement) -> Measurement:
    """The mean over heads in every block, of one with unequal numbers of heads, too.

    Raises:
        InputError: it compares blocks or relates heads, so that there is no such number.
    """
    if m.metric in METRICS and METRICS[m.metric].needs_all_layers:
        raise InputError(APART)
    return over_stages(e.measurements.through(m))


def say_what_is_left_out(name: object, e: Examined, m: Measurement) -> None:
    """Warn of the blocks that a figure of `m` leaves out, as they have other numbers of heads or other tokens."""
    measured = {its.stage: its for its in e.measurements.values() if "layer" in its.axes}
    others = [stage for stage in measured if stage != m.stage]
    together = measured[m.stage].together if m.stage in measured else ()
    if together:
        blocks = sorted(n for stage in together if stage != m.stage for n in measured[stage].block_numbers)
        left = f"{blocks_text(blocks)}, which have other numbers of heads"
        warnings.warn(f"{name}: drawn are {blocks_text(m.block_numbers)}, and not {left}", stacklevel=1)
    elif others:
        left = ", ".join(others)
        warnings.warn(f"{name}: drawn is stage {m.stage}, and not {left}, with other heads or tokens", stacklevel=1)


def why_not(first: Examined, other: Examined, metric: str = "") -> str:
    """Reason why two runs, or one metric of them, cannot be compared image by image; "" if they can.

    Images of equal names are the same ones if they come from the same files, or from the same place.
    """
    data = [e.info.get("data") for e in (first, other)]
    places = [e.info.get("images") for e in (first, other)]
    placed = [p and (p.get("data"), p.get("split"), p.get("data_dir")) for p in places]
    if data[0] != data[1] and (None in placed or placed[0] != placed[1]):
        names = " and ".join(str(p[0] if p else d) for p, d in zip(placed, data, strict=True))
        return f"images of other data ({names}); capture both runs from the same"
    tokens = other.grid.n_tokens, first.grid.n_tokens
    if metric and tokens[0] != tokens[1] and metric not in ANY_NUMBER_OF_TOKENS:
        return f"it depends on the number of tokens, here {tokens[0]} against {tokens[1]}"
    return ""


def shared_images(runs: Sequence[Examined]) -> tuple[tuple[str, ...], int]:
    """Ids of images measured in all runs, in the order of the first, and the number of those that share only a name.

    Pixels are compared between runs that saw images of one size, prepared in the same way on the same kind of device;
    in other runs equal names suffice.
    """
    seen = [_pixels(e) for e in runs]
    named = set(seen[0]).intersection(*seen[1:])
    alike: dict[object, list[dict[str, int]]] = {}
    for e, pixels in zip(runs, seen, strict=True):
        alike.setdefault(_preparation(e), []).append(pixels)
    changed = {name for some in alike.values() for name in named if len({p[name] for p in some if p[name]}) > 1}
    return tuple(name for name in seen[0] if name in named - changed), len(changed)


def _pixels(e: Examined) -> dict[str, int]:
    """The images of a run, in order, and the hash of what the model saw; 0 where that is not known."""
    m = next((m for m in e.measurements.values() if m.image_ids), None)
    return {} if m is None else dict(zip(m.image_ids, m.pixels or (0,) * len(m.image_ids), strict=True))


def _preparation(e: Examined) -> object:
    """Everything but the image that hashes depend on; the mean and deviation of pixels do not matter."""
    config = e.maps.attrs.get("config", {}) if isinstance(e.maps, MapReader) else {}
    spec = config.get("spec") or e.info.get("spec") or {}
    return e.info.get("device"), str([spec.get(name) for name in ("size", "interpolation", "crop_pct")])


def same_parts(first: Examined, other: Examined) -> bool:
    """True if the same layers, heads and queries of both were kept, or all."""
    kept = [{str([m.settings.get(name) for name in KEPT]) for m in e.measurements.values()} for e in (first, other)]
    return kept[0] == kept[1]


def depth_of(e: Examined) -> int:
    """Number of blocks that were measured; 0 where no metric has a layer axis."""
    measured = (e.measurements.through(m) for m in e.measurements.values() if m.n_blocks)
    return sum(m.n_blocks for m in next(measured, ()))


def compared(
    name: str, ones: Sequence[Measurement], twos: Sequence[Measurement], site: str, shared: tuple[str, ...],
    order: np.ndarray | None, resamples: int, rounded: float = 0.0,
) -> Compared:  # fmt: skip
    """The difference of one metric, or why there is none: of one run each on the same images, or of the runs of two
    methods, whose heads have no order in common, so that only their mean is compared; `rounded`
    as `rounding` gives it."""
    row = Compared(name, ones[0].metric, site, ones[0].stage, of=ones[0].of)
    n, methods = len(ones), len(ones) > 1
    if why := next((why for m in (*ones[1:], *twos) if (why := unlike(ones[0], m))), ""):
        return replace(row, why=why)
    try:
        runs = [at_images(m, shared) for m in (*ones, *twos)]
        whole = runs
        if row.metric == "similar_blocks":
            runs = [_at_threshold(m) for m in runs]
        one, two = runs[0], runs[n]
        heads = {m.mean.shape[m.axes.index("head")] for m in (one, two) if "head" in m.axes}
        if heads and (methods or len(heads) > 1):
            runs = [mean_over_heads(m) for m in runs]
        elif order is not None:
            runs = [one, with_heads_ordered(two, order)]
        depths = {m.n_blocks for m in runs if "layer" in m.axes}
        if len(depths) == 2:
            runs = [at_relative_depth(m, min(depths)) for m in runs]
            row = replace(row, depth="relative")

        def minus(runs: Sequence[Measurement]) -> Difference:
            if methods:
                return difference_of_methods(runs[:n], runs[n:])
            return paired_difference(runs[0], runs[1], resamples=resamples)

        coords = dict(runs[0].coords)
        row = replace(row, rounding=rounded * np.abs([m.mean for m in runs]).max(0))
        if not methods and runs is whole and runs[0].from_mean is not None and telling_cells(runs[0]).any():
            cells, overall = paired_with_mean(runs[0], runs[1], telling_cells(runs[0]), resamples=resamples)
            return replace(row, cells=cells, coords=coords, overall=overall)
        overall = _overall(whole, row.depth, minus, resamples)
        return replace(row, cells=minus(runs), coords=coords, overall=overall)
    except InputError as error:
        return replace(row, why=str(error))


def _at_threshold(m: Measurement) -> Measurement:
    """Share of similar vectors by block, at the chosen threshold."""
    chosen = chosen_threshold(m)
    values = {name: getattr(m, name)[..., chosen, :] for name in ("mean", "std", "ci")}
    per_image = None if m.per_image is None else m.per_image[:, chosen]
    coords = {name: labels for name, labels in m.coords.items() if name == "layer"}
    return replace(m, axes=("layer",), per_image=per_image, coords=coords, baselines={}, **values)


def _overall(
    runs: Sequence[Measurement], depth: str, minus: Callable[[Sequence[Measurement]], Difference], resamples: int
) -> Difference | None:
    """Difference of one number; each run's mean is over its own blocks. None where that means nothing.

    A count of few blocks against a count of many says nothing, and what is no mean over images needs the same cells.
    """
    counted = runs[0].metric == "similar_blocks"
    if depth == "relative" and (counted or runs[0].from_mean is not None):
        return None
    found = minus([_count(m) if counted else _mean(m) for m in runs])
    if not counted or found.effect is not None or not np.isfinite(found.mean):
        return found
    return replace(found, ci=_interval_of_counts(runs, resamples))


def _interval_of_counts(runs: Sequence[Measurement], resamples: int) -> np.ndarray:
    """Interval of the difference of two numbers of similar blocks: each may be anywhere in its own interval."""
    ends = []
    for m in runs:
        assert m.per_image is not None, "or nothing could be compared"
        bounds = interval_of_mean(m.per_image[:, chosen_threshold(m)], resamples, 0) > m.settings["rho"]
        ends.append((bounds[0].sum(), bounds[1].sum()))
    (low_1, high_1), (low_2, high_2) = ends
    return np.array([low_2 - high_1, high_2 - low_1], dtype=float)


def _count(m: Measurement) -> Measurement:
    """Number of similar blocks; NaN where the share of one is not known."""
    chosen, rho = chosen_threshold(m), m.settings["rho"]

    def count(mean: np.ndarray) -> np.ndarray:
        ratio = mean[..., chosen, :]
        return np.where(np.isnan(ratio).any(-1), np.nan, (ratio > rho).sum(-1))

    return one_number(m, count)


def _mean(m: Measurement) -> Measurement:
    """The mean over the cells that a summary's mean is over, image by image where that is possible."""
    cells = telling_cells(m)
    if not cells.any():
        raise InputError(f"{m.metric} has no cell to take the mean of.")
    if m.from_mean is not None:
        return one_number(m, lambda mean: mean[..., cells].mean(-1))
    assert m.per_image is not None, "picked by image"
    values = {name: getattr(m, name)[..., cells].mean(-1) for name in ("mean", "std", "ci")}
    return replace(m, axes=(), per_image=m.per_image[..., cells].mean(-1), coords={}, baselines={}, **values)


def order_of_heads(first: Examined, other: Examined, shared: tuple[str, ...]) -> np.ndarray:
    """[layer, head]: the head of `other` that belongs to each head of `first`, by the cosine of their softmax maps."""
    if first.maps is None or other.maps is None or not shared:
        raise InputError("heads are matched by their maps of the same images, and there are none.")
    shapes = [maps.shapes()[0] for maps in (first.maps, other.maps)]
    forms = {(shape.layers, shape.heads, shape.queries, shape.keys) for shape in shapes}
    if len(forms) > 1:
        raise InputError(
            f"heads of {first.name} and {other.name} cannot be matched: they differ in blocks, heads or tokens. "
            f"Compare without {option('match-heads')}."
        )
    shape = shapes[0]
    places = [{name: i for i, name in enumerate(maps.image_ids)} for maps in (first.maps, other.maps)]
    alike = torch.zeros(len(shape.layers), len(shape.heads), len(shape.heads), dtype=torch.float64)
    for name in shared[:MATCH_IMAGES]:
        for layer in range(len(shape.layers)):
            one, two = (
                torch.from_numpy(maps.layer(shape.name, shape.sites[0][0], place[name], layer)).flatten(1).double()
                for maps, place in zip((first.maps, other.maps), places, strict=True)
            )
            alike[layer] += torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(two, dim=1).T
    return matching(alike).numpy()
