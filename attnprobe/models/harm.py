"""The change of a model's output when a block uses the previous block's attention map."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from attnprobe.core.devices import in_float64
from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Change
from attnprobe.models.ablate import Ablatable


@torch.inference_mode()
def harm_of_previous_map(model: nn.Module, pixels: Iterable[Tensor]) -> np.ndarray:
    """Kullback-Leibler divergence of the classes, block by block, when a block uses the previous block's map.

        H[l] = mean over images of  sum_c p_c ln(p_c / p'_c),      p of the model, p' with A[l] := A[l - 1]

    The functional meaning of repetition: 0 where the two maps are interchangeable. Ours.

    Args:
        model: built like timm's vision transformer, with timm's plain attention or this package's variants.
        pixels: batches [image, channel, row, col].

    Returns:
        [block], nats, float64; NaN for the first block and where numbers of heads differ.

    Raises:
        InputError: another kind of model.
    """
    total, n_images = np.zeros(0), 0
    ablatable = None
    for batch in pixels:
        ablatable = Ablatable(model, batch[:2]) if ablatable is None else ablatable
        if not ablatable.tapped:
            raise InputError(f"maps of {type(model).__name__} cannot be exchanged; only those of timm's plain ViT can.")
        whole = in_float64(ablatable.module(batch)).log_softmax(-1)
        harm = [_divergence(ablatable, block, batch, whole) for block in range(1, len(ablatable.heads) + 1)]
        total = np.array(harm) + (total if len(total) else 0)
        n_images += len(batch)
    return total / max(n_images, 1)


def _divergence(ablatable: Ablatable, block: int, pixels: Tensor, whole: Tensor) -> float:
    """Sum over images; NaN where the block cannot use the previous map."""
    change = Change("map", block)
    if ablatable.refusal(change):
        return float("nan")
    with ablatable.without([change]):
        other = in_float64(ablatable.module(pixels)).log_softmax(-1)
    return float((whole.exp() * (whole - other)).sum())
