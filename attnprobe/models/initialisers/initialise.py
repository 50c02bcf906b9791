"""Structured initialisation, in place, of any timm `VisionTransformer`."""

from typing import Any, Literal

import torch
from torch import nn

from attnprobe.core.errors import InputError, check_choice
from attnprobe.models.initialisers import mimetic
from attnprobe.models.initialisers.impulse import Impulses, by_adam, in_closed_form
from attnprobe.models.initialisers.layers import attention_layers, write_query_key, write_value_output
from attnprobe.models.initialisers.names import SKIP, Impulse, Mimetic, parse
from attnprobe.models.initialisers.positions import PSEUDO_INPUTS, grid_of, use_sinusoidal_positions
from attnprobe.models.initialisers.targets import check_window

Solver = Literal["closed_form", "adam"]


def initialise(
    model: Any,
    weight_init: str = "impulse3",
    *,
    pseudo_input1: str = "P",
    pseudo_input2: str = "P",
    init_once: bool | None = None,
    solver: Solver = "closed_form",
    compat: mimetic.Compat = "repo",
    reset: bool = True,
) -> Impulses | None:
    """Initialise a timm `VisionTransformer` in place; nothing happens on the meta device.

    Random numbers come from PyTorch's global CPU generator, so they are the same wherever the model is. In order:
    mimetic: Z of queries and keys by block and head, then Z of values by block. Impulse, adam: pseudo-input, offsets,
    q, k. Impulse, closed form: pseudo-inputs; then by block noise of all heads, Z of values.

    Args:
        weight_init: "" and other strings of timm's; "skip", PyTorch's defaults; "mimetic<alpha>_<beta>"; "impulse<k>".
        pseudo_input1: what impulses of the first block are solved for, see `pseudo_input`; pseudo_input2: of the rest.
        init_once: solve for the first block and copy q and k to all others; None for the authors' choice:
            True for "adam", False for "closed_form" (whose noise is fresh in every block).
        solver: "closed_form" (seconds; also sets values and output projections to the mimetic pair) or "adam".
        compat: for mimetic value weights, "repo" or "exact"; see `mimetic.value_output`.
        reset: start from PyTorch's defaults for everything else, as the authors do; False if it was just built so.

    Returns:
        the impulses' targets; None for anything but "impulse<k>".

    Raises:
        InputError, ShapeError: the method does not allow it, with the reason; see `check_model`.
    """
    recipe = parse(weight_init)
    check_choice("solver", solver, ("closed_form", "adam"))
    check_choice("compat", compat, ("repo", "exact"))
    for kind in (pseudo_input1, pseudo_input2):
        check_choice("pseudo_input", kind, PSEUDO_INPUTS)
    check_model(model, recipe, solver)
    if next(model.parameters()).is_meta:
        return None
    with torch.no_grad():
        if isinstance(recipe, str) and recipe != SKIP:
            _as_timm(model, recipe)
            return None
        if reset:
            reset_modules(model)
        if isinstance(recipe, Mimetic):
            _mimetic(model, recipe, compat)
        elif isinstance(recipe, Impulse):
            inputs = (pseudo_input1, pseudo_input2)
            if solver == "adam":
                return by_adam(model, recipe, inputs, init_once is not False)
            return in_closed_form(model, recipe, inputs, init_once is True)
    return None


def reset_modules(model: Any) -> None:
    """Reset every module to PyTorch's defaults, and the tables by `reset_tables`."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    reset_tables(model)


def reset_tables(model: Any) -> None:
    """Set class token and registers to 0, learned positions to 0.02 N(0, 1); timm leaves them unset with "skip"."""
    with torch.no_grad():
        for token in (model.cls_token, model.reg_token):
            if token is not None:
                token.zero_()
        if isinstance(model.pos_embed, nn.Parameter):
            model.pos_embed.normal_(std=0.02)


def _as_timm(model: Any, mode: str) -> None:
    fixed = "pos_embed" in dict(model.named_buffers(recurse=False))
    model.init_weights(mode)
    if fixed:  # timm draws a table over ours
        use_sinusoidal_positions(model)


def _mimetic(model: Any, recipe: Mimetic, compat: mimetic.Compat) -> None:
    layers, width = attention_layers(model), model.embed_dim
    for layer in layers:
        z = mimetic.uniform_noise(layer.num_heads, width, width).to(layer.qkv.weight.device)
        write_query_key(layer, *mimetic.query_key(z, layer.head_dim, recipe.alpha, recipe.beta))
    for layer in layers:
        z = mimetic.uniform_noise(width, width).to(layer.qkv.weight.device)
        write_value_output(layer, *mimetic.value_output(z, compat))


def check_model(model: Any, recipe: Mimetic | Impulse | str, solver: str) -> None:
    """Raise unless an initialisation from `parse` can be applied to a model; timm's own strings always can.

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
