"""How is a transformer given structured weights, whatever its geometry? In place, on any timm `VisionTransformer`."""

from typing import Any, Literal

import torch
from torch import nn

from attnprobe.core.errors import check_choice
from attnprobe.models.initialisers import mimetic
from attnprobe.models.initialisers.allowed import check_model
from attnprobe.models.initialisers.impulse import Impulses, by_adam, in_closed_form
from attnprobe.models.initialisers.layers import attention_layers, write_query_key, write_value_output
from attnprobe.models.initialisers.names import SKIP, Impulse, Mimetic, parse
from attnprobe.models.initialisers.positions import PSEUDO_INPUTS, use_sinusoidal_positions

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
        init_once: solve for the first block and copy q and k to all others; None for what the solver's authors do:
            True for "adam", False for "closed_form" (whose noise is fresh in every block).
        solver: "closed_form" (seconds; also sets values and output projections to the mimetic pair) or "adam".
        compat: for mimetic value weights, "repo" or "exact"; see `mimetic.value_output`.
        reset: start from PyTorch's defaults for everything else, as the authors do; False if it was just built so.

    Returns:
        what impulses were wanted; None for anything but "impulse<k>".

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
    """PyTorch's defaults everywhere, and `reset_tables`."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    reset_tables(model)


def reset_tables(model: Any) -> None:
    """Class token and registers 0, learned positions 0.02 N(0, 1); timm leaves them unset if told to skip."""
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
