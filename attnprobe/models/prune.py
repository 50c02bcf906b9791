"""Pruning: a model without some of its blocks and heads, in a form that others can open.

Blocks are dropped: the rest is the same architecture with a smaller `depth`. Heads are removed from the matrices
that make queries, keys, values and outputs; since timm's class cannot say that a block has fewer heads of the same
width, such a model is called `pruned_vit`, which timm knows once attnprobe.models is imported.

Only attention with independent heads can lose one: a plain softmax, and variants that act on each head alone. Where a
map mixes heads (re-attention, talking heads, Refiner, rich) every head is made of all softmaxes, so none can go;
that is refused. Zeroing its output instead would save nothing; `verify-drops` measures its cost.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import Attention
from timm.models import PretrainedCfg, build_model_with_cfg, register_model
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models.attention import TappedAttention, replace_attention
from attnprobe.models.build import build_model, input_spec
from attnprobe.models.presets import MODELS
from attnprobe.models.variants.attnscale import AttnScale
from attnprobe.models.variants.featscale import FeatScale
from attnprobe.models.variants.gated import GatedAttention

NAME = "pruned_vit"
"""The architecture of models whose blocks have lost heads."""

HEADS_ALONE = (Attention, TappedAttention, AttnScale, FeatScale, GatedAttention)
"""Classes of attention (without their subclasses) whose heads are independent."""

SAME = 1e-4
"""Tolerance between outputs of the rebuilt and of the cut model, relative to the largest."""


def prunable_blocks(model: nn.Module) -> list[Any]:
    """The model's blocks, each with `attn`.

    Raises:
        InputError: it is not built like timm's vision transformer.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or not all(
        isinstance(getattr(b, "attn", None), Attention) for b in blocks
    ):
        raise InputError(
            f"{type(model).__name__} is not built like timm's VisionTransformer (a sequence `blocks`, each with an "
            "`attn` of timm's class), so its blocks cannot be removed."
        )
    return list(blocks)


def pruned(model: nn.Module, *, blocks: Sequence[int] = (), heads: Mapping[int, Sequence[int]] | None = None) -> Any:
    """A copy of the model without these blocks and heads, all counted from 1.

    Args:
        heads: {block: heads to remove}, blocks as they are counted in `model`.

    Raises:
        InputError: no such block or head, nothing would be left, or heads that cannot be removed.
    """
    old, heads = prunable_blocks(model), dict(heads or {})
    for block in (*blocks, *heads):
        if not 1 <= block <= len(old):
            raise InputError(f"there is no block {block}; the model has blocks 1 to {len(old)}.")
    if len(set(blocks)) >= len(old):
        raise InputError(f"no block of {len(old)} would be left; leave one.")
    smaller: Any = deepcopy(model)
    for block, lost in heads.items():
        attention = smaller.blocks[block - 1].attn
        _check_heads(attention, block, lost)
        kept = [head for head in range(attention.num_heads) if head + 1 not in lost]
        smaller.blocks[block - 1].attn = with_heads(attention, kept)
    left = [block for i, block in enumerate(smaller.blocks, 1) if i not in set(blocks)]
    smaller.blocks = type(smaller.blocks)(*left)
    return smaller


def with_heads(attention: Attention, kept: Sequence[int]) -> TappedAttention:
    """The same attention with these of its heads (from 0) only."""
    smaller: Any = replace_attention(TappedAttention, attention) if type(attention) is Attention else attention
    width, heads = smaller.head_dim, smaller.num_heads
    entries = torch.arange(heads * width).view(heads, width)[list(kept)].flatten()
    smaller.qkv = _rows(smaller.qkv, torch.cat([entries + part * heads * width for part in range(3)]))
    smaller.proj = _columns(smaller.proj, entries)
    if isinstance(smaller, GatedAttention):
        smaller.gate = _rows(smaller.gate, entries)
    if isinstance(smaller, AttnScale):
        smaller.w = nn.Parameter(smaller.w.detach()[list(kept)].clone())
    smaller.num_heads, smaller.attn_dim = len(kept), len(kept) * width
    return smaller


