"""Hilbert-Schmidt independence criterion (HSIC) with linear kernels, the numerator of centred kernel alignment (CKA).

As an average over minibatches before the division it has no bias from their size: Nguyen et al. 2021, arXiv:2010.15327.
Here one image is one minibatch and its tokens are the samples.
"""

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.metrics.engine.linear_algebra import ROUNDING, half_products, row_products

ESTIMATORS = ("unbiased", "biased")


def gram(features: Tensor) -> tuple[Tensor, Tensor]:
    """[..., sample, feature] -> inner products of centred samples, as `half_products`: [..., sample, sample] below the
    diagonal, and the diagonal [..., sample]; zero where features are constant up to rounding."""
    below, diagonal = half_products(features - features.mean(-2, keepdim=True))
    none = constant(diagonal, features.square().sum((-2, -1)))
    # filled without asking whether any is, for which a GPU would have to be waited for
    return below.masked_fill(none[..., None, None], 0), diagonal.masked_fill(none[..., None], 0)


def constant(diagonal: Tensor, squared_length: Tensor) -> Tensor:
    """[...]: True where features are the same for all samples, up to rounding.

    Args:
        diagonal: [..., sample], of the kernel of centred samples.
        squared_length: [...], sum over the squares of the features before they were centred.
    """
    noise = ROUNDING * torch.finfo(diagonal.dtype).eps
    return diagonal.sum(-1).sqrt() <= squared_length.sqrt() * noise


def hsic(below: Tensor, diagonal: Tensor, estimator: str) -> Tensor:
    """HSIC of every pair of kernels, [..., kernel, kernel], up to a factor that is the same for all.

    Args:
        below: [..., kernel, sample, sample], kernels of centred samples below their diagonal.
        diagonal, estimator: as for `hsic_of_products`.
    """
    flat = below.flatten(-2)
    return hsic_of_products(2 * row_products(flat), diagonal, estimator)


def hsic_of_products(apart: Tensor, diagonal: Tensor, estimator: str) -> Tensor:
    """HSIC of every pair of kernels, up to a factor that is the same for all.

    estimator="unbiased": the U-statistic of Song et al. 2012. For kernels of n centred samples, whose rows sum to 0,
    its three terms become, with K' the kernel without its diagonal k:

        <K', L'> - 2 <k, l> / (n - 2) + sum(k) sum(l) / ((n - 1) (n - 2))

    "biased": <K, L>, the diagonal included.

    Args:
        apart: [..., kernel, kernel], <K', L'> of kernels of centred samples.
        diagonal: [..., kernel, sample], k.
        estimator: "unbiased" or "biased".

    Returns:
        [..., kernel, kernel].

    Raises:
        InputError: an unknown estimator, or fewer than the 4 samples that "unbiased" needs.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    n, alone = diagonal.shape[-1], diagonal @ diagonal.mT
    if estimator == "biased":
        return apart + alone
    if n < 4:
        raise InputError(f"{n} tokens are too few for the unbiased HSIC, which needs 4: set estimator='biased'.")
    trace = diagonal.sum(-1, keepdim=True)
    return apart - 2 / (n - 2) * alone + trace @ trace.mT / ((n - 1) * (n - 2))


def normalised(mean: np.ndarray, n_images: float | np.ndarray = 0) -> np.ndarray:
    """Mean HSIC [..., kernel, kernel] -> CKA: divided by the root of the two kernels' own; 0 where one is zero."""
    own = np.diagonal(mean, axis1=-2, axis2=-1)
    size = np.sqrt(own[..., :, None]) * np.sqrt(own[..., None, :])
    return np.where(size == 0, 0.0, mean / np.where(size == 0, 1.0, size))
