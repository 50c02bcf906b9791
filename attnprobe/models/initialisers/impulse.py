"""Impulse initialisation of a model: every head attends to one offset."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnprobe.models.initialisers import adam, closed_form, mimetic, targets
from attnprobe.models.initialisers.layers import attention_layers, write_query_key, write_value_output
from attnprobe.models.initialisers.names import Impulse
from attnprobe.models.initialisers.positions import grid_of, patch_positions, pseudo_input


@dataclass(frozen=True, slots=True)
class Impulses:
    """Targets and course of an impulse initialisation.

    Attributes:
        offsets: [layer, head, 2], rows down and columns right from the query to the key each head should attend to.
        losses: [solve, step] of the Adam solver; empty for the closed form.
        column_norms: per solve of the Adam solver, what its columns were reset to.
    """

    offsets: Tensor
    losses: Tensor
    column_norms: tuple[float, ...] = ()


def by_adam(model: Any, recipe: Impulse, inputs: tuple[str, str], init_once: bool) -> Impulses:
    """Initialise q and k by Adam for drawn offsets; `inputs`: pseudo-inputs of the first block and of the rest."""
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
        write_query_key(layer, *solutions[0 if init_once else index][:2])
    offsets = offsets * len(layers) if init_once else offsets
    losses = torch.stack([solution.losses for solution in solutions]).cpu()
    return Impulses(torch.stack(offsets), losses, tuple(solution.column_norm for solution in solutions))


def in_closed_form(model: Any, recipe: Impulse, inputs: tuple[str, str], init_once: bool) -> Impulses:
    """Initialise q and k in closed form for offsets in the authors' order, and v and proj as the mimetic pair."""
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
        write_query_key(layer, *solution)
        noise = mimetic.uniform_noise(model.embed_dim, model.embed_dim).to(device)
        write_value_output(layer, *mimetic.value_output(noise, "exact"))
    return Impulses(offsets.expand(len(layers), -1, -1), torch.empty(0, 0))
