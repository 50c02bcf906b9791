"""Fixed position tables, and pseudo-inputs made of them."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor

from attnprobe.core.errors import InputError, ShapeError, check_choice

PSEUDO_INPUTS = ("P", "U", "G", "A", "B")
"""Kinds of substitutes for an image's tokens while q and k are solved for, see `pseudo_input`."""


def sinusoidal_positions(rows: int, cols: int, width: int) -> Tensor:
    """A fixed table [patch, width], patches row by row.

    Quarters of the width hold sin(row f), sin(col f), cos(row f), cos(col f), with f_j = 10000^(-j / (width / 4)).

    Raises:
        ShapeError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ShapeError(
            f"sinusoidal positions put sine and cosine of row and column in a quarter of the width each; "
            f"{width} is not a multiple of 4."
        )
    exponents = torch.arange(width // 4, dtype=torch.float32, device="cpu") / (width // 4)
    frequencies = 1 / 10000.0**exponents  # float32 throughout, in this order: equal to the authors' table to the bit
    row = torch.arange(rows, dtype=torch.float32, device="cpu")[:, None, None] * frequencies
    col = torch.arange(cols, dtype=torch.float32, device="cpu")[None, :, None] * frequencies
    quarters = torch.broadcast_tensors(row.sin(), col.sin(), row.cos(), col.cos())
    return torch.cat(quarters, dim=-1).flatten(0, 1)


def use_sinusoidal_positions(model: Any) -> None:
    """Replace a timm `VisionTransformer`'s position table by the fixed one, in place.

    The table [1, patch, width] is a buffer that is not saved: neither parameter nor in the state dictionary, but it
    follows the model to another device. It is added to patches only, before class token and registers are put in front.

    Raises:
        ShapeError: the width is not a multiple of 4.
        InputError: the model's image size is not known.
    """
    weight = next(model.patch_embed.parameters())
    table = sinusoidal_positions(*grid_of(model), model.embed_dim)
    del model.pos_embed
    model.register_buffer("pos_embed", table[None].to(weight.device, weight.dtype), persistent=False)
    model.no_embed_class = True


def grid_of(model: Any) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        InputError: the model has no grid of a fixed size.
    """
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise InputError(f"{type(model).__name__} does not say how many patches it has; build it with an img_size.")
    return int(grid[0]), int(grid[1])


def patch_positions(model: Any) -> Tensor:
    """The model's own table without entries of prefix tokens, [patch, width], float32 on the CPU."""
    table = model.pos_embed.detach()[0]
    return table[len(table) - model.patch_embed.num_patches :].float().cpu()


def pseudo_input(kind: str, table: Tensor) -> Tensor:
    """A substitute for an image's tokens, [patch, width]: layer norm (without parameters) of

        P  the position table                A  P + U
        U  uniform numbers in (-1, 1)        B  P + G
        G  normal numbers of variance 1/2, cut off at 2

    Raises:
        InputError: another letter.
    """
    check_choice("pseudo_input", kind, PSEUDO_INPUTS)
    tokens = table if kind in "PAB" else torch.zeros_like(table)
    if kind in "UA":
        tokens = tokens + torch.empty_like(table).uniform_(-1, 1)
    if kind in "GB":
        tokens = tokens + trunc_normal_(torch.empty_like(table), std=0.5**0.5)
    return F.layer_norm(tokens, tokens.shape[-1:])
