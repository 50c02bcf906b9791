"""Measurements of two runs brought to the same images, depths and heads.

Each function takes a measurement and returns it rearranged; `paired_difference` then compares cell by cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from attnprobe.core.errors import InputError
from attnprobe.core.measurement import Measurement
from attnprobe.stats.interval import mean_of


def at_images(m: Measurement, image_ids: Sequence[str]) -> Measurement:
    """The measurement on these images only, in this order.

    Raises:
        InputError: values were not kept image by image, or an image was not measured.
    """
    if m.per_image is None:
        raise InputError(f"the values of {m.metric} image by image were too large to keep; measure fewer images.")
    place = {name: i for i, name in enumerate(m.image_ids)}
    if missing := [name for name in image_ids if name not in place]:
        raise InputError(f"{m.metric} was not measured on {missing[0]!r}.")
    rows = m.per_image[[place[name] for name in image_ids]]
    return replace(m, per_image=rows, image_ids=tuple(image_ids), pixels=(), n_images=len(rows), replicates=None)


def at_relative_depth(m: Measurement, layers: int) -> Measurement:
    """The measurement at `layers` depths, evenly from the first block (0) to the last (1), linear between blocks.

    Of matrices over (layer, layer) the nearest blocks are taken: between two blocks there is no cosine of theirs, only
    the 1 of each with itself.

    Raises:
        InputError: its number is no mean over images (`Measurement.from_mean`), so that nothing can be read between.
    """
    if "layer" not in m.axes or m.mean.shape[m.axes.index("layer")] == layers:
        return m
    of_cells = m.per_image is None or m.per_image.shape[1:] == m.mean.shape  # some keep sums of another shape
    if m.from_mean is not None and (m.axes.count("layer") == 1 or not of_cells):
        raise InputError(f"{m.metric} is no mean over images and cannot be read between two blocks.")
    read_axis = _nearest if m.axes.count("layer") > 1 else _between

    def read(values: np.ndarray) -> np.ndarray:
        for axis, name in enumerate(m.axes, values.ndim - len(m.axes)):
            if name == "layer":
                values = read_axis(values, axis, layers)
        return values

    coords = {name: labels for name, labels in m.coords.items() if name != "layer"}
    return replace(_mapped(m, read), coords=coords)


def with_heads_ordered(m: Measurement, order: np.ndarray) -> Measurement:
    """The measurement with head order[layer, i] at place i of each layer; over (layer, head) and (layer, head, head).

    Raises:
        InputError: it relates heads of several layers, or its heads are labelled.
    """
    if "head" not in m.axes:
        return m
    if m.axes[0] != "layer" or m.axes.count("layer") != 1 or set(m.axes[1:3]) - {"head", "prefix"}:
        raise InputError(f"{m.metric} over ({', '.join(m.axes)}) cannot have its heads put in another order.")
    if m.from_mean is not None:
        raise InputError(f"{m.metric} is no mean over images; its heads stay in their order.")
    layer = np.arange(len(order))[:, None]

    def put(values: np.ndarray) -> np.ndarray:
        if m.axes[1:] == ("head", "head"):
            return values[..., layer[:, :, None], order[:, :, None], order[:, None, :]]
        return values[..., layer, order] if len(m.axes) == 2 else values[..., layer, order, :]

    return _mapped(m, put)


def mean_over_heads(m: Measurement) -> Measurement:
    """(layer, head) -> (layer,), and of (layer, head, head) the mean over pairs of different heads.

    A measurement without heads stays as it is.

    Raises:
        InputError: it relates heads of several layers, or is no mean over images, so that no number per layer is left.
    """
    if "head" not in m.axes:
        return m
    pairs = m.axes.count("head") == 2 and m.axes[-2:] == ("head", "head")
    if (m.axes.count("head") > 1 and not pairs) or m.from_mean is not None:
        raise InputError(f"{m.metric} relates heads, which have no order in common, so there is no cell in common.")
    axis, different = m.axes.index("head") - len(m.axes), ~np.eye(m.mean.shape[-1], dtype=bool)

    def change(values: np.ndarray) -> np.ndarray:
        if not pairs:
            return values.mean(axis)
        one_head = not different.any()  # and so no pair
        return np.full(values.shape[:-2], np.nan) if one_head else values[..., different].mean(-1)

    coords = {name: labels for name, labels in m.coords.items() if name != "head"}
    return replace(_mapped(m, change), axes=tuple(name for name in m.axes if name != "head"), coords=coords)


APART = "it compares blocks or heads, and blocks have unequal numbers of heads"
"""Reason why there is no number of every block."""


def over_stages(stages: Sequence[Measurement]) -> Measurement:
    """The mean over heads in the blocks of several stages, in the order of their numbers.

    Raises:
        InputError: it compares blocks or relates heads, or is no mean over images.
    """
    parts = [_with_interval(mean_over_heads(m)) if "head" in m.axes else m for m in stages]
    first = parts[0]
    if first.from_mean is not None:
        raise InputError("it is no mean over images, and blocks have unequal numbers of heads")
    if first.axes[:1] != ("layer",) or first.axes.count("layer") > 1:
        raise InputError(APART)
    numbers = [number for part in parts for number in part.block_numbers]
    order = np.argsort(numbers)

    def joined(name: str, of: Sequence[Measurement] = parts) -> np.ndarray | None:
        values = [getattr(m, name) for m in of]
        axis = len(first.axes)
        return None if any(v is None for v in values) else np.concatenate(values, axis=-axis).take(order, axis=-axis)

    baselines = {
        name: replace(
            first.baselines[name], axes=first.axes, mean=joined("mean", [part.baselines[name] for part in parts])
        )
        for name in first.baselines
        if all(name in part.baselines for part in parts)
    }
    arrays = {name: joined(name) for name in ("mean", "std", "ci", "per_image", "replicates")}
    coords = {**first.coords, "layer": sorted(numbers)}
    return replace(first, **arrays, coords=coords, baselines=baselines, together=(), summary={})


def _with_interval(m: Measurement) -> Measurement:
    """The measurement with intervals of the means over heads, not means of the heads' intervals."""
    return replace(m, ci=np.stack(mean_of(m, np.ones((), bool))[1:]))


