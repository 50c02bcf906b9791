"""Patch embedding by a small convolutional network instead of one strided convolution."""

import torch.nn.functional as F
from timm.layers import PatchEmbed, to_2tuple
from timm.layers.format import nchw_to
from torch import Tensor, nn

from attnprobe.core.errors import ShapeError


class ConvStemEmbed(PatchEmbed):
    """DeepViT's patch embedding: 7x7 stride 2, 3x3 convolutions, then a strided convolution for the rest of the patch.

    All but the last have no bias and are followed by batch norm and ReLU; the last has kernel = stride = patch / 2 and
    a bias. Drop-in for timm's `PatchEmbed`; parameters are called conv1, bn1, conv2 ... proj, as the authors call them.

    Raises:
        ShapeError: an odd patch size, which the stride of 2 cannot make, or images of another size.

    Source: the public code of Zhou et al. 2021, arXiv:2103.11886.
    """

    channels = (64, 64)

    def __init__(self, *args, in_chans: int = 3, embed_dim: int = 768, bias: bool = True, **kwargs) -> None:
        super().__init__(*args, in_chans=in_chans, embed_dim=embed_dim, bias=bias, **kwargs)
        patch = (int(self.patch_size[0]), int(self.patch_size[1]))
        if any(side % 2 for side in patch):
            raise ShapeError(f"a convolutional stem needs an even patch size, got {patch}.")
        half = (patch[0] // 2, patch[1] // 2)
        dd = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
        before = in_chans
        for number, after in enumerate(self.channels, 1):
            kernel, stride = (7, 2) if number == 1 else (3, 1)
            conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False, **dd)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after, **dd))
            before = after
        self.proj = nn.Conv2d(before, embed_dim, half, stride=half, bias=bias, **dd)

    def forward(self, pixels: Tensor) -> Tensor:
        """[image, channel, row, col] -> [image, token, width], or as `output_fmt` says."""
        size = tuple(pixels.shape[-2:])
        if self.strict_img_size and self.img_size is not None and size != to_2tuple(self.img_size):
            raise ShapeError(f"this model takes images of {to_2tuple(self.img_size)} pixels, got {size}; resize them.")
        pad_rows, pad_cols = (-side % int(p) for side, p in zip(size, self.patch_size, strict=True))
        if pad_rows or pad_cols:
            if not self.dynamic_img_pad:
                raise ShapeError(f"image size {size} is not a multiple of the patch size {self.patch_size}.")
            pixels = F.pad(pixels, (0, pad_cols, 0, pad_rows))
        x = pixels
        for number in range(1, len(self.channels) + 1):
            x = F.relu(self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x)))
        x = self.proj(x)
        x = x.flatten(2).transpose(1, 2) if self.flatten else nchw_to(x, self.output_fmt)
        return self.norm(x)


class RefinerStemEmbed(ConvStemEmbed):
    """Refiner's patch embedding: the same with three convolutions of 32, 64 and 128 channels (arXiv:2106.03714)."""

    channels = (32, 64, 128)
