"""Fitting a checkpoint's weights to a model: strictly, but for declared adaptations of head and position table."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from attnprobe.core.errors import CheckpointError, option
from attnprobe.models.misfit import refuse_misfits, require_same_tokens
from attnprobe.models.read import Checkpoint
from attnprobe.models.unwrap import require_ranks, unused, unwrap
from attnprobe.models.variants.deepvit import DeepViT
from attnprobe.models.variants.refiner import Refiner


def load_weights(
    model: Any,
    checkpoint: Checkpoint,
    *,
    name: str,
    new_head: bool,
    allow_nonfinite: bool = False,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Load a checkpoint strictly into a model, its position table resized to the model's resolution.

    Args:
        name: the model's name in messages.
        options: what it was built with, for messages.
        new_head: a head for another number of classes keeps the model's own weights instead of being an error.

    Returns:
        A sentence for every adaptation.

    Raises:
        CheckpointError: not finite, or of another architecture.
    """
    _check_finite(checkpoint, allow_nonfinite)
    own = model.state_dict()
    state, notes = unwrap(checkpoint.stored or checkpoint.state, own)
    require_ranks(state, own, checkpoint.path.name)
    require_same_tokens(checkpoint, state, name, model, options or {})
    notes += _fit_positions(state, checkpoint, model)
    heads = [key for key in own if key.startswith(tuple(f"{head}." for head in classifiers(model)))]
    if new_head and any(key not in state or state[key].shape != own[key].shape for key in heads):
        notes.append(f"the head for {model.num_classes} classes has initial weights")
        of_heads = tuple(f"{head}." for head in classifiers(model))
        state = {key: v for key, v in state.items() if not key.startswith(of_heads)} | {key: own[key] for key in heads}
    spare, stored = unused(state.keys() - own.keys(), own), state
    if spare:
        notes.append("not used: " + ", ".join(f"{first} ({n} tensors)" for first, n in sorted(spare.items())))
        state = {key: value for key, value in state.items() if key.partition(".")[0] not in spare}
    refuse_misfits(checkpoint, state, name, model, options or {}, stored.keys() - state.keys())
    model.load_state_dict(state, strict=True)
    if checkpoint.pretrained_cfg:
        model.pretrained_cfg = {**model.pretrained_cfg, **checkpoint.pretrained_cfg}
    return notes


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that a new number of classes replaces."""
    usual = "heads.head" if hasattr(model, "heads") else "head"  # the former is torchvision's
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or usual
    return (*((named,) if isinstance(named, str) else named), "aux_head")


def stored_grid(table: Tensor, checkpoint: Checkpoint, model: Any) -> tuple[tuple[int, int] | None, bool]:
    """Rows and columns of patches of a stored position table, and whether the file declares them.

    Of a size that the file declares, if the table has as many entries; else the model's own grid, if that has; else
    square; None if no square has.
    """
    embed = model.patch_embed
    n_patches = table.shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens)
    declared = checkpoint.options.get("img_size") or checkpoint.pretrained_cfg.get("input_size", ())[-2:]
    if declared:
        size = (declared, declared) if isinstance(declared, int) else declared
        patch = (side // cells for side, cells in zip(embed.img_size, embed.grid_size, strict=True))
        grid = tuple(side // step for side, step in zip(size, patch, strict=True))
        if math.prod(grid) == n_patches:
            return (grid[0], grid[1]), True
    if math.prod(embed.grid_size) == n_patches:
        return tuple(embed.grid_size), False
    side = math.isqrt(max(n_patches, 0))
    return ((side, side) if n_patches > 0 and side * side == n_patches else None), False


def has_table(state: Mapping[str, Tensor], model: Any) -> bool:
    """True if checkpoint and model both have a table of a position per patch, of the same width."""
    table, wanted = state.get("pos_embed"), model.state_dict().get("pos_embed")
    embed = getattr(model, "patch_embed", None)
    if table is None or wanted is None or not getattr(embed, "img_size", None) or not hasattr(model, "no_embed_class"):
        return False
    return table.ndim == wanted.ndim == 3 and table.shape[2] == wanted.shape[2]


def _fit_positions(state: dict[str, Tensor], checkpoint: Checkpoint, model: Any) -> list[str]:
    """Resize the position table in `state` if its grid differs from the model's; a sentence about it, or none."""
    if not has_table(state, model):
        return []
    table, grid = state["pos_embed"], tuple(model.patch_embed.grid_size)
    old, _ = stored_grid(table, checkpoint, model)
    n_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    if old is None:
        raise CheckpointError(
            f"{checkpoint.path.name}: its position table cannot be resized to {grid[0]} x {grid[1]} patches: its own "
            f"{table.shape[1] - n_prefix} are no square, and the file does not say how many rows they are. Open it at "
            "the size it was trained at."
        )
    if old == grid:
        return []
    if isinstance(model, DeepViT | Refiner):
        state["pos_embed"] = resize_positions(table, grid, n_prefix=n_prefix, old_grid=old)
    else:
        state["pos_embed"] = resample_abs_pos_embed(table, list(grid), list(old), num_prefix_tokens=n_prefix)
    return [f"the position table was resized from {old[0]} x {old[1]} to {grid[0]} x {grid[1]} patches"]


def resize_positions(table: Tensor, grid: tuple[int, int], *, n_prefix: int, old_grid: tuple[int, int]) -> Tensor:
    """A learned position table for another grid: bilinear with aligned corners, as in DeepViT's and Refiner's code.

    Args:
        table: [1, prefix and patch, width]; entries of prefix tokens (class token, registers) are kept.
        grid, old_grid: rows and columns of the result, and of `table`.
        n_prefix: number of leading entries that are not patches.
    """
    prefix, patches = table[:, :n_prefix], table[:, n_prefix:]
    image = patches.unflatten(1, old_grid).permute(0, 3, 1, 2)
    resized = F.interpolate(image.float(), size=grid, mode="bilinear", align_corners=True).to(table.dtype)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _check_finite(checkpoint: Checkpoint, allow: bool) -> None:
    bad = [n for n, v in checkpoint.state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad and not allow:
        look = option("allow-nonfinite", python="allow_nonfinite=True")
        raise CheckpointError(
            f"{checkpoint.path.name} holds NaN or infinite weights in {len(bad)} tensors, first {bad[0]!r}; "
            f"the training diverged. Use an earlier checkpoint, or {look} to look at it anyway."
        )