def one_number(m: Measurement, function: Callable[[np.ndarray], np.ndarray]) -> Measurement:
    """A measurement without axes: a function of the mean over images, [..., *axes] -> [...]; see `from_mean`."""

    def of_mean(mean: np.ndarray, n_images: float | np.ndarray) -> np.ndarray:
        return function(mean if m.from_mean is None else m.from_mean(mean, n_images))

    return replace(m, axes=(), from_mean=of_mean, coords={}, baselines={})


def _mapped(m: Measurement, change: Callable[[np.ndarray], np.ndarray]) -> Measurement:
    """The measurement with a function of [..., *axes] applied to every array and to the means of the baselines."""
    baselines = {name: replace(b, mean=change(b.mean)) for name, b in m.baselines.items()}
    arrays = {name: change(getattr(m, name)) for name in ("mean", "std", "ci")}
    drawn = {name: None if (x := getattr(m, name)) is None else change(x) for name in ("per_image", "replicates")}
    return replace(m, **arrays, **drawn, baselines=baselines, summary={})


def _between(values: np.ndarray, axis: int, n: int) -> np.ndarray:
    """`n` values evenly along an axis, interpolated linearly."""
    at = np.linspace(0, values.shape[axis] - 1, n)
    low = np.floor(at).astype(int)
    high, weight = np.ceil(at).astype(int), (at - low).reshape(-1, *[1] * (values.ndim - axis - 1))
    return values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight


def _nearest(values: np.ndarray, axis: int, n: int) -> np.ndarray:
    """`n` values evenly along an axis, each the nearest one."""
    at = np.linspace(0, values.shape[axis] - 1, n)
    return values.take(np.floor(at + 0.5).astype(int), axis)
