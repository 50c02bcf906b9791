"""Which tokens does each block draw on?"""

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import (
    Limits,
    colours,
    finish,
    new_axes,
    number_from_one,
    require_axes,
)


def layer_key(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, key): blocks from top to bottom, tokens from left to right.

    Colours end at the highest value, which is far below the end of the metric's range where many tokens share it.
    Arguments and errors as in `layer_matrix`.
    """
    require_axes(m, "layer_key", ("layer", "key"))
    ax = new_axes(5.2, 1.6 + 0.12 * max(len(m.mean), 8)) if ax is None else ax
    finite = m.mean[np.isfinite(m.mean)]
    scale = colours(limits or (0.0, float(finite.max()) if finite.size and finite.max() > 0 else 1.0))
    ax.imshow(m.mean, aspect="auto", interpolation="nearest", **scale._asdict())
    number_from_one(ax.yaxis, len(m.mean), kept=m.coords.get("layer"))
    ax.set(xlabel="token, counted from 0", ylabel="block")
    return finish(ax, m, scale, title, colorbar)
