"""Does a variant cure collapse? Trains five variants at two depths and several seeds, and prints what the verdict says.

    python examples/variants_table.py [--data torch/fashion_mnist] [--depths 12 24] [--seeds 3] [-o variants]

Every run is trained with the variant's recipe for the data (`fashion_*`, `digits_*`; a depth that has none takes the
variant's other one, and a variant without any the plain ViT's), captured and judged: which kinds of collapse are
found, in how many blocks, and what it costs when a block uses the map of the block before, which is tried. A table
row is a variant at a depth: runs that differ in their seed. Below it, each variant against the first one as methods,
with intervals over runs and images. Run again, it goes on where it was stopped; several processes may share the runs.
`--full` takes models of 224 pixels and width 384 instead, which want a GPU.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from attnprobe.core.devices import in_float64
from attnprobe.core.errors import InputError, InUse
from attnprobe.core.evidence import Change
from attnprobe.core.spec import CaptureSpec
from attnprobe.io.run import Run
from attnprobe.models.ablate import Ablatable
from attnprobe.reports import verdict
from attnprobe.training import RECIPES, read_recipe
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.compare import compare
from attnprobe.workflows.measure import examine
from attnprobe.workflows.train import train
from attnprobe.workflows.trial import open_trial

VARIANTS = ("vit", "deepvit", "refiner", "structured", "richvit")
COLUMNS = ("blocks", "variant", "top-1 [%]", "kinds found: in runs, blocks", "in single blocks",
           "similar, softmax", "similar, effective", "harm of repeating blocks [nats]", "of the others")  # fmt: skip
MEASURED = ("map_overlap", "row_entropy_relative", "similar_blocks", "head_divergence", "token_similarity")
"""Metrics by which methods are compared."""

REPEATS = 0.85
"""The verdict's bar for the overlap with the previous block."""


def settings_of(data: str, variant: str, depth: int, full: bool) -> tuple[str, dict[str, Any]]:
    """Recipe and the settings that make it this variant's, of this depth."""
    prefix = {"torch/fashion_mnist": "fashion"}.get(data, "digits")
    own = [name for name in RECIPES if name.startswith(f"{prefix}_{variant}_")]
    exact = f"{prefix}_{variant}_{depth}"
    recipe = exact if exact in own else (own or [f"{prefix}_vit_12" if prefix == "fashion" else "digits_vit_16"])[0]
    kwargs = {**read_recipe(recipe).get("model_kwargs", {}), "depth": depth}
    if full:
        kwargs = {name: value for name, value in kwargs.items() if name in ("depth", "solver")}
    return recipe, {
        "model": f"{variant}_16" if full else f"{variant}_16_digits",
        "model_kwargs": kwargs,
        "dataset": data,
    }


def judged(run: Path, data: str) -> dict[str, Any]:
    """Kinds of collapse found in a captured run, similar blocks, and the harm of using the previous map, by block."""
    e = examine(run, pictures=0)
    findings = verdict(e).findings
    found = [finding for finding in findings if finding.found == "yes"]
    trial = open_trial(run, data=data, images=64)
    harm = harm_of_previous_map(trial.model, (pixels for pixels, _ in trial.labelled()))[1:]
    overlap = e.measurements.get("map_overlap", site="effective").mean.diagonal(1)
    repeats, known = overlap > REPEATS, np.isfinite(harm)
    similar = {site: e.measurements.get("similar_blocks", site=site).summary["count"]
               for site in ("weights", "effective")}  # fmt: skip
    return {
        "kinds": {f.words: [len(f.blocks), f.of, f.first_block] for f in found if not f.single},
        "single": {f.words: len(f.blocks) for f in found if f.single},
        "unknown": [f.words for f in findings if f.found == "cannot say"],
        "similar": similar,
        "harm": [_mean(harm[repeats & known]), _mean(harm[~repeats & known])],
    }


@torch.inference_mode()
def harm_of_previous_map(model: nn.Module, pixels: Iterable[Tensor]) -> np.ndarray:
    """Kullback-Leibler divergence of the classes, block by block, when a block uses the previous block's map.

        H[l] = mean over images of  sum_c p_c ln(p_c / p'_c),      p of the model, p' with A[l] := A[l - 1]

    The functional meaning of repetition: 0 where the two maps are interchangeable. Ours.

    Args:
        model: built like timm's vision transformer, with timm's plain attention or this package's variants.
        pixels: batches [image, channel, row, col].

    Returns:
        [block], nats, float64; NaN for the first block and where numbers of heads differ.

    Raises:
        InputError: another kind of model.
    """
    total, n_images = np.zeros(0), 0
    ablatable = None
    for batch in pixels:
        ablatable = Ablatable(model, batch[:2]) if ablatable is None else ablatable
        if not ablatable.tapped:
            raise InputError(f"maps of {type(model).__name__} cannot be exchanged; only those of timm's plain ViT can.")
        whole = in_float64(ablatable.module(batch)).log_softmax(-1)
        harm = [_divergence(ablatable, block, batch, whole) for block in range(1, len(ablatable.heads) + 1)]
        total = np.array(harm) + (total if len(total) else 0)
        n_images += len(batch)
    return total / max(n_images, 1)


