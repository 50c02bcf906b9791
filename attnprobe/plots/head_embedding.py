"""All heads of a network as dots on a plane: near dots attend alike."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import colours, finish, heading, new_axes, require_axes


def head_embedding(m: Measurement, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Draw distances between all heads as a plane: classical multidimensional scaling (Torgerson 1952).

    Clark et al. 2019, arXiv:1906.04341, show heads so, by the Jensen-Shannon divergence between them. Its square root
    is a distance, so that is what is drawn of divergences; of cosines c, sqrt(2 - 2 c). The axes have no meaning but
    that distances on the plane stand for those between heads; the title says how much of them it keeps.

    Args:
        m: over (layer, head, layer, head), as of `head_divergence_across_layers`.
        ax: where; a new figure if None.
        title: replaces the metric's name.

    Raises:
        ShapeError: other axes.
    """
    require_axes(m, "head_embedding", ("layer", "head", "layer", "head"))
    ax = new_axes(5.2, 4.4) if ax is None else ax
    layers, heads = m.mean.shape[:2]
    places, kept = scaled(m.mean.reshape(layers * heads, -1), similarity=m.value_range[1] == 1.0)
    block = np.repeat(m.block_numbers, heads)
    scale = colours((float(block.min()), float(max(block.max(), block.min() + 1))))
    ax.scatter(*places.T, c=block, s=22, edgecolors="#404040", linewidths=0.4, **scale._asdict())
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.margins(0.08)
    name = f"{heading(m)}\nkeeps {kept:.0%} of squared distances"
    bar = {"shrink": 0.8, "ticks": MaxNLocator(6, integer=True)}
    return finish(ax, scale, block.astype(float), "block", name if title is None else title, **bar)


def scaled(values: np.ndarray, *, similarity: bool) -> tuple[np.ndarray, float]:
    """Distances between n points -> their places [n, 2] on a plane, and the share of the squared distances it keeps.

    Things without finite distances have no place (NaN); nothing has one, and 0 is kept, where none has them.
    """
    finite = np.isfinite(values)
    known = finite.sum(1) == finite.sum(1).max()
    if not finite.all():
        places, kept = np.full((len(values), 2), np.nan), 0.0
        if finite[known][:, known].all():
            places[known], kept = scaled(values[known][:, known], similarity=similarity)
        return places, kept
    squared = 2 - 2 * values if similarity else np.array(values, dtype=float)
    squared = np.maximum((squared + squared.T) / 2, 0)
    np.fill_diagonal(squared, 0)
    centred = -0.5 * (squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean())
    strength, direction = np.linalg.eigh(centred)
    strength, direction = np.maximum(strength[::-1], 0), direction[:, ::-1]
    places = np.zeros((len(squared), 2))
    places[:, : len(strength[:2])] = direction[:, :2] * np.sqrt(strength[:2])
    total = strength.sum()
    return places, float(strength[:2].sum() / total) if total > 0 else 1.0
