"""Validation loss and accuracy, each process taking its part of the images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource
from attnprobe.training.processes import Processes


@torch.no_grad()  # not inference mode: a tensor that the model keeps could never take part in training again
def evaluate(
    model: nn.Module,
    images: ImageSource,
    *,
    batch_size: int,
    device: torch.device,
    processes: Processes | None = None,
    precision: torch.dtype | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy (nats) and top-1 accuracy (in [0, 1]) of `model` on `images`.

    Args:
        precision: of autocast, that of training as a rule; None for none. The loss is of float32 in any case.

    Raises:
        InputError: there is no image.
    """
    model.eval()
    processes = processes or Processes(device)
    processes.same_buffers(model)
    exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    sums, seen = torch.zeros(2, device=device, dtype=exact), 0  # of losses and of right answers
    for batch in images.batches(batch_size, device=device, order=processes.share(range(len(images)))):
        with torch.autocast(device.type, precision, enabled=precision is not None):
            logits: Tensor = model(batch.pixels)
        logits = logits.float()
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        right = (logits.argmax(-1) == batch.labels).sum()
        sums += torch.stack((loss.to(exact), right.to(exact)))
        seen += len(batch.ids)
    loss, right, n = processes.total(torch.cat((sums, sums.new_tensor([seen])))).tolist()
    if n == 0:
        raise InputError(f"{images.name} has no image to validate on.")
    return loss / n, right / n
