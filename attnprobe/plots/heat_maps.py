"""Heat maps of measurements over blocks, heads and tokens."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import (
    Limits,
    Scale,
    colour_bar,
    colours,
    finish,
    heading,
    limits_from_zero,
    new_axes,
    number_from_one,
    quantity,
    require_axes,
    shared_limits,
)
from attnprobe.plots.tiles import Tiles


def layer_matrix(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, layer), the first block at the bottom left.

    Args:
        m: what to draw; the mean over images is shown.
        ax: where; a new figure if None.
        limits: lowest and highest value of the colours; the metric's range if None. Give several figures the same.
        title: replaces the metric's name, site and number of images.
        colorbar: False if several Axes share one.

    Raises:
        ShapeError: other axes.
    """
    require_axes(m, "layer_matrix", ("layer", "layer"))
    ax = new_axes(4.6, 4.2) if ax is None else ax
    scale = _draw_cells(ax, m.mean, limits or shared_limits([m]), from_bottom=True, square=True)
    for axis in (ax.xaxis, ax.yaxis):
        number_from_one(axis, len(m.mean), kept=m.coords.get("layer"), start=0.5)
    ax.set(xlabel="block", ylabel="block")
    return _finish(ax, m, scale, title, colorbar, shrink=0.8)


def layer_head(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, head): depth from left to right, head 1 at the top as in every figure of heads.

    Of (layer, head, prefix) the sum over the prefix tokens is drawn: what all of them get together.
    Arguments and errors as in `layer_matrix`.
    """
    require_axes(m, "layer_head", ("layer", "head"), ("layer", "head", "prefix"))
    values = _drawn(m)
    blocks, heads = values.shape
    ax = new_axes(5.2, 1.9 + 0.16 * max(heads, 6)) if ax is None else ax
    scale = _draw_cells(ax, values.T, limits or shared_limits([m]))
    number_from_one(ax.xaxis, blocks, kept=m.coords.get("layer"), start=0.5)
    number_from_one(ax.yaxis, heads, most=6, kept=m.coords.get("head"), start=0.5)
    ax.set(xlabel="block", ylabel="head")
    return _finish(ax, m, scale, title, colorbar)


def layer_key(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, key): blocks from top to bottom, tokens from left to right, counted from 0.

    Colours end at the highest value, which is far below the end of the metric's range where many tokens share it.
    Arguments and errors as in `layer_matrix`.
    """
    require_axes(m, "layer_key", ("layer", "key"))
    ax = new_axes(5.2, 1.6 + 0.12 * max(len(m.mean), 8)) if ax is None else ax
    every = max(1, m.mean.shape[1] // 6)
    scale = _draw_cells(ax, m.mean, limits or limits_from_zero(m.mean), xticklabels=every)
    number_from_one(ax.yaxis, len(m.mean), kept=m.coords.get("layer"), start=0.5)
    ax.tick_params("x", labelrotation=0)
    ax.set(xlabel="token, counted from 0", ylabel="block")
    return _finish(ax, m, scale, title, colorbar)


def head_grid(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, head, head): a tile per block, head 1 at its top left.

    Arguments and errors as in `layer_matrix`.
    """
    require_axes(m, "head_grid", ("layer", "head", "head"))
    tiles = Tiles(len(m.mean))
    ax = new_axes(5.2, 0.8 + 4.0 * tiles.size[1] / tiles.size[0]) if ax is None else ax
    scale = colours(limits or shared_limits([m]))
    tiles.prepare(ax, list(map(str, m.block_numbers)))
    for block, matrix in enumerate(m.mean):
        ax.imshow(matrix, extent=tiles.extent(block), aspect="equal", **scale._asdict())
    return _finish(ax, m, scale, title, colorbar, shrink=0.8)


def side_by_side(
    draw: Callable[..., Axes], measurements: Sequence[Measurement], axes: Sequence[Axes], titles: Sequence[str]
) -> None:
    """Draw a heat map of each measurement of one quantity, on one scale of colours that a bar below them all tells."""
    values = np.concatenate([_drawn(m).ravel() for m in measurements])
    limits = limits_from_zero(values) if draw is layer_key else shared_limits(measurements)
    for m, ax, title in zip(measurements, axes, titles, strict=True):
        draw(m, ax, limits=limits, title=title, colorbar=False)
        for axis in (ax.xaxis, ax.yaxis):  # numbers that suit a whole page are too many beside one another
            labels = [text.get_text() for text in axis.get_ticklabels()]
            every = max(1, math.ceil(len(labels) / MOST_NUMBERS))
            axis.set_ticks(axis.get_ticklocs()[::every], labels=labels[::every])
        for text in ax.texts:
            text.set_fontsize("xx-small")
    colour_bar(axes, colours(limits), quantity(measurements[0]), values, location="bottom", shrink=0.7, aspect=40)


MOST_NUMBERS = 5
"""Most numbers along an axis of one of several small heat maps."""


def _drawn(m: Measurement) -> np.ndarray:
    """Values of the cells: of prefix tokens their sum."""
    return m.mean.sum(-1) if m.axes[-1] == "prefix" else m.mean


def _finish(ax: Axes, m: Measurement, scale: Scale, title: str | None, colorbar: bool = True, **options) -> Axes:
    return finish(ax, scale, _drawn(m), quantity(m), heading(m) if title is None else title, colorbar, **options)


def _draw_cells(ax: Axes, values: np.ndarray, limits: Limits, *, from_bottom: bool = False, **options) -> Scale:
    """Draw a cell per value of [row, column], from the top or the bottom; `options` of seaborn.heatmap."""
    from seaborn import heatmap  # takes half a second, and reports without a heat map do without

    scale = colours(limits)
    bounds = {"vmin": scale.norm.vmin, "vmax": scale.norm.vmax, "cmap": scale.cmap}
    labels = {"xticklabels": False, "yticklabels": False, **options}
    heatmap(values, ax=ax, cbar=False, rasterized=True, **bounds, **labels)
    if from_bottom:
        ax.invert_yaxis()
    return scale
