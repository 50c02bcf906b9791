"""An image, and over it the attention of every block."""

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.examined import AttendedImage
from attnprobe.core.images import LUMA
from attnprobe.plots.style import Limits, colours, finish, new_axes
from attnprobe.plots.tiles import Tiles

OPACITY = 0.65
"""Opacity of the colours over the image, which is shown in grey."""


def attention_grid(
    picture: AttendedImage, ax: Axes | None = None, *, limits: Limits | None = None, title: str | None = None
) -> Axes:
    """Draw the mean over heads of the attention each patch gets, one tile per block, the plain image first.

    Colours start at 0 and are the same in all tiles, so a block of uniform attention is of one colour.

    Args:
        picture: the image and its attention.
        ax: where; a new figure if None.
        limits: lowest and highest attention of the colours; from 0 to the largest of this image if None.
        title: replaces the image's id, its label and the prediction.
    """
    attention = attention_of(picture)
    rows, cols = picture.pixels.shape[:2]
    tiles = Tiles(len(attention) + 1, height=rows / cols)
    ax = new_axes(5.2, 0.8 + 4.0 * tiles.size[1] / tiles.size[0]) if ax is None else ax
    scale = colours(limits or attention_limits([picture]))
    first, *others = picture.blocks or range(1, len(attention) + 1)
    tiles.prepare(ax, ["image", f"block {first}", *map(str, others)])
    ax.imshow(picture.pixels, extent=tiles.extent(0), aspect="equal")
    grey = picture.pixels.astype(float) @ np.array(LUMA)
    for block, values in enumerate(attention):
        extent = tiles.extent(block + 1)
        ax.imshow(grey, extent=extent, aspect="equal", cmap="gray", vmin=0, vmax=255)
        ax.imshow(values, extent=extent, aspect="equal", **scale._asdict(), alpha=OPACITY)
    name = _title(picture) if title is None else title
    return finish(ax, scale, attention, "attention, mean over heads", name, shrink=0.8)


def attention_of(picture: AttendedImage) -> np.ndarray:
    """[layer, row, col]: the mean over heads."""
    return np.asarray(picture.attention, dtype=float).mean(1)


def attention_limits(pictures: "list[AttendedImage]") -> Limits:
    """From 0 to the largest value that 99 % of the patches stay below, so that one sink does not darken the rest."""
    values = np.concatenate([attention_of(picture).ravel() for picture in pictures])
    values = values[np.isfinite(values)]
    low, high = (np.quantile(values, [0.01, 0.99])) if values.size else (0.0, 1.0)
    low = min(0.0, float(low))
    return low, float(high) if high > low else low + 1


def _title(picture: AttendedImage) -> str:
    """Names of classes and files may be long: a line each."""
    lines = [picture.image_id]
    if picture.prediction:
        sure = f" ({picture.probability:.0%})" if np.isfinite(picture.probability) else ""
        true = f", label {picture.label}" if picture.label else ""
        lines.append(f"predicted {picture.prediction}{sure}{true}")
    return "\n".join(line if len(line) <= 48 else f"…{line[-47:]}" for line in lines)
