"""Fitting a checkpoint's weights to a model: strictly, but for declared adaptations of head and position table."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from attnprobe.core.errors import CheckpointError, ShapeError
from attnprobe.models.identify import identify
from attnprobe.models.read import Checkpoint
from attnprobe.models.variants.deepvit import DeepViT
from attnprobe.models.variants.refiner import Refiner

HEADS = ("head.weight", "head.bias", "aux_head.weight", "aux_head.bias")
"""Parameters that a new number of classes replaces."""


def load_weights(
    model: Any, checkpoint: Checkpoint, *, name: str, new_head: bool, allow_nonfinite: bool = False
) -> list[str]:
    """Load a checkpoint strictly into a model, its position table resized to the model's resolution.

    Args:
        name: the model's name in messages.
        new_head: a head for another number of classes keeps the model's own weights instead of being an error.

    Returns:
        A sentence for every adaptation.

    Raises:
        CheckpointError: not finite, or of another architecture.
    """
    _check_finite(checkpoint, allow_nonfinite)
    state, own = dict(checkpoint.state), model.state_dict()
    notes = _fit_positions(state, model)
    heads = [key for key in HEADS if key in own]
    if new_head and any(key not in state or state[key].shape != own[key].shape for key in heads):
        notes.append(f"the head for {model.num_classes} classes has initial weights")
        state = {key: value for key, value in state.items() if key not in HEADS} | {key: own[key] for key in heads}
    _check_fits(checkpoint, state, name, model)
    model.load_state_dict(state, strict=True)
    if checkpoint.pretrained_cfg:
        model.pretrained_cfg = {**model.pretrained_cfg, **checkpoint.pretrained_cfg}
    return notes


def same_positions(state: Mapping[str, Tensor], model: Any) -> bool:
    """Whether checkpoint and model have position tables for the same number of patches (or not both have one)."""
    table, wanted = state.get("pos_embed"), model.state_dict().get("pos_embed")
    if table is None or wanted is None or table.ndim != 3 or table.shape[2] != wanted.shape[2]:
        return True
    return table.shape[1] == wanted.shape[1]


def _fit_positions(state: dict[str, Tensor], model: Any) -> list[str]:
    """Resize the position table in `state` if only its number of patches differs; a sentence about it, or none."""
    if same_positions(state, model):
        return []
    table, wanted = state["pos_embed"], model.state_dict()["pos_embed"]
    n_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = model.patch_embed.grid_size
    if isinstance(model, DeepViT | Refiner):
        state["pos_embed"] = resize_positions(table, grid, n_prefix=n_prefix)
    else:
        state["pos_embed"] = resample_abs_pos_embed(table, list(grid), num_prefix_tokens=n_prefix)
    return [f"the position table was resized from {table.shape[1]} to {wanted.shape[1]} entries"]


def resize_positions(
    table: Tensor, grid: tuple[int, int], *, n_prefix: int, old_grid: tuple[int, int] | None = None
) -> Tensor:
    """A learned position table for another grid: bilinear with aligned corners, as in DeepViT's and Refiner's code.

    Args:
        table: [1, prefix and patch, width]; entries of prefix tokens (class token, registers) are kept.
        grid: rows and columns of the result.
        n_prefix: number of leading entries that are not patches.
        old_grid: rows and columns of `table`; square if None.

    Raises:
        ShapeError: the table has no square number of patches and `old_grid` is not given, or disagrees with it.
    """
    n_patches = table.shape[1] - n_prefix
    side = math.isqrt(n_patches)
    old_grid = old_grid or (side, side)
    if math.prod(old_grid) != n_patches:
        raise ShapeError(
            f"a position table of {n_patches} patches does not fill a grid of {old_grid[0]} x {old_grid[1]}; "
            "give the grid it was trained with."
        )
    prefix, patches = table[:, :n_prefix], table[:, n_prefix:]
    image = patches.unflatten(1, old_grid).permute(0, 3, 1, 2)
    resized = F.interpolate(image.float(), size=grid, mode="bilinear", align_corners=True).to(table.dtype)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _check_finite(checkpoint: Checkpoint, allow: bool) -> None:
    bad = [n for n, v in checkpoint.state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad and not allow:
        raise CheckpointError(
            f"{checkpoint.path.name} holds NaN or infinite weights in {len(bad)} tensors, first {bad[0]!r}; "
            "the training diverged. Use an earlier checkpoint, or --allow-nonfinite to look at it anyway."
        )


def _check_fits(checkpoint: Checkpoint, got: Mapping[str, Tensor], name: str, model: nn.Module) -> None:
    wanted = model.state_dict()
    wrong = [f"{k} is {tuple(got[k].shape)}, model wants {tuple(v.shape)}" for k, v in wanted.items()
             if k in got and got[k].shape != v.shape]  # fmt: skip
    missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    if wrong or missing or extra:
        parts = [("of other shapes", wrong), ("missing", missing), ("unknown to it", extra)]
        problems = "; ".join(f"{len(items)} {what} ({', '.join(items[:2])})" for what, items in parts if items)
        likely = identify(checkpoint.state)
        advice = (
            f"It looks like {likely.name!r}; try --model {likely.name}" if likely else "Name its model with --model"
        )
        raise CheckpointError(f"{checkpoint.path.name} is not a {name!r} checkpoint: {problems}. {advice}.")
