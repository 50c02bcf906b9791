"""Importance of heads for the model's loss, by gradients and by ablation."""

import inspect
from collections.abc import Sequence

import numpy as np

from attnprobe.core.errors import ShapeError
from attnprobe.core.measurement import Measurement
from attnprobe.stats.bootstrap import interval_of_function, interval_of_mean


def of_unit_length(mean: np.ndarray, n_images: int = 0) -> np.ndarray:
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
    values = np.abs(_of_heads(gradients, image_ids))
    ci = np.full((2, *values.shape[1:]), np.nan)
    if len(values) > 1 and bootstrap:
        ci = np.clip(interval_of_function(of_unit_length, values, bootstrap, seed), 0, 1)
    return Measurement(
        metric="head_importance",
        mean=of_unit_length(values.mean(0), len(values)),
        std=np.full(values.shape[1:], np.nan),
        ci=ci,
        value_range=(0.0, 1.0),
        unit="",
        per_image=values,
        from_mean=of_unit_length,
        explanation=inspect.getdoc(head_importance) or "",
        **_about(values, image_ids, bootstrap, seed),
    )


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
    values = _of_heads(gained, image_ids)
    several = len(values) > 1
    empty = np.full((2, *values.shape[1:]), np.nan)
    return Measurement(
        metric="head_ablation",
        mean=values.mean(0),
        std=values.std(0, ddof=1) if several else empty[0],
        ci=interval_of_mean(values, bootstrap, seed) if several and bootstrap else empty,
        value_range=(None, None),
        unit="nats",
        per_image=values,
        explanation=inspect.getdoc(head_ablation) or "",
        **_about(values, image_ids, bootstrap, seed),
    )


def _of_heads(values: np.ndarray, image_ids: Sequence[str]) -> np.ndarray:
    """Raises ShapeError unless they are [image, layer, head] of these images."""
    if values.ndim != 3 or len(values) != len(image_ids):
        raise ShapeError(
            f"values of heads must be [image, layer, head] of {len(image_ids)} images, got {values.shape}."
        )
    return np.asarray(values, dtype=np.float64)


def _about(values: np.ndarray, image_ids: Sequence[str], bootstrap: int, seed: int) -> dict:
    how = "bootstrap" if len(values) > 1 and bootstrap else "none"
    return {
        "site": "effective",
        "stage": "trunk",
        "is_effective": True,
        "axes": ("layer", "head"),
        "n_images": len(values),
        "n_excluded": 0,
        "settings": {"interval": how, "bootstrap": bootstrap, "bootstrap_seed": seed},
        "image_ids": tuple(image_ids),
    }
