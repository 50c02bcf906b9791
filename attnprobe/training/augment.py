"""Random crops, flips and erasing for a whole batch on its device, different for every image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.training.config import TrainConfig


def augment(pixels: Tensor, config: TrainConfig) -> Tensor:
    """[image, 3, row, col] -> the same shape; randomness from PyTorch's global generator."""
    if config.scale != (1.0, 1.0) or config.ratio != (1.0, 1.0) or config.hflip:
        pixels = _crop_and_flip(pixels, config)
    if config.reprob:
        pixels = _erase(pixels, config.reprob)
    return pixels


def _uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    return low + (high - low) * torch.rand(n, device=device)


def _crop_and_flip(pixels: Tensor, config: TrainConfig) -> Tensor:
    """Random resized crop as one affine map per image; the crop always lies inside the picture."""
    n, device = len(pixels), pixels.device
    area = _uniform(n, *config.scale, device)
    log_ratio = torch.log(torch.tensor(config.ratio))
    ratio = _uniform(n, log_ratio[0].item(), log_ratio[1].item(), device).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    shift_x = (1 - width) * _uniform(n, -1, 1, device)
    shift_y = (1 - height) * _uniform(n, -1, 1, device)
    mirror = 1 - 2 * (torch.rand(n, device=device) < config.hflip).float()
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, shift_x
    theta[:, 1, 1], theta[:, 1, 2] = height, shift_y
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _erase(pixels: Tensor, probability: float) -> Tensor:
    """Fill one random box of 2-20 % of the area of some images with noise of the input's scale."""
    n, _, rows, cols = pixels.shape
    device = pixels.device
    side = _uniform(n, 0.02, 0.2, device).sqrt()
    height, width = (side * rows).ceil(), (side * cols).ceil()
    top = (torch.rand(n, device=device) * (rows - height + 1)).floor()
    left = (torch.rand(n, device=device) * (cols - width + 1)).floor()
    row = torch.arange(rows, device=device).view(1, -1, 1)
    col = torch.arange(cols, device=device).view(1, 1, -1)
    inside = (row >= top.view(-1, 1, 1)) & (row < (top + height).view(-1, 1, 1))
    inside = inside & (col >= left.view(-1, 1, 1)) & (col < (left + width).view(-1, 1, 1))
    chosen = (torch.rand(n, device=device) < probability).view(-1, 1, 1)
    return torch.where((inside & chosen).unsqueeze(1), torch.randn_like(pixels), pixels)
