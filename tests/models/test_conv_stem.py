"""The convolutional patch embedding."""

import pytest
import torch
import torch.nn.functional as F

from attnprobe.core.errors import ShapeError
from attnprobe.models.conv_stem import ConvStemEmbed


def test_equals_the_three_convolutions():
    torch.manual_seed(0)
    stem = ConvStemEmbed(img_size=16, patch_size=4, embed_dim=6).double().eval()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    x = F.conv2d(pixels, stem.conv1.weight, stride=2, padding=3)
    x = F.batch_norm(x, stem.bn1.running_mean, stem.bn1.running_var, stem.bn1.weight, stem.bn1.bias).relu()
    x = F.conv2d(x, stem.conv2.weight, padding=1)
    x = F.batch_norm(x, stem.bn2.running_mean, stem.bn2.running_var, stem.bn2.weight, stem.bn2.bias).relu()
    x = F.conv2d(x, stem.proj.weight, stem.proj.bias, stride=2)
    torch.testing.assert_close(stem(pixels), x.flatten(2).mT)
    assert stem(pixels).shape == (2, stem.num_patches, 6)


def test_other_sizes_are_refused_or_padded_as_timm_does():
    with pytest.raises(ShapeError, match="even patch size"):
        ConvStemEmbed(img_size=15, patch_size=5)
    with pytest.raises(ShapeError, match="takes images of"):
        ConvStemEmbed(img_size=16, patch_size=4, embed_dim=6)(torch.randn(1, 3, 20, 16))
    padding = ConvStemEmbed(img_size=16, patch_size=4, embed_dim=6, strict_img_size=False, dynamic_img_pad=True)
    assert padding(torch.randn(1, 3, 18, 16)).shape == (1, 5 * 4, 6)
