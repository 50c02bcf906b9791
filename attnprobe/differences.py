"""Where does one run differ from another, if their depths, heads or images are not the same?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.metrics.alignment import (
    at_images,
    at_relative_depth,
    mean_over_heads,
    one_number,
    with_heads_ordered,
)
from attnprobe.metrics.head_matching import matching
from attnprobe.metrics.paired import Difference, paired_difference
from attnprobe.reports.numbers import telling_cells

MATCH_IMAGES = 64
"""Images whose maps decide which heads of two runs belong together."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One metric of a run, minus that of the first run.

    Attributes:
        metric, site, stage: what was compared where; "effective" is what multiplies V in each run.
        cells: the difference of every cell; None where there is none, and `why` says why not.
        overall: the same of one number: of similar blocks their count, else the mean over the summary's cells.
        depth: "block", or "relative" where the two have other numbers of blocks.
        coords: labels of the cells' axes that are not plain positions.
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


def pairs_of(first: Examined, other: Examined) -> Iterator[tuple[Measurement, Measurement, str]]:
    """Each metric of both, at what multiplies V and, where that is another matrix in one of them, at the softmax."""
    for stage, metric in dict.fromkeys((m.stage, m.metric) for m in first.measurements.values()):
        seen = None
        for site in ("effective", "weights"):
            one, two = (_at(e, stage, metric, site) for e in (first, other))
            if one is not None and two is not None and (one, two) != seen:
                yield one, two, site
                seen = one, two


def _at(e: Examined, stage: str, metric: str, site: str) -> Measurement | None:
    here = [m for m in e.measurements.values() if (m.stage, m.metric) == (stage, metric)]
    return next((m for m in here if (m.is_effective if site == "effective" else m.site == "weights")), None)


def shared_images(first: Examined, other: Examined) -> tuple[str, ...]:
    """Images measured in both, in the order of the first."""
    kept = [next((m.image_ids for m in e.measurements.values() if m.image_ids), ()) for e in (first, other)]
    there = set(kept[1])
    return tuple(name for name in kept[0] if name in there)


def depth_of(e: Examined) -> int:
    """How many blocks were measured."""
    return next((m.mean.shape[m.axes.index("layer")] for m in e.measurements.values() if "layer" in m.axes), 0)


def compared(
    run: str, one: Measurement, two: Measurement, site: str, shared: tuple[str, ...], order: np.ndarray | None,
    resamples: int,
) -> Compared:  # fmt: skip
    """The difference of one metric, or why there is none."""
    row = Compared(run, one.metric, site, one.stage)
    try:
        if one.metric == "similar_blocks":
            counted = [_count(m) for m in (one, two)]
            one, two = (_at_threshold(m) for m in (one, two))
        else:
            counted = []
        one, two = (at_images(m, shared) for m in (one, two))
        if "head" in one.axes and one.mean.shape[_head(one)] != two.mean.shape[_head(two)]:
            one, two = mean_over_heads(one), mean_over_heads(two)
        elif order is not None:
            two = with_heads_ordered(two, order)
        depths = [m.mean.shape[m.axes.index("layer")] for m in (one, two) if "layer" in m.axes]
        if len(set(depths)) == 2:
            one, two = (at_relative_depth(m, min(depths)) for m in (one, two))
            row = replace(row, depth="relative")
        cells = paired_difference(one, two, resamples=resamples)
        row = replace(row, cells=cells, coords=dict(one.coords))
        if row.depth == "relative" and counted:
            return row  # a count of few blocks against a count of many says nothing
        numbers = [at_images(m, shared) for m in counted] or [_mean(m) for m in (one, two)]
        return replace(row, overall=paired_difference(*numbers, resamples=resamples))
    except InputError as error:
        return replace(row, why=str(error))


def _head(m: Measurement) -> int:
    return m.axes.index("head")


def _at_threshold(m: Measurement) -> Measurement:
    """Similar blocks at the threshold that its count is of: the share of similar vectors, by block."""
    chosen = _chosen(m)
    values = {name: getattr(m, name)[..., chosen, :] for name in ("mean", "std", "ci")}
    per_image = None if m.per_image is None else m.per_image[:, chosen]
    coords = {name: labels for name, labels in m.coords.items() if name == "layer"}
    return replace(m, axes=("layer",), per_image=per_image, coords=coords, baselines={}, **values)


def _count(m: Measurement) -> Measurement:
    """How many blocks are similar, as a number."""
    chosen, rho = _chosen(m), m.settings["rho"]
    return one_number(m, lambda mean: (mean[..., chosen, :] > rho).sum(-1).astype(float))


def _chosen(m: Measurement) -> int:
    thresholds, tau = m.coords["threshold"], m.settings["tau"]
    return len(thresholds) - 1 if tau == "nbr-mean" else thresholds.index(tau)


def _mean(m: Measurement) -> Measurement:
    """The mean over the cells that a summary's mean is over."""
    cells = telling_cells(m)
    if not cells.any():
        raise InputError(f"{m.metric} has no cell to take the mean of.")
    return one_number(m, lambda mean: mean[..., cells].mean(-1))


def order_of_heads(first: Examined, other: Examined, shared: tuple[str, ...]) -> np.ndarray:
    """[layer, head]: the head of `other` that belongs to each head of `first`, by the cosine of their softmax maps."""
    if first.maps is None or other.maps is None or not shared:
        raise InputError("heads are matched by their maps of the same images, and there are none.")
    shapes = [maps.shapes()[0] for maps in (first.maps, other.maps)]
    forms = {(shape.layers, shape.heads, shape.queries, shape.keys) for shape in shapes}
    if len(forms) > 1:
        raise InputError(
            f"heads of {first.name} and {other.name} cannot be matched: they differ in blocks, heads or tokens. "
            "Compare without --match-heads."
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
