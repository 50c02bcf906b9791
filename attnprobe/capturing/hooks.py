"""The attention layers whose matrices hooks can read, and how each is read."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from attnprobe.capturing.call_stack import is_attention, modules_by_name
from attnprobe.core.errors import CaptureError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.tap import Tap

Route = Literal["taps", "unfused"]
"""`taps`: our variants mark their sites. `unfused`: a layer of one of timm's plain vision transformers is switched to
its explicit softmax during a recorded pass. All others are traced: see `tracing`."""

PLAIN = (VisionTransformer, Eva, Beit)
"""timm's models whose blocks all have maps of one shape, the softmax of which goes through a module, `attn_drop`."""

Keep = Callable[[str, Tensor], None]

Duck = Any
"""A module of any model, recognised by its attributes and not by its class."""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """One attention module of a model.

    Attributes:
        name: dotted path of the module, such as "blocks.3.attn".
        module: the attention module; `block` is the module around it whose output is the layer's tokens.
        route: by which hook its matrix is read.
    """

    name: str
    module: Duck
    block: nn.Module
    route: Route

    def listen(self, keep: Keep) -> list[torch.utils.hooks.RemovableHandle]:
        """Call `keep(site, matrix)` at "weights", then at "effective", on every forward pass."""
        if self.route == "taps":
            keeping = {site: lambda _tap, _args, matrix, site=site: keep(site, matrix) for site in self.module.taps}
            return [tap.register_forward_hook(keeping[site]) for site, tap in self.module.taps.items()]

        def dropout_hook(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            keep("weights", args[0])
            keep("effective", out)

        return [self.module.attn_drop.register_forward_hook(dropout_hook)]


def unwrap(model: Duck) -> Duck:
    """The module inside `torch.compile` and DataParallel wrappers.

    Raises:
        CaptureError: it is no module, or scripted, so that its layers cannot be followed, or split between processes
            by heads.
    """
    if not isinstance(model, nn.Module):
        instead = "; of an exported program pass .module()" if hasattr(model, "module") else ""
        if isinstance(model, str | Path):
            instead = f" {str(model)!r}; ap.load_model(...) opens names and files"
        raise CaptureError(f"a model is a torch.nn.Module, got {type(model).__name__}{instead}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__} is compiled by TorchScript, and its layers cannot be followed; capture the model "
            "it was made from."
        )
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            _require_every_head(model)
            return model


def _require_every_head(model: nn.Module) -> None:
    """Refuse a tensor-parallel model: a process would give the maps of its own heads for those of all.

    FSDP splits parameters, too, but has each layer whole while it runs.
    """
    distributed = sys.modules.get("torch.distributed.tensor")  # not imported: then there are no such tensors
    if distributed is None:
        return
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    gathered = {id(p) for module in model.modules() if isinstance(module, fsdp) for p in module.parameters()}
    parameter: Any
    for name, parameter in model.named_parameters():
        if isinstance(parameter, distributed.DTensor):
            sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
            splits = sum(placement.is_shard() and n > 1 for placement, n in sizes)
            if splits > (id(parameter) in gathered):
                raise CaptureError(
                    f"{type(model).__name__} is tensor parallel ({name} is split between processes), so each process "
                    "has only some of the heads; load the model whole, or let FSDP (fully_shard) split it."
                )


def find_layers(model: Duck) -> list[AttentionLayer]:
    """Every attention layer that shows its map to a hook, in order.

    Raises:
        CaptureError: there is none.
    """
    layers = known_layers(model)
    if not layers:
        raise CaptureError(
            f"no attention layer in {type(model).__name__} shows its map to a hook; `record` finds those of any model "
            "while it runs."
        )
    return layers


def known_layers(model: Duck) -> list[AttentionLayer]:
    """As `find_layers`; empty for a model that has to be traced, or does not state how it cuts images into patches."""
    if not (hasattr(getattr(model, "patch_embed", None), "patch_size") and hasattr(model, "num_prefix_tokens")):
        return []
    modules: dict[str, Duck] = modules_by_name(model)
    plain = isinstance(model, PLAIN)
    layers = []
    for name, module in modules.items():
        if isinstance(getattr(module, "taps", None), nn.ModuleDict) and any(
            isinstance(tap, Tap) for tap in module.taps.values()
        ):
            route: Route = "taps"
        elif plain and re.fullmatch(r"blocks\.\d+\.attn", name) and _shows_softmax(module):
            route = "unfused"
        else:
            continue
        layers.append(AttentionLayer(name, module, modules[name.rpartition(".")[0]], route))
    return layers


def _shows_softmax(module: Duck) -> bool:
    shows = hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
    return shows and not is_differential(module)


def is_differential(module: Duck) -> bool:
    """True of timm's differential attention."""
    return hasattr(module, "fused_attn") and hasattr(module, "lambda_init")


def has_other_attention(model: nn.Module, layers: list[AttentionLayer]) -> bool:
    """True if there may be attention besides these layers, so that the model has to be traced."""
    known = tuple(f"{layer.name}." for layer in layers)
    return not layers or any(
        not f"{name}.".startswith(known)
        and (isinstance(module, nn.MultiheadAttention) or hasattr(module, "fused_attn") or is_attention(module))
        for name, module in modules_by_name(model).items()
    )


def block_names(layer: str) -> list[str]:
    """Modules that may be the block around a layer, best first: what is numbered in a list, then the parent."""
    parts = layer.partition("#")[0].split(".")
    numbered = [i for i, part in enumerate(parts[:-1]) if re.search(r"\d$", part)]
    return [".".join(parts[: i + 1]) for i in reversed(numbered)] + [".".join(parts[:-1])]


@contextmanager
def unfused(modules: Iterable[Duck], layers: Sequence[AttentionLayer]) -> Iterator[None]:
    """Run these layers, and those of `modules` that are differential attention, with an explicit softmax.

    Differential attention, (A1 - lambda A2) V (Ye et al. 2024, arXiv:2410.05258), has its map in the explicit code
    alone: fused, it subtracts A2 V. Switches are put back, also after an exception.
    """
    wanted: list[Duck] = [layer.module for layer in layers] + [m for m in modules if is_differential(m)]
    switched = [module for module in wanted if getattr(module, "fused_attn", False)]
    for module in switched:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in switched:
            module.fused_attn = True


def token_grid(model: Duck, size: tuple[int, int]) -> TokenGrid:
    """Grid of the tokens of an image of `size` pixels in a model with known layers."""
    patch = (int(model.patch_embed.patch_size[0]), int(model.patch_embed.patch_size[1]))
    rows, cols = (-(-side // p) for side, p in zip(size, patch, strict=True))  # rounded up: timm may pad
    n_prefix = int(model.num_prefix_tokens)
    n_class = int(bool(getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)))
    named = ("cls",) * n_class + ("dist",) * (getattr(model, "dist_token", None) is not None)
    prefix = named + tuple(f"reg{i}" for i in range(n_prefix - len(named)))
    return TokenGrid(rows, cols, prefix, patch)


def hidden_kernel(name: str, module: nn.Module, last_use: str = "") -> CaptureError:
    """The error about a layer whose attention nothing could read.

    Args:
        last_use: the function that last took something made of its softmax; "" if there was no softmax.
    """
    if last_use:
        return CaptureError(
            f"{name} ({type(module).__name__}) computes a softmax that is not read as an attention map: it ends in "
            f"{last_use!r}, and only matmul, bmm, baddbmm and einsum are read as its product with values."
        )
    return CaptureError(
        f"{name} ({type(module).__name__}) ran, and no softmax was multiplied with its values in sight of PyTorch: it "
        "uses a kernel of its own (flash-attn, xformers, a script) or is no softmax attention. Switch it to PyTorch's "
        "attention, such as attn_implementation='sdpa'."
    )