def _divergence(ablatable: Ablatable, block: int, pixels: Tensor, whole: Tensor) -> float:
    """Sum over images; NaN where the block cannot use the previous map."""
    change = Change("map", block)
    if ablatable.refusal(change):
        return float("nan")
    with ablatable.without([change]):
        other = in_float64(ablatable.module(pixels)).log_softmax(-1)
    return float((whole.exp() * (whole - other)).sum())


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def row(depth: int, variant: str, seeds: list[dict[str, Any]]) -> list[str]:
    """One line of the table, of all seeds of a variant at a depth."""
    top1 = 100 * np.array([seed["top1"] for seed in seeds])
    half = stats.t.ppf(0.975, len(top1) - 1) * top1.std(ddof=1) / np.sqrt(len(top1)) if len(top1) > 1 else np.nan
    blocks = defaultdict(list)
    for seed in seeds:
        for words, (n, of, first) in seed["kinds"].items():
            blocks[words].append(f"{n} of {of} from {first}")
    found = [f"{words} {len(each)}/{len(seeds)} ({', '.join(each)})" for words, each in blocks.items()]
    unknown = sorted({words for seed in seeds for words in seed.get("unknown", ())})
    kinds = "; ".join([*(found or ["none"]), *(f"cannot say of {words} in some" for words in unknown)])
    single = sorted({f"{words} ({n})" for seed in seeds for words, n in seed["single"].items()})
    similar = (", ".join(str(seed["similar"][site]) for seed in seeds) for site in ("weights", "effective"))
    harm = (", ".join("–" if seed["harm"][k] is None else f"{seed['harm'][k]:.0e}" for seed in seeds) for k in (0, 1))
    return [str(depth), variant, f"{top1.mean():.1f} ± {half:.1f}", kinds, "; ".join(single) or "–",
            *similar, *harm]  # fmt: skip


def differences(out: Path, methods: dict[str, list[Path]], depth: int) -> None:
    """Print by how much each variant differs from the first, as methods."""
    found, _ = compare(methods, out=out / f"compared-{depth}", metrics=list(MEASURED))
    for each in found.differences:
        if each.overall is not None:
            low, high = each.overall.ci
            print(f"- {depth} blocks, {each.run} minus {next(iter(methods))}, {each.metric} ({each.site}): "
                  f"{each.overall.mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="torch/fashion_mnist", help="or digits, fractals:10:200, a folder")
    parser.add_argument("--depths", nargs="+", type=int, default=[12, 24])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of the recipes'")
    parser.add_argument("--images", type=int, default=256, help="validation images that are captured")
    parser.add_argument("--full", action="store_true", help="224 pixels, width 384; wants a GPU")
    parser.add_argument("-o", "--out", type=Path, default=Path("variants"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts: dict[tuple[int, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for seed, depth, variant in product(range(options.seeds), options.depths, options.variants):
        run = options.out / f"{variant}-{depth}-{seed}"
        results = run / "judged.json"
        if not results.exists():
            recipe, settings = settings_of(options.data, variant, depth, options.full)
            more = {"seed": seed} | ({"epochs": options.epochs} if options.epochs else {})
            try:
                top1 = train(recipe, run, settings=settings | more).top1
            except InUse:  # another process is at it
                continue
            if not Run(run).maps.exists():
                what = ("weights", "effective", "tokens")
                subset = {"data": options.data, "images": options.images, "batch_size": 64}
                capture_file(CaptureSpec(run, what=what, untrained=64, **subset))
            results.write_text(json.dumps({"top1": top1, **judged(run, options.data)}, indent=1))
        facts[depth, variant][seed] = json.loads(results.read_text())
        print(f"{run.name}: {json.dumps(facts[depth, variant][seed]['kinds'])}", flush=True)
    for line in (
        COLUMNS,
        ["---"] * len(COLUMNS),
        *(row(*which, list(seeds.values())) for which, seeds in facts.items()),
    ):
        print("|", " | ".join(line), "|")
    for depth in options.depths:
        whole = [v for v in options.variants if len(facts[depth, v]) == options.seeds > 1]
        if len(whole) > 1:
            methods = {v: [options.out / f"{v}-{depth}-{seed}" for seed in range(options.seeds)] for v in whole}
            differences(options.out, methods, depth)


if __name__ == "__main__":
    main()
