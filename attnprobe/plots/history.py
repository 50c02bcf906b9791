"""A run while it trains: similarity of layers epoch by epoch, and values over epoch and block."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from attnprobe.core.errors import InputError
from attnprobe.core.history import History
from attnprobe.plots.style import Limits, colours, finish, limits_from_zero, new_axes, number_from_one
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
        history: measurements of the probe.
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
    name = name if title is None else title
    return finish(ax, scale, matrices[rows], metric.replace("_", " "), name, colorbar, shrink=0.8)


def frames(epochs: np.ndarray, most: int) -> list[int]:
    """Positions of at most so many epochs, the first and the last among them, evenly spread in time."""
    wanted = np.linspace(epochs[0], epochs[-1], min(most, len(epochs)))
    return sorted({int(np.abs(epochs - epoch).argmin()) for epoch in wanted})


def frame_tiles(n: int) -> Tiles:
    """Tiles of n frames on one Axes."""
    return Tiles(n, in_a_row=min(n, IN_A_ROW))


LABELS = {
    "similar_blocks": "share of similar vectors",
    "row_entropy": "row entropy [nats]",
    "layer_similarity": "cosine with the previous block",
}


def onset(
    history: History,
    ax: Axes | None = None,
    *,
    metric: str = "similar_blocks",
    limits: Limits | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a metric over (epoch, block). A column reaches halfway to the epochs probed before and after.

    Of `similar_blocks`, a dot marks the cells that count as similar.

    Args:
        history: measurements of the probe.
        ax: where; a new figure if None.
        metric: one of `history.blocks`.
        limits: lowest and highest value of the colours; from 0 (the lowest, if below) to the value of uniform
            attention or, where there is none or it is lower, the highest, if None.
        title: replaces the metric's name and the number of images.

    Raises:
        InputError: the probe did not measure this.
    """
    values = history.blocks.get(metric)
    if values is None:
        raise InputError(f"the probe did not measure {metric!r}; it has {', '.join(history.blocks)}.")
    n_blocks = values.shape[1]
    ax = new_axes(5.2, 1.6 + 0.1 * max(n_blocks, 12)) if ax is None else ax
    seen = np.concatenate([values.ravel(), history.uniform.get(metric, np.zeros(0)).ravel()])
    scale = colours(limits or limits_from_zero(seen))
    ax.pcolormesh(edges(history.epochs), np.arange(n_blocks + 1) - 0.5, values.T, **scale._asdict())
    rho = history.settings.get(metric, {}).get("rho")
    if rho is not None:
        row, block = np.nonzero(values > rho)
        ax.plot(history.epochs[row], block, ".", color="black", markersize=2.5)
    number_from_one(ax.yaxis, n_blocks)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="epoch", ylabel="block")
    name = f"{metric.replace('_', ' ')}, mean of {len(history.image_ids)} images"
    name += "\ndots: counts as similar" if rho is not None else ""
    label = LABELS.get(metric, metric.replace("_", " "))
    return finish(ax, scale, values, label, name if title is None else title)


def edges(epochs: np.ndarray) -> np.ndarray:
    """[epoch + 1]: where columns begin and end, in epochs."""
    middles = (epochs[1:] + epochs[:-1]) / 2
    return np.concatenate([[epochs[0] - 0.5], middles, [epochs[-1] + 0.5]])
