"""Initial depthwise filters with which a convolutional mixer works before, or without, learning them.

The ConvMixer initialisations of the authors' code (arXiv:2404.01139): structure that a random map lacks is cheap to
give a filter. With k the side of the kernel, a filter's squares sum to 1/k for all but "random" (1/3) and "softmax":
    random     uniform in (-1/k, 1/k), PyTorch's default       box<b>   b places drawn without repeats, all equal
    softmax    random, and a softmax over the kernel on use    gau<v>   a Gaussian of variance v around a drawn place
    impulse    one place drawn: box1
"""

import re

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps
from attnprobe.models.initialisers.targets import impulse_targets


class SoftmaxTaps(nn.Module):
    """Filters [channel, 1, k, k] -> the same with positive taps that sum to 1."""

    def forward(self, filters: Tensor) -> Tensor:
        return filters.flatten(1).softmax(dim=-1).view_as(filters)

    def right_inverse(self, filters: Tensor) -> Tensor:
        """The stored value of assigned filters: themselves, before the softmax."""
        return filters


class Shared(nn.Module):
    """Filters [head, 1, k, k] -> [channel, 1, k, k]: consecutive channels use the same one."""

    def __init__(self, channels_each: int) -> None:
        super().__init__()
        self.channels_each = channels_each

    def forward(self, filters: Tensor) -> Tensor:
        return filters.repeat_interleave(self.channels_each, dim=0)

    def right_inverse(self, filters: Tensor) -> Tensor:
        return filters[:: self.channels_each]


def initialise_filters(model: nn.Module, init: str, *, num_heads: int | None = None, trainable: bool = True) -> None:
    """Give every depthwise convolution in `model` new filters, in place.

    Args:
        init: "random", "softmax", "impulse", "box<b>" or "gau<v>".
        num_heads: distinct filters per layer, each shared by consecutive channels; one per channel if None.
        trainable: whether the filters (not their biases) learn.

    Raises:
        InputError: unknown `init`, no depthwise convolution, more taps than the kernel has, or filters that an earlier
            call shared or softmaxed.
        ShapeError: the channels cannot be shared among `num_heads` filters, or a kernel is not square and odd.
    """
    for name, conv in depthwise(model).items():
        if parametrize.is_parametrized(conv, "weight"):
            raise InputError(f"the filters of {name} are shared or softmaxed already; build the model anew.")
        channels = conv.out_channels
        heads = num_heads or channels
        if channels % heads:
            raise ShapeError(f"{name} has {channels} channels, which {heads} filters cannot share equally.")
        filters = drawn_filters(init, heads, _kernel(name, conv))
        with torch.no_grad():
            conv.weight.copy_(filters.repeat_interleave(channels // heads, dim=0))
        if heads < channels:
            parametrize.register_parametrization(conv, "weight", Shared(channels // heads))
        if init == "softmax":
            parametrize.register_parametrization(conv, "weight", SoftmaxTaps())
        for stored in conv.parameters():
            if stored is not conv.bias:
                stored.requires_grad_(trainable)


def drawn_filters(init: str, heads: int, kernel: int) -> Tensor:
    """[head, 1, kernel, kernel], drawn from PyTorch's global CPU generator; see the head of this file.

    Raises:
        InputError: unknown `init`, or more taps than the kernel has.
    """
    shape, area = (heads, 1, kernel, kernel), kernel**2
    found = re.fullmatch(r"(random|softmax|impulse)|box(\d+)|gau(\d+\.?\d*)", init)
    if found is None:
        raise InputError(f"no filter initialisation {init!r}; there are random, softmax, impulse, box<b> and gau<v>.")
    word, box, variance = found.groups()
    if word in ("random", "softmax"):
        return torch.empty(shape, device="cpu").uniform_(-1 / kernel, 1 / kernel)
    if variance is not None:
        return _gaussians(heads, kernel, float(variance))
    taps = int(box or 1)
    if not 1 <= taps <= area:
        raise InputError(f"{init!r} asks for {taps} taps of a {kernel} x {kernel} kernel, which has 1 to {area}.")
    places = torch.rand(heads, area, device="cpu").argsort(dim=-1)[:, :taps]
    filters = torch.zeros(heads, area, device="cpu").scatter_(1, places, (taps * kernel) ** -0.5)
    return filters.view(shape)


def _gaussians(heads: int, kernel: int, variance: float) -> Tensor:
    """exp(-distance^2 / (2 variance)) around a drawn place, times one factor: squares sum to 1/kernel on average."""
    if variance == 0:
        raise InputError("a Gaussian of variance 0 is an impulse; ask for 'impulse'.")
    place = torch.arange(kernel, dtype=torch.float32, device="cpu")
    centres = torch.randint(0, kernel, (heads, 2), device="cpu")
    row, col = ((place - centres[:, axis, None]).square() for axis in (0, 1))
    filters = torch.exp(-(row[:, :, None] + col[:, None, :]) / (2 * variance))[:, None]
    return filters * (kernel * filters.square().sum((1, 2, 3)).mean()) ** -0.5


def filter_maps(model: nn.Module, rows: int, cols: int, *, filters: int = 16) -> AttentionMaps:
    """Depthwise filters as matrices that mix the places of a rows x cols image, zero padded.

    Args:
        filters: how many of each layer, from the first; fewer if layers have fewer.

    Returns:
        maps of one image called "filters", [1, layer, filter, place, place]; a row is the place written to. They need
        not sum to 1 nor be positive.

    Raises:
        InputError: no depthwise convolution.
        ShapeError: kernels differ in size, are even, or have a stride or dilation.
    """
    convs = depthwise(model)
    kernels = {_kernel(name, conv) for name, conv in convs.items()}
    if len(kernels) > 1:
        raise ShapeError(f"maps of one stage need kernels of one size, got sides {sorted(kernels)}.")
    kernel = kernels.pop()
    count = min(filters, *(conv.out_channels for conv in convs.values()))
    taps = torch.stack([conv.weight.detach()[:count].flatten(1).float().cpu() for conv in convs.values()])
    values = torch.einsum("lft,tqk->lfqk", taps, impulse_targets(rows, cols, kernel))
    grid = TokenGrid(rows, cols, prefix=(), patch=(1, 1))
    return AttentionMaps(values[None], ("filters",), grid, stochastic=False, layers=tuple(convs))


def depthwise(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The depthwise convolutions of a model by name; raises InputError if there are none."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1
    }
    if not found:
        raise InputError(f"{type(model).__name__} has no depthwise convolution.")
    return found


def _kernel(name: str, conv: nn.Conv2d) -> int:
    """The side of a kernel that moves no place."""
    rows, cols = conv.kernel_size
    keeps = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding in ("same", (rows // 2, cols // 2))
    if rows != cols or rows % 2 == 0 or not keeps:
        raise ShapeError(
            f"{name}: filters as maps need a square odd kernel, stride and dilation 1 and equal padding; it has "
            f"kernel {rows} x {cols}, stride {conv.stride}, dilation {conv.dilation}, padding {conv.padding!r}."
        )
    return rows
