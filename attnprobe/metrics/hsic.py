"""How much do two kernels over the same samples agree?

The Hilbert-Schmidt independence criterion with linear kernels, the numerator of centred kernel alignment (CKA). As an
average over minibatches before the division it has no bias from their size: Nguyen et al. 2021, arXiv:2010.15327. Here
one image is one minibatch and its tokens are the samples.
"""

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.metrics.token_vectors import ROUNDING

ESTIMATORS = ("unbiased", "biased")


def gram(features: Tensor) -> Tensor:
    """Inner products of samples whose mean is taken off; zero where features are constant up to rounding.

    Args:
        features: [..., sample, feature].

    Returns:
        [..., sample, sample].
    """
    centred = features - features.mean(-2, keepdim=True)
    size, left = (x.square().sum((-2, -1), keepdim=True) for x in (features, centred))
    varies = ~(left <= size * (ROUNDING * torch.finfo(features.dtype).eps) ** 2)  # a NaN varies
    products = centred @ centred.mT
    return torch.where(varies, products, 0.0)


def hsic(grams: Tensor, estimator: str) -> Tensor:
    """HSIC of every pair of kernels, up to a factor that the same for all.

    estimator="unbiased": the U-statistic of Song et al. 2012, as a product of U-centred kernels (Szekely & Rizzo 2014):
    diagonal removed, rows and columns corrected for it. "biased": the product of doubly centred kernels.

    Args:
        grams: [..., kernel, sample, sample], of centred samples.
        estimator: "unbiased" or "biased".

    Returns:
        [..., kernel, kernel].

    Raises:
        InputError: an unknown estimator, or fewer than the 4 samples that "unbiased" needs.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    n = grams.shape[-1]
    if estimator == "unbiased":
        if n < 4:
            raise InputError(f"{n} tokens are too few for the unbiased HSIC, which needs 4: set estimator='biased'.")
        off = grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
        rows = off.sum(-1, keepdim=True) / (n - 2)
        grams = off - rows - rows.mT + rows.sum(-2, keepdim=True) / (n - 1)
        grams = grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
    flat = grams.flatten(-2)
    return flat @ flat.mT


def normalised(mean: np.ndarray) -> np.ndarray:
    """Mean HSIC [..., kernel, kernel] -> CKA: divided by the root of the two kernels' own; 0 where one is zero."""
    own = np.diagonal(mean, axis1=-2, axis2=-1)
    size = np.sqrt(own[..., :, None]) * np.sqrt(own[..., None, :])
    return np.where(size == 0, 0.0, mean / np.where(size == 0, 1.0, size))
