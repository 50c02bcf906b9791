"""Do our initialisers draw and reach what the authors' do? Files init_exact, init_maps, init_stats.

Both draw from PyTorch's CPU generator in the same order, so a recorded seed gives the authors' own offsets and starting
points; only mimetic noise comes from numpy's generator there, and is injected here. Of statistics, nevertheless, only
the file's criterion is asked: every value (each seed, block and head, not just their mean) lies in the suggested range.
Offsets are asked to be equal, losses of Adam to 1e-3.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from attnprobe.models.initialisers import adam, mimetic, sinusoidal_positions, targets
from attnprobe.models.initialisers.names import Impulse, parse
from attnprobe.models.initialisers.positions import patch_positions, pseudo_input
from attnprobe.models.variants.structured import StructuredViT
from tests.parity.difference import Difference, compare, worst_of_each
from tests.parity.initialiser_statistics import block_maps, statistics

LOSSES = 1e-3
"""Relative agreement asked of losses on the way of 10,000 steps; the recorded sensitivity to the start is 1e-4."""


def covers(path: Path) -> bool:
    """Whether the file records initialisers."""
    return path.stem in ("init_exact", "init_maps", "init_stats")


def check(path: Path, quick: bool = False) -> Iterator[tuple[str, list[Difference]]]:
    """(what, its differences); `quick` leaves out what needs 10,000 steps of Adam (4 s each small, 30 s registered)."""
    checks = {"init_exact": check_exact, "init_maps": check_maps, "init_stats": check_stats}
    with one_thread():
        yield from checks[path.stem](path, quick)


# --- exact records: injected draws -----------------------------------------------------------------------------------


def check_exact(path: Path, quick: bool = False) -> Iterator[tuple[str, list[Difference]]]:
    facts, golden = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    geometry = facts["geometry"]
    for run, record in facts["impulse"]["runs"].items():
        if not (quick and record["steps"] > 1000):
            yield f"{path.stem} {run}", list(exact_impulse(run, record, golden, geometry))
    yield f"{path.stem} mimetic", worst_of_each(exact_mimetic(facts, golden))


def exact_impulse(
    run: str, record: dict[str, Any], golden: dict[str, Tensor], geometry: dict[str, Any]
) -> Iterator[Difference]:
    """The file's suggestion: up to 301 steps 1e-5 on factors and loss, after 10,000 2e-3, and 2e-4 on maps."""
    setting, steps = run.rsplit("_", 1)[0], record["steps"]
    factors, maps, loss = (1e-5, 1e-5, 1e-5) if steps <= 1000 else (2e-3, 2e-4, 1e-4)
    table = sinusoidal_positions(*geometry["grid"], geometry["width"])
    tokens = pseudo_input("P", table)
    wanted = targets.shifts(*geometry["grid"], golden[f"{setting}/offsets_row_col"])
    yield compare("positions", table, golden[f"{setting}/pe"], 1e-6, 0)
    yield compare("pseudo-input", tokens, golden[f"{setting}/pe_normalised"], 3e-6, 0)
    yield compare("target", wanted, golden[f"{setting}/target"], 1e-30, 0)
    ours = adam.solve(tokens, wanted, golden[f"{setting}/Q0"], golden[f"{setting}/K0"], steps=steps)
    yield compare("Q", ours.q, golden[f"{setting}/Q_{steps}"], factors, 0)
    yield compare("K", ours.k, golden[f"{setting}/K_{steps}"], factors, 0)
    theirs = [golden[f"{setting}/{factor}_{steps}"] for factor in "QK"]
    yield compare("maps", achieved(tokens, ours.q.mT, ours.k), achieved(tokens, theirs[0].mT, theirs[1]), maps, 0)
    before = [int(step) for step in record["loss_before_step"]]
    yield compare("loss", ours.losses[before], torch.tensor([*record["loss_before_step"].values()]), 0, loss)
    yield compare("last loss", ours.losses[-1:], torch.tensor([record["last_loss"]]), 0, loss)


def exact_mimetic(facts: dict[str, Any], golden: dict[str, Tensor]) -> Iterator[Difference]:
    """Products of the factors, which unlike the factors themselves are unique, to 1e-5."""
    heads, head_width = facts["geometry"]["heads"], facts["geometry"]["head_width"]
    alpha, beta = (
        float(re.search(rf"{name}=(-?\d+\.?\d*)", facts["mimetic"]["recipe"])[1]) for name in ("alpha", "beta")
    )
    for block, z in enumerate(golden["mimetic/Z_qk"]):
        query, key, value = golden[f"mimetic/block{block}/qkv_weight"].chunk(3)
        output = golden[f"mimetic/block{block}/proj_weight"]
        q, k = mimetic.query_key(z, head_width, alpha, beta)
        theirs = query.unflatten(0, (heads, -1)).mT @ key.unflatten(0, (heads, -1))
        yield compare("Wq^T Wk", q @ k, theirs, 1e-5, 0)
        ours = mimetic.value_output(golden["mimetic/Z_vproj"][block], "repo")
        yield compare("Wv Wproj", ours[0] @ ours[1], value @ output, 1e-5, 0)
        yield compare("Wproj Wv diagonal", (ours[1] @ ours[0]).diag(), (output @ value).diag(), 1e-5, 0)


