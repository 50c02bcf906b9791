"""Do our position tables, target maps, and the earlier code base's model, equal the recorded parts of units.json?"""

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.models.initialisers import sinusoidal_positions, targets
from tests.parity.difference import Difference, compare


def covers_unit(name: str) -> bool:
    """Whether `check_unit` knows a part of units.json."""
    return name.startswith(("sincos_", "impulse_targets_", "legacy_sincos_", "legacy_vit_"))


def check_unit(name: str, values: dict[str, Tensor], facts: dict[str, Any]) -> Iterator[Difference]:
    """Position tables to 3e-6, target maps exactly, and the earlier code base's model to the recorded rounding."""
    theirs = values["output_eval"]
    sizes = [int(number) for number in re.findall(r"\d+", name)]
    if name.startswith("sincos_"):
        yield compare("table", sinusoidal_positions(*sizes), theirs, 3e-6, 0)
    elif name.startswith("impulse_targets_"):
        yield compare("targets", targets.impulse_targets(sizes[1], sizes[2], sizes[0]), theirs, 1e-30, 0)
    elif name.startswith("legacy_sincos_"):
        yield compare("table", earlier_positions(*sizes), theirs, 3e-6, 0)
    else:
        x = values["input"].clone().requires_grad_()
        state = {key.removeprefix("state/"): v for key, v in values.items() if key.startswith("state/")}
        state = {key: v.clone().requires_grad_() for key, v in state.items()}
        y = earlier_model(x, state, facts["description"])
        atol = max(10 * facts["fp32_vs_fp64_max_abs"], 3e-6 * facts["max_abs"])
        yield compare("output", y, theirs, atol, 1e-4)
        (y * values["cotangent"]).sum().backward()
        ours = {"grad_input": x.grad} | {f"grad/{key}": v.grad for key, v in state.items()}
        for key in sorted(ours.keys() & values.keys()):
            yield compare("gradient", ours[key], values[key], 1e-5 * values[key].abs().max().item(), 1e-4)


def earlier_positions(rows: int, cols: int, width: int) -> Tensor:
    """The earlier code base's table: sin(col), cos(col), sin(row), cos(row), denominators width / 4 - 1."""
    frequencies = 10000.0 ** -(torch.arange(width // 4).double() / (width // 4 - 1))
    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    col, row = (place.flatten()[:, None] * frequencies for place in (col, row))
    return torch.cat([col.sin(), col.cos(), row.sin(), row.cos()], dim=-1).float()


def earlier_model(pixels: Tensor, state: dict[str, Tensor], description: str) -> Tensor:
    """The earlier code base's ViT, from its parameters and the configuration in words."""

    def option(name: str, pattern: str = r"[\d.]+") -> str:
        return re.search(rf"\b{name}=({pattern})", description)[1]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    patch, heads, alpha = (
        int(option("patch_size", r"\d+")),
        int(option("heads", r"\d+")),
        float(option("alpha", r"[\d.]*\d")),
    )
    on = {name: option(name, r"\w+") == "True" for name in ("input_pe", "spatial_pe", "spatial_x")}
    patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # [image, channel, row, col, y, x]
    positions = earlier_positions(patches.shape[2], patches.shape[3], len(state["to_patch_embedding.2.bias"]))
    x = norm(patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2), "to_patch_embedding.1")
    x = norm(linear(x, "to_patch_embedding.2"), "to_patch_embedding.3")
    if on["input_pe"]:
        x, alpha = alpha * x + (1 - alpha) * positions, 1.0
    for block in range(int(option("depth", r"\d+"))):
        name = f"transformer.layers.{block}"
        y = norm(x, f"{name}.0.norm")
        mixed = y  # what queries and keys see: tokens, positions, or both
        if on["spatial_pe"]:
            mixed = alpha * y + (1 - alpha) * positions if on["spatial_x"] else positions.expand_as(y)
        q, k = linear(mixed, f"{name}.0.to_qk").chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, linear(y, f"{name}.0.to_v")))
        maps = (q.shape[-1] ** -0.5 * q @ k.mT).softmax(-1)
        x = x + linear((maps @ v).transpose(1, 2).flatten(2), f"{name}.0.to_out")
        y = F.gelu(linear(norm(x, f"{name}.1.net.0"), f"{name}.1.net.1"))
        x = x + linear(y, f"{name}.1.net.3")
    return linear(norm(x, "transformer.norm").mean(1), "linear_head")
