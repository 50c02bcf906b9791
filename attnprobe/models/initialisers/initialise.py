"""How is a transformer given structured weights, whatever its geometry? In place, on any timm `VisionTransformer`."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attnprobe.core.errors import InputError, check_choice
from attnprobe.models.initialisers import adam, closed_form, mimetic, targets
from attnprobe.models.initialisers.names import SKIP, Impulse, Mimetic, parse
from attnprobe.models.initialisers.positions import (
    PSEUDO_INPUTS,
    grid_of,
    patch_positions,
    pseudo_input,
    use_sinusoidal_positions,
)

Solver = Literal["closed_form", "adam"]


@dataclass(frozen=True, slots=True)
class Impulses:
    """What an impulse initialisation was after.

    Attributes:
        offsets: [layer, head, 2], rows down and columns right from the query to the key each head should attend to.
        losses: [solve, step] of the Adam solver; empty for the closed form.
        column_norms: per solve of the Adam solver, what its columns were reset to.
    """

    offsets: Tensor
    losses: Tensor
    column_norms: tuple[float, ...] = ()


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
        InputError, ShapeError: the method does not allow it, with the reason; see `check`.
    """
    recipe = parse(weight_init)
    check_choice("solver", solver, ("closed_form", "adam"))
    check_choice("compat", compat, ("repo", "exact"))
    for kind in (pseudo_input1, pseudo_input2):
        check_choice("pseudo_input", kind, PSEUDO_INPUTS)
    check(model, recipe, solver)
    if model.patch_embed.proj.weight.is_meta:
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
                return _impulse_by_adam(model, recipe, inputs, init_once is not False)
            return _impulse_in_closed_form(model, recipe, inputs, init_once is True)
    return None


def check(model: Any, recipe: Mimetic | Impulse | str, solver: Solver = "closed_form") -> None:
    """Whether a method can be used on a model.

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
        raise InputError(f"{recipe} needs 2 blocks or more: the authors' code divides by depth - 1; got {len(layers)}.")
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
    targets.check_window(*grid_of(model), recipe.kernel)


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
    noise = [mimetic.uniform_noise(layer.num_heads, width, width) for layer in layers]
    for layer, z in zip(layers, noise, strict=True):
        device = layer.qkv.weight.device
        _write_query_key(layer, *mimetic.query_key(z.to(device), layer.head_dim, recipe.alpha, recipe.beta))
    for layer in layers:
        _write_value_output(layer, mimetic.uniform_noise(width, width), compat)


def _impulse_by_adam(model: Any, recipe: Impulse, inputs: tuple[str, str], init_once: bool) -> Impulses:
    layers, table, solutions, offsets = attention_layers(model), patch_positions(model), [], []
    device = layers[0].qkv.weight.device
    tokens = torch.empty(0)
    for index, layer in enumerate(layers[:1] if init_once else layers):
        if index < 2:
            tokens = pseudo_input(inputs[index], table)
        offsets.append(targets.drawn_offsets(layer.num_heads, recipe.kernel))
        wanted = targets.shifts(*grid_of(model), offsets[-1])
        start = adam.draw_start(layer.num_heads, model.embed_dim, layer.head_dim)
        solutions.append(adam.solve(tokens.to(device), wanted, *start))
    for index, layer in enumerate(layers):
        _write_query_key(layer, *solutions[0 if init_once else index][:2])
    offsets = offsets * len(layers) if init_once else offsets
    losses = torch.stack([solution.losses for solution in solutions]).cpu()
    return Impulses(torch.stack(offsets), losses, tuple(solution.column_norm for solution in solutions))


def _impulse_in_closed_form(model: Any, recipe: Impulse, inputs: tuple[str, str], init_once: bool) -> Impulses:
    layers, table = attention_layers(model), patch_positions(model)
    device, head_width = layers[0].qkv.weight.device, layers[0].head_dim
    first = pseudo_input(inputs[0], table)
    rest = first if inputs == ("P", "P") else pseudo_input(inputs[1], table)
    inverse = closed_form.invert(first.to(device), head_width)
    inverses = (inverse, inverse if rest is first else closed_form.invert(rest.to(device), head_width))
    offsets = targets.ordered_offsets(layers[0].num_heads, recipe.kernel)
    wanted = targets.shifts(*grid_of(model), offsets).to(device)
    solution = None
    for index, layer in enumerate(layers):
        if solution is None or not init_once:
            solution = closed_form.solve(inverses[min(index, 1)], closed_form.wanted_scores(wanted))
        _write_query_key(layer, *solution)
        _write_value_output(layer, mimetic.uniform_noise(model.embed_dim, model.embed_dim), "exact")
    return Impulses(offsets.expand(len(layers), -1, -1), torch.empty(0, 0))


def _write_query_key(layer: Any, q: Tensor, k: Tensor) -> None:
    """q [head, width, rank] and k [head, rank, width] into the first two thirds of qkv.

    If the rank is below the head width, the rest of Wq is zero and that of Wk stays as it is: the map is the same, and
    gradients still reach all of Wq.
    """
    rank = q.shape[-1]
    query, key = _thirds(layer)[:2]
    query.zero_()
    query[:, :rank] = q.mT.to(query)
    key[:, :rank] = k.to(key)


def _write_value_output(layer: Any, noise: Tensor, compat: mimetic.Compat) -> None:
    value, output = mimetic.value_output(noise.to(layer.qkv.weight.device), compat)
    _thirds(layer)[2].flatten(0, 1).copy_(value)
    layer.proj.weight.copy_(output)


def _thirds(layer: Any) -> Tensor:
    """qkv.weight as a view [query key value, head, head width, width]."""
    return layer.qkv.weight.detach().unflatten(0, (3, layer.num_heads, layer.head_dim))


def attention_layers(model: Any) -> list[Any]:
    """The attention of every block; raises InputError if q, k and v are not rows of one layer `qkv`."""
    layers = [getattr(block, "attn", None) for block in getattr(model, "blocks", ())]
    for index, layer in enumerate(layers):
        weight = getattr(getattr(layer, "qkv", None), "weight", None)
        shape = None if weight is None else tuple(weight.shape)
        expected = (3 * getattr(layer, "num_heads", 0) * getattr(layer, "head_dim", 0), getattr(model, "embed_dim", 0))
        if shape != expected:
            raise InputError(
                f"structured initialisation writes rows of blocks[i].attn.qkv, of shape {expected}; block {index} of "
                f"{type(model).__name__} has {shape or 'no such layer'}."
            )
    if not layers:
        raise InputError(f"structured initialisation needs a model with blocks; {type(model).__name__} has none.")
    return layers
