"""Batch norm over the images of all processes on CPUs, where PyTorch's `SyncBatchNorm` does not run."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance in training are those of all processes' images together."""

    def forward(self, x: Tensor) -> Tensor:
        """[image, channel, row, col] -> the same."""
        if not self.training:
            return super().forward(x)
        n = x.new_tensor(float(x.numel() // x.shape[1]))
        dist.all_reduce(n)
        mean = all_reduce(x.sum((0, 2, 3))) / n
        centred = x - mean.view(1, -1, 1, 1)
        var = all_reduce(centred.square().sum((0, 2, 3))) / n
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * n / (n - 1), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        y = centred * torch.rsqrt(var + self.eps).view(1, -1, 1, 1)
        return y if self.weight is None else y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def share_batch_norm(model: nn.Module) -> nn.Module:
    """Make every batch norm of `model` work on all processes' images."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
    return model
