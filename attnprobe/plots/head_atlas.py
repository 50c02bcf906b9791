"""Atlas of heads: a tile per head, framed in the colour of its type."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch

from attnprobe.core.errors import ShapeError
from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import heading, new_axes, number_from_one, require_axes, without_frame

COLOURS = {
    "dead": "#7a4a2b",
    "uniform": "#9a9a9a",
    "class": "#D55E00",
    "sink": "#E69F00",
    "local": "#0072B2",
    "row": "#009E73",
    "column": "#CC79A7",
    "positional": "#56B4E9",
    "content": "#7b61c4",
    "unknown": "#d0d0d0",
}
"""Colour of each type; tiles are lettered, too, so that no type is told by its colour alone."""

SHORT = {"uniform": "unif", "class": "cls", "positional": "pos", "column": "col", "content": "cont", "unknown": "?"}
SHORT = {name: SHORT.get(name, name) for name in COLOURS}

SURE = 0.95
"""Below this share of the resamples a type has a question mark."""

SIDE, FRAME = 32, 3
"""Pixels of a tile without its frame, and of the frame."""

TILE = SIDE + 2 * FRAME
ACROSS, DOWN = TILE + 5, TILE + 16
"""Pixels from tile to tile: between columns a gap, above each tile room for its letters."""


def atlas_size(m: Measurement) -> tuple[int, int]:
    """Width and height of the whole, in pixels."""
    layers, heads = m.mean.shape[:2]
    return layers * ACROSS, heads * DOWN


def head_atlas(
    m: Measurement, ax: Axes | None = None, *, thumbnails: np.ndarray | None = None, title: str | None = None
) -> Axes:
    """Draw `head_types`, (layer, head, type), with depth from left to right.

    Args:
        m: what to draw.
        ax: where; a new figure if None.
        thumbnails: [layer, head, row, col], what to show of each head, on a scale of its own; None for a plain tile.
        title: replaces the metric's name, where it was measured and on how many images.

    Raises:
        ShapeError: other axes, types that have no colour, or thumbnails of other heads.
    """
    require_axes(m, "head_atlas", ("layer", "head", "type"))
    names = m.coords["type"]
    if unknown := [name for name in names if name not in COLOURS]:
        raise ShapeError(f"head_atlas has no colour for type {unknown[0]!r}, only for {', '.join(COLOURS)}.")
    if thumbnails is not None and thumbnails.shape[:2] != m.mean.shape[:2]:
        raise ShapeError(f"thumbnails are of {thumbnails.shape[:2]} (layer, head), types of {m.mean.shape[:2]}.")
    layers, heads = m.mean.shape[:2]
    width, height = atlas_size(m)
    ax = new_axes(9.6, 1.4 + 9.1 * height / width) if ax is None else ax
    whole = np.zeros((height, width, 4))  # one array of all: a thousand images take half a minute to draw
    for layer, head in np.ndindex(layers, heads):
        name = m.summary["types"][layer][head]
        left, top = layer * ACROSS, head * DOWN + DOWN - TILE
        thumbnail = None if thumbnails is None else thumbnails[layer, head]
        whole[top : top + TILE, left : left + TILE] = _tile(thumbnail, name)
        unsure = "" if m.mean[layer, head, names.index(name)] >= SURE or name == "unknown" else "?"
        ax.text(left + TILE / 2, top - 2, SHORT[name] + unsure, ha="center", va="bottom")
    ax.imshow(whole, extent=(0, width, height, 0), interpolation="nearest")
    ax.set(xlabel="block", ylabel="head")
    for axis, n, step, start in ((ax.xaxis, layers, ACROSS, TILE / 2), (ax.yaxis, heads, DOWN, DOWN - TILE / 2)):
        number_from_one(axis, n, kept=m.coords.get("layer" if axis is ax.xaxis else "head"), start=start, step=step)
    without_frame(ax)
    there = {name for row in m.summary["types"] for name in row}
    ax.legend(
        [Patch(color=COLOURS[name]) for name in names if name in there],
        [f"{SHORT[name]}: {name}" if SHORT[name] != name else name for name in names if name in there],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=5,  # in sizes of its letters: below the numbers and the name of the axis
        ncols=4,
        fontsize="small",
        frameon=False,
    )
    ax.set_title(heading(m) if title is None else title, fontsize="medium", parse_math=False)
    fit_letters(ax)
    return ax


LARGEST = 8.0
"""Points of the largest letters above a tile."""


def fit_letters(ax: Axes) -> None:
    """Make the letters above the tiles as large as the room between rows, and a tile's width, let them be."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "its Axes lie in one"
    size, room = LARGEST, 0.0
    while room <= 1.0 and size > 0.5:  # before matplotlib 3.11 letters are of whole pixels, so one step may not do
        for text in ax.texts:
            text.set_fontsize(size)
        figure.draw_without_rendering()  # only the layout knows how large a tile is
        boxes = [text.get_window_extent() for text in ax.texts]
        (left, top), (right, bottom) = ax.transData.transform([(0, 0), (ACROSS, DOWN - TILE - 4)])
        room = min((right - left) / max(box.width for box in boxes), (top - bottom) / max(box.height for box in boxes))
        size *= 0.95 * min(1.0, room)


def _tile(values: np.ndarray | None, name: str) -> np.ndarray:
    """[row, col, rgba]: the map in viridis from 0 to its highest value, in a frame of the type's colour."""
    tile = np.tile(np.array(to_rgba(COLOURS[name])), (TILE, TILE, 1))
    if values is not None:
        finite = np.where(np.isfinite(values), values, 0)
        highest = finite.max()
        rows, cols = (np.arange(SIDE) * n // SIDE for n in values.shape)
        shown = (finite / highest if highest > 0 else finite)[np.ix_(rows, cols)]
        tile[FRAME:-FRAME, FRAME:-FRAME] = colormaps["viridis"](shown)
    return tile
