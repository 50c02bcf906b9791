"""How did the similarity of layers change while the model trained? One small square per epoch."""

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.errors import InputError
from attnprobe.core.history import History
from attnprobe.plots.style import Limits, colour_bar, colours, new_axes
from attnprobe.plots.tiles import Tiles

IN_A_ROW = 5


def filmstrip(
    history: History,
    ax: Axes | None = None,
    *,
    metric: str = "layer_similarity",
    most: int = 10,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw the layer-by-layer matrices of some epochs, the first and the last among them; first block at bottom left.

    Args:
        history: what the probe saw.
        ax: where; a new figure if None.
        metric: one of `history.matrices`.
        most: at most so many matrices, evenly spread over the epochs.
        limits: lowest and highest value of the colours; from 0, or -1 where values are below -0.1, to 1 if None.
        title: replaces the metric's name and the number of images.
        colorbar: False if several Axes share one.

    Raises:
        InputError: the probe did not measure this.
    """
    matrices = history.matrices.get(metric)
    if matrices is None:
        raise InputError(f"the probe has no matrices of {metric!r}; it has {', '.join(history.matrices) or 'none'}.")
    rows = frames(history.epochs, most)
    tiles = frame_tiles(len(rows))
    width, height = tiles.size
    ax = new_axes(6.4, 0.6 + 5.4 * height / width) if ax is None else ax
    scale = colours(limits or (-1.0 if np.nanmin(matrices, initial=0) < -0.1 else 0.0, 1.0))
    tiles.prepare(ax, [f"epoch {history.epochs[row]}" for row in rows])
    for place, row in enumerate(rows):
        ax.imshow(matrices[row], extent=tiles.extent(place), origin="lower", aspect="equal", **scale._asdict())
    name = f"{metric.replace('_', ' ')}, mean of {len(history.image_ids)} images\nfirst block at the bottom left"
    ax.set_title(name if title is None else title, fontsize="medium", parse_math=False)
    if colorbar:
        colour_bar(ax, scale, metric.replace("_", " "), matrices[rows], shrink=0.8)
    return ax


def frames(epochs: np.ndarray, most: int) -> list[int]:
    """Positions of at most so many epochs, the first and the last among them, evenly spread in time."""
    wanted = np.linspace(epochs[0], epochs[-1], min(most, len(epochs)))
    return sorted({int(np.abs(epochs - epoch).argmin()) for epoch in wanted})


def frame_tiles(n: int) -> Tiles:
    """How n frames share one Axes."""
    return Tiles(n, in_a_row=min(n, IN_A_ROW))
