"""Attention maps of one image: blocks from top to bottom, heads from left to right."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.sites import SITES
from attnprobe.plots.style import (
    Limits,
    colours,
    finish,
    limits_from_zero,
    new_axes,
    number_from_one,
    without_frame,
)

GAP = 0.06
"""Between tiles, in tiles."""


def map_strip(
    maps: AttentionMaps,
    ax: Axes | None = None,
    *,
    image: int = 0,
    query: int | None = None,
    limits: Limits | None = None,
    title: str | None = None,
) -> Axes:
    """Draw every head's map of one image, or what one query of it attends to.

    Args:
        maps: of one stage and site.
        ax: where; a new figure if None.
        image: which of the images.
        query: a token; its row of each map is drawn over the patch grid, outlined where it sits. None draws whole maps,
            queries from top to bottom.
        limits: lowest and highest value of the colours; from 0 (the lowest, if below) to the highest if None.
        title: replaces the site and the image's id.

    Raises:
        InputError: no such image or query.
        ShapeError: a query, of maps whose keys are not the patches of an image.
    """
    values, outline = tiles_of(maps, image, query)
    layers, heads, rows, cols = values.shape
    step_x, step_y = 1 + GAP, rows / cols + GAP
    if ax is None:
        tile = min(1.0, 10 / heads, 12 / layers)
        ax = new_axes(2.1 + tile * heads * step_x, 0.9 + tile * layers * step_y)
    scale = colours(limits or limits_from_zero(values))
    for layer, head in np.ndindex(layers, heads):
        left, top = head * step_x, layer * step_y
        extent = (left, left + 1, top + rows / cols, top)
        ax.imshow(values[layer, head], extent=extent, aspect="equal", **scale._asdict())
        if outline:
            corner = left + outline[1] / cols, top + outline[0] / cols
            ax.add_patch(Rectangle(corner, 1 / cols, 1 / cols, fill=False, edgecolor="white", linewidth=1.2))
    ax.set(xlim=(-GAP, heads * step_x), ylim=(layers * step_y, -GAP), xlabel="head", ylabel="block")
    numbers = maps.part.numbers
    for axis, n, step, half in ((ax.xaxis, heads, step_x, 0.5), (ax.yaxis, layers, step_y, rows / cols / 2)):
        number_from_one(axis, n, kept=numbers.get("head" if axis is ax.xaxis else "layer"), start=half, step=step)
    without_frame(ax)
    name = f"{SITES[maps.site]}, {maps.image_ids[image]}"
    return finish(ax, scale, values, "attention", name if title is None else title, shrink=0.8)


def tiles_of(maps: AttentionMaps, image: int, query: int | None) -> tuple[np.ndarray, tuple[int, int] | None]:
    """[layer, head, row, col], whole maps of an image or the row of a query over the patches; and the query's patch.

    Raises:
        InputError: no such image or query.
        ShapeError: a query, of maps whose keys are not the patches of an image.
    """
    if not -maps.n_images <= image < maps.n_images:
        raise InputError(f"image={image} of {maps.n_images} images.")
    values, grid = maps.values[image].detach().float().cpu().numpy(), maps.grid
    if query is None:
        return values, None
    if not grid.rows or values.shape[-1] != grid.n_tokens or maps.kind not in ("self", "pyramid"):
        raise ShapeError(f"query={query} needs keys that are patches; these maps are of kind {maps.kind!r}.")
    if not 0 <= query < values.shape[2]:
        raise InputError(f"query={query} of {values.shape[2]} tokens.")
    has_place = values.shape[2] == grid.n_tokens and grid.slots[query] >= grid.n_prefix
    outline = divmod(grid.slots[query] - grid.n_prefix, grid.cols) if has_place else None
    return grid.over_image(values[:, :, query]), outline
