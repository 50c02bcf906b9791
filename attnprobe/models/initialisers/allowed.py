"""Which models does an initialisation make sense for, and why not for others?"""

from typing import Any

from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models.initialisers.layers import attention_layers
from attnprobe.models.initialisers.names import Impulse, Mimetic
from attnprobe.models.initialisers.positions import grid_of
from attnprobe.models.initialisers.targets import check_window


def check_model(model: Any, recipe: Mimetic | Impulse | str, solver: str) -> None:
    """Whether what `parse` found can be done to a model; timm's own strings always can.

    Raises:
        InputError: attention without a fused qkv layer of the usual layout, heads wider than the model, fewer than two
            blocks; for impulses also: learned positions, normalised queries and keys, a class token that average
            pooling ignores.
        ShapeError: the window of an impulse is larger than the grid.
    """
    if isinstance(recipe, str):
        return
    layers = attention_layers(model)
    if len(layers) < 2:
        raise InputError(
            f"structured initialisation needs 2 blocks or more, got {len(layers)}: "
            "the authors' code divides by depth - 1."
        )
    width, inner = model.embed_dim, layers[0].num_heads * layers[0].head_dim
    if layers[0].head_dim > width:
        raise InputError(
            f"heads of width {layers[0].head_dim} are wider than the model ({width}): "
            f"a {width} x {width} matrix has no factors of that rank."
        )
    if inner != width and (isinstance(recipe, Mimetic) or solver == "closed_form"):
        raise InputError(
            f"value and output projections must be {width} x {width} to multiply to a multiple of the identity; "
            f"{layers[0].num_heads} heads of width {layers[0].head_dim} make them {inner} x {width}."
        )
    if isinstance(recipe, Mimetic):
        return
    if isinstance(model.pos_embed, nn.Parameter) or model.pos_embed is None:
        raise InputError(
            "impulse initialisation solves for attention on fixed positions; learned ones move away from what was "
            "solved for. Pass sin_pe=True, or call use_sinusoidal_positions(model) first."
        )
    if not isinstance(layers[0].q_norm, nn.Identity):
        raise InputError("qk_norm rescales queries and keys, whose size an impulse needs; build with qk_norm=False.")
    if model.has_class_token and model.global_pool in ("avg", "avgmax", "max"):
        raise InputError(
            "impulses are meant for patches, which average pooling reads; a class token beside it would be attended to "
            "and never read: pass class_token=False (or global_pool='token')."
        )
    check_window(*grid_of(model), recipe.kernel)