def achieved(tokens: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Weights [head, head width, width] -> maps [head, query, key]."""
    return (query.shape[1] ** -0.5 * (tokens @ query.mT) @ (tokens @ key.mT).mT).softmax(-1)


# --- models built from recorded seeds --------------------------------------------------------------------------------


def check_maps(path: Path, quick: bool = False) -> Iterator[tuple[str, list[Difference]]]:
    facts, golden = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    geometry = json.loads(path.with_name("init_stats.json").read_text())["small_geometry"]
    for setting in sorted({key.split("/")[0] for key in golden}):
        for run, seed in enumerate(facts["seeds"]):
            record = {k.split("/")[2]: v for k, v in golden.items() if k.startswith(f"{setting}/run{run}/")}
            if record and not quick:
                model = built(Geometry.of(geometry), *described(setting), seed)
                yield f"{path.stem} {setting} seed {seed}", list(seeded_maps(*model, record))


def seeded_maps(model: StructuredViT, tokens: Tensor, record: dict[str, Tensor]) -> Iterator[Difference]:
    """Targets equal, maps to 2e-4, the tolerance suggested for 10,000 steps."""
    wanted = targets.shifts(*model.patch_embed.grid_size, model.impulses.offsets[0])
    yield compare("target", wanted, record["target"], 1e-30, 0)
    for name, theirs in record.items():
        if name.startswith("attn_nobias"):
            yield compare("maps", block_maps(model, 0, tokens, bias=False), theirs, 2e-4, 0)
        elif name.startswith("attn_withbias_block"):
            block = int(name.removeprefix("attn_withbias_block"))
            yield compare("maps with biases", block_maps(model, block, tokens, bias=True), theirs, 2e-4, 0)


def check_stats(path: Path, quick: bool = False) -> Iterator[tuple[str, list[Difference]]]:
    for name, geometry in json.loads(path.read_text()).items():
        for setting, facts in geometry.get("settings", {}).items() if isinstance(geometry, dict) else ():
            weight_init, kind = described(setting)
            if quick and isinstance(parse(weight_init), Impulse):
                continue
            seeds = facts.get("seeds") or [run["seed"] for run in facts["runs"]]
            models = [built(Geometry.of(geometry), weight_init, kind, seed) for seed in seeds]
            yield f"{path.stem} {name.split('_')[0]} {setting}", worst_of_each(seeded_stats(models, facts))


def seeded_stats(models: list[tuple[StructuredViT, Tensor]], facts: dict[str, Any]) -> Iterator[Difference]:
    """Every value of every summary in its range; offsets equal and losses near, where they are recorded."""
    ours = [statistics(*model) for model in models]
    for key, summary in facts["summary"].items():
        low, high = summary["suggested_range"]
        centre, reach = (low + high) / 2, max((high - low) / 2, 1e-12)
        values = torch.cat([values[key].flatten() for values in ours])
        farthest = (values.double() - centre).abs().max().item()
        yield Difference("in range", farthest / reach if len(values) == summary["n"] else math.inf, farthest / reach)
    runs = facts.get("runs") or [
        {"offsets_row_col": places, "loss_at_step": losses}
        for places, losses in zip(facts.get("offsets_row_col", []), facts.get("loss_at_step", []), strict=True)
    ]
    for (model, _), run in zip(models, runs, strict=bool(runs)):
        if "offsets_row_col" in run:
            yield compare("offsets", model.impulses.offsets[0], torch.tensor(run["offsets_row_col"]), 1e-30, 0)
            steps = [int(step) for step in run["loss_at_step"]]
            theirs = torch.tensor([*run["loss_at_step"].values()])
            yield compare("losses", model.impulses.losses[0, steps], theirs, 0, LOSSES)


def described(setting: str) -> tuple[str, str]:
    """A setting's name -> `weight_init` and pseudo-input: "impulse3_pseudo_input_U" -> "impulse3", "U"."""
    weight_init, _, kind = setting.partition("_pseudo_input_")
    return "" if weight_init == "default" else weight_init, kind or "P"


class Geometry(tuple):
    """(grid, width, heads, depth, image, patch), hashable."""

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Geometry":
        noted = re.search(r"patch-(\d+)", facts.get("note", ""))
        side_px = facts.get("patch", int(noted[1]) if noted else 2)
        image = facts.get("image", [side * side_px for side in facts["grid"]])
        depth = facts.get("depth", facts.get("depth_run"))
        return cls((tuple(facts["grid"]), facts["width"], facts["heads"], depth, tuple(image), side_px))


@cache
def built(geometry: Geometry, weight_init: str, kind: str, seed: int) -> tuple[StructuredViT, Tensor]:
    """A model as the authors' code builds it from this seed, and the pseudo-input it was (or would be) solved for."""
    _, width, heads, depth, image, side_px = geometry
    options = {
        "img_size": image, "patch_size": side_px, "embed_dim": width, "num_heads": heads, "depth": depth,
        "num_classes": 10, "class_token": False, "no_embed_class": True, "global_pool": "avg", "sin_pe": True,
    }  # fmt: skip
    torch.manual_seed(seed)
    plain = StructuredViT(**options, weight_init="skip")
    tokens = pseudo_input(kind, patch_positions(plain))
    torch.manual_seed(seed)
    with patch.object(mimetic, "uniform_noise", numpy_noise(seed)):
        return StructuredViT(**options, weight_init=weight_init, pseudo_input1=kind, solver="adam"), tokens


def numpy_noise(seed: int) -> Callable[..., Tensor]:
    """`mimetic.uniform_noise` from numpy's legacy generator, as the authors draw it."""
    generator = np.random.RandomState(seed)

    def draw(*shape: int) -> Tensor:
        bound = (3 / shape[-1]) ** 0.5
        return torch.from_numpy(generator.uniform(-bound, bound, shape)).float()

    return draw


@contextmanager
def one_thread() -> Iterator[None]:
    """The records were made on one thread, and such small matrices are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
