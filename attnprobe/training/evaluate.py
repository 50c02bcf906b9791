"""Loss and accuracy on labelled images, each process taking its part of them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.devices import with_float64
from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource
from attnprobe.training.processes import Processes

K = 5
"""The label counts as among the top if it has one of the `K` largest logits, as in ImageNet's top-5."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Loss and accuracy of a model on labelled images.

    Attributes:
        loss: mean cross-entropy, nats.
        counts: [class, 3], int: images of the class, those classified correctly, those whose label is among the `k`
            largest logits; one row for all images where the source does not name its classes.
        k: `K`, or the number of logits if that is smaller.
    """

    loss: float
    counts: Tensor
    k: int

    @property
    def top1(self) -> float:
        """Share of the images that are classified correctly."""
        n, right, _ = self.counts.sum(0).tolist()
        return right / n


@torch.no_grad()  # not inference mode: a tensor that the model keeps could never take part in training again
def evaluate(
    model: nn.Module,
    images: ImageSource,
    *,
    batch_size: int,
    device: torch.device,
    processes: Processes | None = None,
    amp: torch.dtype | None = None,
    advance: Any = None,
) -> Scores:
    """Cross-entropy and accuracy of a model that returns logits [image, class]; images without a label do not count.

    Args:
        amp: type of autocast; None for none. The loss is computed in float32.
        advance: called with the number of images of each batch of this process.

    Raises:
        InputError: there is no labelled image.
    """
    model.eval()
    processes = processes or Processes(device)
    processes.same_buffers(model)
    exact = torch.float64 if with_float64(device) == device else torch.float32
    counts = torch.zeros(max(len(images.class_names), 1), 3, device=device, dtype=torch.int64)
    loss, k = torch.zeros((), device=device, dtype=exact), K
    for batch in images.batches(batch_size, device=device, order=processes.share(range(len(images)))):
        with torch.autocast(device.type, amp, enabled=amp is not None):
            logits: Tensor = model(batch.pixels)
        known = batch.labels >= 0
        logits, labels = logits.float()[known], batch.labels[known]
        loss += F.cross_entropy(logits, labels, reduction="sum").to(exact)
        k = min(K, logits.shape[-1])
        among = (logits.topk(k).indices == labels[:, None]).any(-1)
        outcomes = torch.stack((torch.ones_like(labels), logits.argmax(-1) == labels, among), 1)
        counts.index_add_(0, labels if len(counts) > 1 else torch.zeros_like(labels), outcomes.to(counts))
        if advance is not None:
            advance(len(batch.ids))
    counts, loss = processes.total(counts), processes.total(loss)
    n = int(counts[:, 0].sum())
    if n == 0:
        raise InputError(f"{images.name} has no labelled image to evaluate on.")
    return Scores(loss.item() / n, counts.cpu(), k)
