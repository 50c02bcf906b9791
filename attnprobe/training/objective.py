"""The training loss: cross-entropy of classes, and of patches where the model has a dense head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.training.config import TrainConfig
from attnprobe.training.mix import soft_targets


def classification_loss(
    outputs: Tensor | tuple, targets: Tensor | tuple[Tensor, Tensor], config: TrainConfig
) -> Tensor:
    """Loss of one batch, a number; 0, with gradients of 0, for a batch of no image.

    Args:
        outputs: class logits [image, class]; or, from a model with a dense head, (class logits, patch logits
            [image, patch, class], box), where patches in the box (row0, col0, row1, col1; ends exclusive) came from
            the batch in reverse order.
        targets: labels [image]; probabilities [image, class]; or, with label maps, both [image, class] and
            [image, patch, class].

    With a dense head the class target is mixed by the share of patches that stayed, and every patch has its own
    target or, without label maps, its image's: `cls_weight * CE(class) + dense_weight * CE(patches)` (TokenLabeling,
    arXiv:2104.10858).

    Raises:
        InputError: the model returns something else in training, or has no dense head for label maps.
    """
    patch_targets = None
    if isinstance(targets, tuple):
        targets, patch_targets = targets
    if len(targets) == 0:  # a mean over no image would be NaN
        parts = outputs[:2] if isinstance(outputs, tuple) else (outputs,)
        return torch.stack([part.float().sum() for part in parts]).sum()
    if isinstance(outputs, Tensor):
        if patch_targets is not None:
            raise InputError(f"{config.model} has no dense head; token_label_data needs one, as in refiner_s.")
        smoothing = config.smoothing if targets.ndim == 1 else 0.0
        return F.cross_entropy(outputs.float(), targets, label_smoothing=smoothing)
    if len(outputs) != 3:
        raise InputError(f"{config.model} returns {len(outputs)} outputs in training; expected logits, or 3 of them.")
    logits, patch_logits, (row0, col0, row1, col1) = outputs
    if targets.ndim == 1:
        targets = soft_targets(targets, logits.shape[-1], config.smoothing)
    n_patches = patch_logits.shape[1]
    stayed = 1 - (row1 - row0) * (col1 - col0) / n_patches
    classes = F.cross_entropy(logits.float(), stayed * targets + (1 - stayed) * targets.flip(0))
    if patch_targets is None:
        patch_targets = targets.repeat_interleave(n_patches, 0)
    patches = F.cross_entropy(patch_logits.float().flatten(0, 1), patch_targets.flatten(0, -2))
    return config.cls_weight * classes + config.dense_weight * patches
