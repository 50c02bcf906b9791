"""Which modules of a model compute attention, and how is each one's matrix read?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attnprobe.core.errors import CaptureError
from attnprobe.core.maps import TokenGrid
from attnprobe.core.tap import Tap

Route = Literal["taps", "unfused"]
"""`taps`: our variants mark their sites. `unfused`: a timm layer is switched to its explicit softmax while we look."""

Keep = Callable[[str, Tensor], None]

Duck = Any
"""A module of somebody else's model: known by the attributes it has, not by its class."""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention module of a model.

    Attributes:
        name: dotted path of the module, such as "blocks.3.attn".
        module: the attention module; `block` is the module around it whose output is the layer's tokens.
        route: how its matrix is read.
    """

    name: str
    module: Duck
    block: nn.Module
    route: Route

    def listen(self, keep: Keep) -> list[torch.utils.hooks.RemovableHandle]:
        """Call `keep(site, matrix)` at "weights", then at "effective", on every forward pass."""
        if self.route == "taps":
            return [tap.register_forward_hook(_tell(keep, site)) for site, tap in self.module.taps.items()]

        def dropout_hook(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            keep("weights", args[0])
            keep("effective", out)

        return [self.module.attn_drop.register_forward_hook(dropout_hook)]


def _tell(keep: Keep, site: str) -> Callable[..., None]:
    return lambda _tap, _args, matrix: keep(site, matrix)


def unwrap(model: Duck) -> Duck:
    """The module inside `torch.compile` and DataParallel wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def find_layers(model: Duck) -> list[AttentionLayer]:
    """Every attention layer that can be read, in order.

    Raises:
        CaptureError: there is none, or one of them cannot be read.
    """
    modules: dict[str, Duck] = dict(model.named_modules())
    layers = []
    for name, module in modules.items():
        if isinstance(getattr(module, "taps", None), nn.ModuleDict) and any(
            isinstance(tap, Tap) for tap in module.taps.values()
        ):
            route: Route = "taps"
        elif hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module):
            route = "unfused"
        else:
            continue
        layers.append(AttentionLayer(name, module, modules[name.rpartition(".")[0]], route))
    if not layers:
        raise CaptureError(
            f"no attention layer found in {type(model).__name__}. Capture reads attnprobe's variants and timm's "
            "vision transformers; is this model one?"
        )
    return layers


@contextmanager
def unfused(layers: list[AttentionLayer]) -> Iterator[None]:
    """Run these layers with an explicit softmax; their switches are put back, also after an exception."""
    switched = [layer.module for layer in layers if getattr(layer.module, "fused_attn", False)]
    for module in switched:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in switched:
            module.fused_attn = True


def patch_size(model: Duck) -> tuple[int, int]:
    """Rows and columns of one patch in pixels.

    Raises:
        CaptureError: the model does not say how it cuts an image into patches.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is None or not hasattr(model, "num_prefix_tokens"):
        raise CaptureError(
            f"{type(model).__name__} does not say how it cuts images into patches (patch_embed.patch_size, "
            "num_prefix_tokens); capture covers timm-style vision transformers."
        )
    return int(patch[0]), int(patch[1])


def token_grid(model: Duck, size: tuple[int, int]) -> TokenGrid:
    """Where the tokens of an image of `size` pixels sit; raises as `patch_size`."""
    patch = patch_size(model)
    rows, cols = (-(-side // p) for side, p in zip(size, patch, strict=True))  # rounded up: timm may pad
    n_prefix = int(model.num_prefix_tokens)
    n_class = int(bool(getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)))
    prefix = ("cls",) * n_class + tuple(f"reg{i}" for i in range(n_prefix - n_class))
    return TokenGrid(rows, cols, prefix, patch)
