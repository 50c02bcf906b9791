"""Does a variant cure collapse? Trains small models of several depths, and prints accuracy beside what was measured.

    python examples/variants_table.py [--data digits fractals:10:200] [--depths 16 24 32] [--seeds 3] [-o variants]

Every run is trained with the variant's digits recipe, at the width and for the epochs named here, captured, measured,
and put to the test: blocks called similar and heads called redundant are taken away one after the other. One to five
minutes a run on a CPU core. Run again, it goes on where it was stopped; the table is of the runs that are there
(other widths and epochs want another folder).
Below it, of every variant beside the first as methods of several seeds, by how many similar blocks they differ, with
the interval over runs and images; see OUT/DATA-DEPTH/comparison.md.
`--full` takes the models of 224 pixels and width 384 instead, which want a GPU.
"""

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import torch

from attnprobe import pipeline
from attnprobe.ablation import verify_drops
from attnprobe.comparison import compare
from attnprobe.core.run import Run
from attnprobe.training import read_recipe

VARIANTS = ("vit", "deepvit", "refiner", "structured", "richvit")
COLUMNS = ("data", "blocks", "variant", "top-1 by seed [%]", "mean", "similar, softmax", "similar, effective",
           "untrained: softmax/effective", "redundant heads [%]", "without the similar blocks",
           "without the redundant heads")  # fmt: skip


def measured(run: Path, images: int | None) -> dict[str, Any]:
    """What one run comes to, once it is trained, by its maps of all or so many images."""
    if not Run(run).maps.exists():
        pipeline.capture(run, what=("weights", "effective"), images=images, batch_size=60, untrained=32)
    examined = pipeline.examine(run, metrics=["similar_blocks", "head_divergence"], pictures=0)
    found: dict[str, Any] = {}
    for key, site in (("similar_blocks@weights", "softmax"), ("similar_blocks", "effective")):
        m = examined.measurements.get(key, examined.measurements["similar_blocks"])
        found[site] = {"count": m.summary["count"], "ci": list(m.summary["count_ci"])}
        found[site]["untrained"] = m.baselines["untrained"].summary["count"]
    heads = examined.measurements["head_divergence"].summary
    found["redundant"], found["heads"] = heads["redundant"], heads["of"]
    evidence, _ = verify_drops(run, images=180, out=run)
    drops = evidence.table().to_dict("records")
    for curve in ("blocks", "heads"):
        steps = [step for step in drops if step["curve"] == curve]
        free = evidence.free(curve)
        found[curve + "_removed"] = {
            "candidates": len(steps),
            "all": steps[-1]["gained"] if steps else None,
            "free": 0 if free is None else len(free.changes),
        }
    return found


def row(data: str, depth: int, variant: str, seeds: list[dict[str, Any]]) -> list[str]:
    """One line of the table, of all seeds of a variant."""

    def each(form: Any) -> str:
        return ", ".join(form(seed) for seed in seeds)

    def similar(site: str) -> str:
        return each(lambda seed: "{} ({}–{})".format(seed[site]["count"], *seed[site]["ci"]))

    def removed(name: str) -> str:
        def one(gone: dict[str, Any]) -> str:
            return (
                f"{100 * gone['all']:+.1f} without {gone['candidates']}, {gone['free']} free"
                if gone["candidates"]
                else "–"
            )

        return each(lambda seed: one(seed[name]))

    top1 = statistics.mean(seed["top1"] for seed in seeds)
    return [data, str(depth), variant, each(lambda seed: f"{100 * seed['top1']:.1f}"), f"{100 * top1:.1f}",
            similar("softmax"), similar("effective"),
            each(lambda seed: "/".join(str(seed[site]["untrained"]) for site in ("softmax", "effective"))),
            each(lambda seed: f"{100 * seed['redundant'] / seed['heads']:.0f}"), removed("blocks_removed"),
            removed("heads_removed")]  # fmt: skip


def folder_of(out: Path, data: str, *which: object) -> Path:
    """`variants/digits-vit-16-0`."""
    return out / "-".join(map(str, (data.replace(":", "-"), *which)))


def differences(out: Path, data: str, depth: int, variants: list[str], seeds: int) -> None:
    """Print how many more similar blocks each variant has than the first."""
    methods = {variant: [folder_of(out, data, variant, depth, seed) for seed in range(seeds)] for variant in variants}
    found, _ = compare(methods, out=folder_of(out, data, depth), metrics=["similar_blocks"])
    for row in found.differences:
        if row.overall is not None:
            low, high = row.overall.ci
            which = f"{data}, {depth} blocks, {row.run} - {variants[0]}, {row.site}"
            interval = f"95 % interval {low:+.1f} to {high:+.1f}"
            print(f"{which}: {row.overall.mean:+.1f} similar blocks ({interval}), {row.overall.effect:+.1f} run SD")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["digits", "fractals:10:200"])
    parser.add_argument("--depths", nargs="+", type=int, default=[16, 24, 32])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=64, help="with heads of 16")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--full", action="store_true", help="224 pixels, width 384; 64 images are captured")
    parser.add_argument("-o", "--out", type=Path, default=Path("variants"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = {} if options.full else {"embed_dim": options.width, "num_heads": options.width // 16}
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for seed, *which in product(range(options.seeds), options.data, options.depths, options.variants):
        data, depth, variant = which
        run = folder_of(options.out, data, variant, depth, seed)
        if not (run / "measured.json").exists():
            recipe = f"digits_{variant}_16"
            kwargs = {**read_recipe(recipe).get("model_kwargs", {}), **size}
            model = f"{variant}_{depth}" if options.full else f"{variant}_{depth}_digits"
            settings = {"model": model, "model_kwargs": kwargs, "dataset": data, "epochs": options.epochs, "seed": seed}
            top1 = pipeline.train(recipe, run, settings=settings).top1
            facts = {"top1": top1, **measured(run, 64 if options.full else None)}
            (run / "measured.json").write_text(json.dumps(facts, indent=1))
        found.setdefault((data, depth, variant), []).append(json.loads((run / "measured.json").read_text()))
    for line in (COLUMNS, ["---"] * len(COLUMNS), *(row(*which, seeds) for which, seeds in found.items())):
        print("|", " | ".join(line), "|")
    for data, depth in product(options.data, options.depths) if min(options.seeds, len(options.variants)) > 1 else ():
        differences(options.out, data, depth, options.variants, options.seeds)


if __name__ == "__main__":
    main()
