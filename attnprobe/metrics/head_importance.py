"""Importance of heads for the loss, by gradients and by ablation; of attention for the tokens, by what it changes."""

import inspect
from collections.abc import Callable, Sequence

import numpy as np

from attnprobe.core.errors import ShapeError
from attnprobe.core.measurement import FromMean, Measurement
from attnprobe.stats.bootstrap import interval_of_function, interval_of_mean


def of_unit_length(mean: np.ndarray, n_images: float | np.ndarray = 0) -> np.ndarray:
    """[..., layer, head] divided by its Euclidean length over the heads of a layer; 0 where all are 0."""
    length = np.sqrt(np.nansum(mean**2, axis=-1, keepdims=True))
    return np.where(length > 0, mean / np.where(length > 0, length, 1), 0 * mean)


def head_importance(
    gradients: np.ndarray, image_ids: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> Measurement:
    """Sensitivity of the loss to each head: its derivative by a gate on the head's output.

    For a gate g = 1 that multiplies the output O_h of head h of layer l, and the cross-entropy L of one image:

        S[l, h] = mean over images of  |dL / dg_h|  =  mean over images of  |<O_h, dL / dO_h>|
        I[l, h] = S[l, h] / |S[l, :]|_2

    Michel et al. 2019, arXiv:1905.10650, with their division by the length over a layer's heads, so layers cannot be
    compared by it. Our reading: one image is one sample, and the output is what the projection takes in, after
    whatever a variant does to it. First order: it says nothing of heads that can go one by one but not together; for
    those ablate them (`head_ablation`, and the curves of `attnprobe verify-drops`).

    Args:
        gradients: [image, layer, head], dL/dg; NaN where a layer has fewer heads than another.
        image_ids: one per row.
        bootstrap, seed: as for `measure`.

    Returns:
        A measurement over (layer, head), from 0 to 1.
    """
    values = np.abs(np.asarray(gradients, dtype=np.float64))
    return per_image(head_importance, values, image_ids, bootstrap, seed, value_range=(0, 1), from_mean=of_unit_length)


def head_ablation(gained: np.ndarray, image_ids: Sequence[str], *, bootstrap: int = 1000, seed: int = 0) -> Measurement:
    """Importance of heads by ablation: the loss gained where the output of one head is 0.

        D[l, h] = mean over images of  L(without head h of layer l) - L

    In nats; negative where the model does better without it. The baseline that gradients approximate in Michel et al.
    2019, arXiv:1905.10650.

    Args:
        gained: [image, layer, head], nats; NaN where a layer has fewer heads than another.
        image_ids, bootstrap, seed: as for `head_importance`.

    Returns:
        A measurement over (layer, head), nats.
    """
    return per_image(head_ablation, np.asarray(gained, dtype=np.float64), image_ids, bootstrap, seed)


def attention_update(
    updates: np.ndarray, image_ids: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> Measurement:
    """Change of the tokens' direction by the attention of each block.

        U[l] = mean over images and tokens of  1 - cos(x, x + attention(x))

    x: [token, width], what block l takes in; the sum is what its MLP branch starts from, scaled attention included.
    The score by which He et al. 2024, arXiv:2406.15786, drop attention layers of language models, the smallest first.
    Caveat: it sees the direction of the tokens and nothing of what later blocks make of it, so the removal is to be
    tried; a massive activation that attention leaves alone brings it near 0 whatever happens in the other channels.

    Args:
        updates: [image, layer]; NaN for a block without attention.
        image_ids, bootstrap, seed: as for `head_importance`.

    Returns:
        A measurement over (layer,), from 0 to 2.
    """
    values = np.asarray(updates, dtype=np.float64)
    return per_image(attention_update, values, image_ids, bootstrap, seed, axes=("layer",), value_range=(0.0, 2.0))


def per_image(
    about: Callable[..., Measurement],
    values: np.ndarray,
    image_ids: Sequence[str],
    bootstrap: int,
    seed: int,
    *,
    axes: tuple[str, ...] = ("layer", "head"),
    value_range: tuple[float, float] | None = None,
    from_mean: FromMean | None = None,
) -> Measurement:
    """The measurement of [image, *axes], named and explained as the function `about`."""
    if values.ndim != 1 + len(axes) or len(values) != len(image_ids):
        raise ShapeError(f"values must be [image, {', '.join(axes)}] of {len(image_ids)} images, got {values.shape}.")
    n, mean = len(values), values.mean(0)
    std, ci = np.full_like(mean, np.nan), np.full((2, *mean.shape), np.nan)
    resampled = n > 1 and bootstrap > 0
    if from_mean is not None:
        mean = from_mean(mean, n)
        ci = np.clip(interval_of_function(from_mean, values, bootstrap, seed), 0, 1) if resampled else ci
    else:
        std = values.std(0, ddof=1) if n > 1 else std
        ci = interval_of_mean(values, bootstrap, seed) if resampled else ci
    return Measurement(
        metric=about.__name__,
        site="effective",
        stage="trunk",
        is_effective=True,
        axes=axes,
        value_range=value_range or (None, None),
        unit="" if value_range else "nats",
        mean=mean,
        std=std,
        ci=ci,
        n_images=n,
        n_excluded=0,
        settings={"interval": "bootstrap" if resampled else "none", "bootstrap": bootstrap, "bootstrap_seed": seed},
        per_image=values,
        image_ids=tuple(image_ids),
        from_mean=from_mean,
        explanation=inspect.getdoc(about) or "",
    )
