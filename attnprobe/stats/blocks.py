"""One number per block of a measurement that has several."""

import math

import numpy as np

from attnprobe.core.errors import InputError
from attnprobe.core.measurement import Measurement


def chosen_threshold(m: Measurement) -> int:
    """Position of the setting `tau` among the thresholds; a threshold that depends on the image is the last."""
    tau, thresholds = m.settings["tau"], list(m.coords["threshold"])
    return len(thresholds) - 1 if isinstance(tau, str) else thresholds.index(tau)


def without_partner(m: Measurement) -> int | None:
    """Position of the block that similar blocks compare with none: the first with the previous one, the last with the
    next; None where each has a partner."""
    return {"previous": 0, "next": -1}.get(m.settings["compare"])


def similar_share(m: Measurement, values: np.ndarray) -> np.ndarray:
    """[..., threshold, layer] -> [..., layer]: at the chosen threshold; NaN for a block without a partner."""
    share = np.array(values[..., chosen_threshold(m), :], dtype=float)
    if (block := without_partner(m)) is not None:
        share[..., block] = math.nan
    return share


def per_block(m: Measurement) -> np.ndarray:
    """[block]: the mean over heads; of similar blocks, their share of similar vectors; of a matrix over layers, the
    value with the previous block; of heads by heads, the mean over pairs of different heads.

    Raises:
        InputError: no axis of it is the layer.
    """
    if m.axes == ("layer", "layer"):
        return np.array([math.nan, *m.mean.diagonal(1)])
    if m.axes == ("threshold", "layer"):
        return similar_share(m, m.mean)
    if m.axes == ("layer", "head", "head"):
        heads = m.mean.shape[-1]
        pairs = m.mean[:, ~np.eye(heads, dtype=bool)]
        return pairs.mean(1) if heads > 1 else np.full(len(pairs), math.nan)
    if m.axes[:1] != ("layer",):
        raise InputError(f"metric {m.metric!r} has axes ({', '.join(m.axes)}), so no number per block; probe others.")
    return m.mean.reshape(len(m.mean), -1).mean(1)
