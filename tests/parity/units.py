"""Single parts: attention refinement, position tables and target maps, as recorded in units.json."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from attnprobe.models.variants.refiner import DLA
from attnprobe.models.weights import resize_positions
from tests.parity import positions
from tests.parity.difference import Difference, compare, worst_of_each

UNUSED = ("class_attention", "class_block")
"""Parts that lie in the authors' code and are used by none of their models, nor here."""


def covers(path: Path) -> bool:
    """True for a file of single parts."""
    return path.stem == "units" and path.with_suffix(".safetensors").exists()


def check(path: Path, quick: bool = False) -> Iterator[tuple[str, list[Difference]]]:
    """(part, its differences) for every part in the file but `UNUSED`; an unknown one counts as a failure."""
    golden = load_file(path.with_suffix(".safetensors"))
    for name, facts in json.loads(path.read_text())["units"].items():
        if name.startswith(UNUSED):
            continue
        values = {k.removeprefix(f"unit/{name}/"): v for k, v in golden.items() if k.startswith(f"unit/{name}/")}
        yield name, worst_of_each(check_unit(name, values, facts))


def check_unit(name: str, values: dict[str, Tensor], facts: dict[str, Any]) -> Iterator[Difference]:
    largest = values["output_eval"].abs().max().item()
    atol = max(10 * facts.get("fp32_vs_fp64_max_abs", 0.0), 3e-6 * largest)
    if name.startswith("resize_pos_embed"):
        grid = tuple(int(side) for side in name.rpartition("_")[2].split("x"))
        side = math.isqrt(values["input"].shape[1] - 1)
        resized = resize_positions(values["input"], grid, n_prefix=1, old_grid=(side, side))
        yield compare("output", resized, values["output_eval"], atol, 1e-4)
    elif name.startswith("dla"):
        yield from compare_module(refinement(values), values, atol)
    elif positions.covers_unit(name):
        yield from positions.check_unit(name, values, facts)
    else:
        yield Difference("unknown part", float("inf"), float("inf"))


def refinement(values: dict[str, Tensor]) -> DLA:
    """The refinement whose sizes the recorded parameters have."""
    heads = values["input"].shape[1]
    if "state/conv.weight" in values:
        return DLA(heads, kernel=values["state/conv.weight"].shape[-1], mode="conv")
    depthwise = values["state/depth_sep_conv.weight"]
    heads_out = values["state/conv_pro.weight"].shape[0]
    return DLA(heads, len(depthwise) / heads, depthwise.shape[-1], heads_out)


def compare_module(module: nn.Module, values: dict[str, Tensor], atol: float) -> Iterator[Difference]:
    """One evaluation, then one training forward and backward, from the recorded state."""
    state = {k.removeprefix("state/"): v for k, v in values.items() if k.startswith("state/")}
    module.load_state_dict(state, strict=True)
    yield compare("eval", module.eval()(values["input"]), values["output_eval"], atol, 1e-4)
    x = values["input"].clone().requires_grad_()
    y = module.train()(x)
    (y * values["cotangent"]).sum().backward()
    ours = {f"grad/{name}": p.grad for name, p in module.named_parameters()} | {"grad_input": x.grad, "train": y}
    ours |= {f"bn_after/{name}": b for name, b in module.named_buffers()}
    theirs = {"train" if k == "output_train" else k: v for k, v in values.items() if not k.startswith("state/")}
    for key in theirs.keys() - {"input", "output_eval", "cotangent"}:
        scale = theirs[key].abs().max().item() if theirs[key].is_floating_point() else 0.0
        yield compare(re.sub("/.*", "", key), ours[key], theirs[key], max(atol, 1e-5 * scale), 1e-4)
