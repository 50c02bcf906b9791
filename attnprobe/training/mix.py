"""Mixup and cutmix: pairs of images, and their labels, are combined.

Zhang et al. 2017, arXiv:1710.09412, and Yun et al. 2019, arXiv:1905.04899, with timm's options and distributions.
timm's own class needs even batches, draws from NumPy's generator and loops over images in two of its modes; this one
takes any batch, draws from PyTorch's global CPU generator, and does every mode in one pass on the device.
"""

import torch
from torch import Tensor

from attnprobe.core.devices import on_device
from attnprobe.core.errors import InputError
from attnprobe.training.augment import inside
from attnprobe.training.config import AugmentConfig


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Integer labels [image] as probabilities [image, class]; `smoothing` of the mass is spread over all classes."""
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_(1, labels.view(-1, 1), 1 - smoothing + smoothing / num_classes)


class Mix:
    """Mixup or cutmix of every image of a batch with the one at the same place from the other end.

    The middle image of an odd batch is its own partner. Mixing weights have the Beta distribution of `mixup` or
    `cutmix`; in mode "batch" the weight, the choice between both and the box are shared by all images, in "pair" by
    both partners, in "elem" by none.

    Raises:
        InputError: neither is switched on.
    """

    def __init__(self, config: AugmentConfig, num_classes: int) -> None:
        if not config.mixes:
            raise InputError("nothing to mix: set mixup, cutmix or cutmix_minmax; for hard labels, `soft_targets`.")
        self.config, self.num_classes = config, num_classes

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [image, 3, row, col] and labels [image] on one device -> mixed pixels and targets [image, class]."""
        drawn = (each.to(torch.float32) for each in self.draw(*pixels[:, 0].shape))
        kept, box, share = on_device(pixels.device, *drawn)
        others = pixels.flip(0)
        mixed = torch.lerp(others, pixels, kept.view(-1, 1, 1, 1).to(pixels.dtype))
        mixed = torch.where(inside(box, *pixels.shape[-2:]), others, mixed)
        targets = soft_targets(labels, self.num_classes, self.config.smoothing)
        return mixed, torch.lerp(targets.flip(0), targets, share.view(-1, 1))

    def draw(self, n: int, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random choices for `n` images: their weight [n], the box [n, 4] of their partner, their label's weight [n].

        Boxes are top, bottom, left, right; everything is on the CPU.
        """
        config = self.config
        each = torch.arange(n)
        whose = {"batch": each * 0, "pair": torch.minimum(each, each.flip(0)), "elem": each}[config.mixup_mode]
        draws = int(whose.max()) + 1
        cut_alpha = 1.0 if config.cutmix_minmax else config.cutmix
        cut = torch.full((draws,), bool(cut_alpha))
        if config.mixup and cut_alpha:
            cut = torch.rand(draws) < config.mixup_switch_prob
        share = torch.where(cut, _beta(cut_alpha, draws), _beta(config.mixup, draws))
        share = torch.where(torch.rand(draws) < config.mixup_prob, share, 1.0)
        cut = cut & (share < 1)
        box = self._boxes(share, rows, cols) * cut.unsqueeze(1)
        replaced = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (rows * cols)
        kept, share = torch.where(cut, 1.0, share), torch.where(cut, 1 - replaced, share)
        return kept[whose], box[whose], share[whose]

    def _boxes(self, share: Tensor, rows: int, cols: int) -> Tensor:
        """Boxes of side sqrt(1 - share) about a uniform centre, cut at the edge; or, with `cutmix_minmax`, inside."""
        if self.config.cutmix_minmax:
            low, high = self.config.cutmix_minmax
            height, width = (_whole(share, int(side * low), int(side * high)) for side in (rows, cols))
            top, left = _whole(share, 0, rows - height + 1), _whole(share, 0, cols - width + 1)
            return torch.stack((top, top + height, left, left + width), 1)
        edges = []
        for side in (rows, cols):
            length, centre = (side * (1 - share).sqrt()).floor(), _whole(share, 0, side)
            start, stop = centre - (length / 2).floor(), centre + ((length + 1) / 2).floor()
            edges += [start.clamp(0, side), stop.clamp(0, side)]
        return torch.stack(edges, 1)


def _beta(alpha: float, n: int) -> Tensor:
    """Beta(alpha, alpha), or ones if alpha is 0."""
    ones = torch.ones(n, dtype=torch.float64)
    return torch.distributions.Beta(alpha * ones, alpha * ones, validate_args=False).sample() if alpha else ones


def _whole(like: Tensor, low: int, high: Tensor | int) -> Tensor:
    """Uniform whole numbers from `low` up to, not including, `high`."""
    return low + (torch.rand_like(like) * (high - low)).floor()