def written_down(model: Any, smaller: Any, name: str, options: Mapping[str, Any], dropped: Sequence[int]) -> tuple[
    str, dict[str, Any], nn.Module
]:  # fmt: skip
    """Name and options that build a pruned model anew, and that model with its weights.

    Args:
        model: the whole model, of this name and these options; blocks `dropped` (from 1) are missing in `smaller`.

    Raises:
        InputError: the architecture cannot be built without these blocks: they are of different kinds in turn, or what
            a block computes depends on its place.
    """
    of, options = options.get("of", name), {k: v for k, v in options.items() if k not in ("of", "heads")}
    options["depth"] = len(smaller.blocks)
    preset = MODELS[of].options if of in MODELS else {}
    chosen = options.get("reattention", preset.get("reattention"))
    if chosen is not None:
        kept = [block for block in range(len(model.blocks)) if block + 1 not in dropped]
        options["reattention"] = [place for place, block in enumerate(kept) if block in set(chosen)]
    heads = [block.attn.num_heads for block in smaller.blocks]
    if any(count != heads[0] for count in heads) or _heads_of(of, options) != heads[0]:
        options, of = {"of": of, "heads": heads, **options}, NAME
    refusal = f"{name!r} cannot lose these blocks"
    rebuilt: Any = build_model(of, **options)
    rebuilt.pretrained_cfg = {**rebuilt.pretrained_cfg, **model.pretrained_cfg}
    try:
        rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    except RuntimeError as error:
        raise InputError(f"{refusal}: its blocks are of different kinds, and those left do not make one.") from error
    if not _alike(smaller, rebuilt):
        raise InputError(f"{refusal}: what a block computes depends on its place.")
    return of, options, rebuilt


def _heads_of(name: str, options: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        model: Any = build_model(name, **options)
    return model.blocks[0].attn.num_heads


def _check_heads(attention: Attention, block: int, lost: Sequence[int]) -> None:
    together = not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
    if together or type(attention) not in HEADS_ALONE or type(attention.qkv) is not nn.Linear:
        raise InputError(
            f"block {block}: heads of {type(attention).__name__} are mixed, passed on or normalised together, so none "
            "can be removed without changing the others; drop blocks, or see what --verify-drops says of the head."
        )
    if getattr(attention, "gate", None) is not None and not isinstance(attention, GatedAttention):
        raise InputError(f"block {block}: heads of timm's gated attention cannot be removed.")
    if missing := [head for head in lost if not 1 <= head <= attention.num_heads]:
        raise InputError(f"block {block} has no head {missing[0]}; it has heads 1 to {attention.num_heads}.")
    if len(set(lost)) == attention.num_heads:
        raise InputError(f"all heads of block {block} would go; leave one, or drop the block.")


@torch.inference_mode()
def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether both models agree on noise, which involves every weight."""
    spec = input_spec(one)
    images = torch.randn(2, 3, *spec.size, generator=torch.Generator().manual_seed(0))
    one, other = (deepcopy(model).cpu().float().eval() for model in (one, other))
    a, b = one(images), other(images)
    return a.shape == b.shape and bool((a - b).abs().max() <= SAME * a.abs().max())


def _rows(layer: nn.Linear, kept: torch.Tensor) -> nn.Linear:
    """The layer with a subset of its outputs."""
    bias = None if layer.bias is None else layer.bias.detach()[kept]
    return _linear(layer.weight.detach()[kept], bias)


def _columns(layer: nn.Linear, kept: torch.Tensor) -> nn.Linear:
    """The layer with a subset of its inputs."""
    return _linear(layer.weight.detach()[:, kept], None if layer.bias is None else layer.bias.detach())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def _build(of: str, heads: Sequence[int] | None = None, **options: Any) -> nn.Module:
    model: Any = timm.create_model(of, **options)
    blocks = prunable_blocks(model)
    if heads is not None and len(heads) != len(blocks):
        raise InputError(f"heads={list(heads)} must name one number per block, of which there are {len(blocks)}.")
    for block, count in zip(blocks, heads or (), strict=False):
        if not 1 <= count <= block.attn.num_heads:
            raise InputError(f"heads={list(heads or ())}: a block of {of!r} has 1 to {block.attn.num_heads}.")
        if count < block.attn.num_heads:
            _check_heads(block.attn, 1, ())
            block.attn = with_heads(block.attn, range(count))
    return model


def pruned_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The model named `of` with `heads[i]` heads in block i; other options are those of `of`."""
    if kwargs.get("pretrained_cfg") is None:  # pixels as `of` wants them; its weights are of another shape
        own = timm.get_pretrained_cfg(kwargs["of"]) or PretrainedCfg()
        kwargs["pretrained_cfg"] = replace(own, url="", file=None, hf_hub_id=None, hf_hub_filename=None)
    return build_model_with_cfg(_build, NAME, pretrained, **kwargs)


register_model(pruned_vit)
