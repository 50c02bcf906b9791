"""What is the one number that says most about a block, of a metric that has many?"""

import math

import numpy as np

from attnprobe.core.errors import InputError
from attnprobe.core.measurement import Measurement


def per_block(m: Measurement) -> np.ndarray:
    """[block]: one number per block of a measurement; see `History.blocks`.

    Raises:
        InputError: no axis of it is the layer.
    """
    if m.axes == ("layer", "layer"):
        return np.array([math.nan, *m.mean.diagonal(1)])
    if m.axes == ("threshold", "layer"):
        tau, thresholds = m.settings["tau"], list(m.coords["threshold"])
        ratio = np.array(m.mean[-1 if isinstance(tau, str) else thresholds.index(tau)])
        alone = {"previous": 0, "next": -1}.get(m.settings["compare"])
        if alone is not None:  # it has nothing to be compared with, and its 0 means nothing
            ratio[alone] = math.nan
        return ratio
    if m.axes == ("layer", "head", "head"):
        heads = m.mean.shape[-1]
        pairs = m.mean[:, ~np.eye(heads, dtype=bool)]
        return pairs.mean(1) if heads > 1 else np.full(len(pairs), math.nan)
    if m.axes[:1] != ("layer",):
        raise InputError(f"metric {m.metric!r} has axes ({', '.join(m.axes)}), so no number per block; probe others.")
    return m.mean.reshape(len(m.mean), -1).mean(1)
