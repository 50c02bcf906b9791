"""Does a variant cure collapse? Trains small models of several depths, and prints accuracy beside what was measured.

    python examples/variants_table.py [--data digits fractals:10:200] [--depths 16 24 32] [--seeds 3] [-o variants]

Every run is trained with the variant's digits recipe, at the width and for the epochs named here, captured, measured,
and put to the test: blocks called similar and heads called redundant are taken away one after the other. One to five
minutes a run on a CPU core. Run again, it goes on where it was stopped; the table is of the runs that are there
(other widths and epochs want another folder).
Below it, of every variant beside the first as methods of several seeds, by how many similar blocks they differ, with
the interval over runs and images; see OUT/DATA-DEPTH/comparison.md.
`--full` takes the models of 224 pixels and width 384 instead, which want a GPU.
`--kinds` prints another table: the kinds of collapse that the verdict finds in each run, and whether blocks that
overlap with the one before can use its map, which is tried.
"""

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from attnprobe.core.spec import CaptureSpec
from attnprobe.io.run import Run
from attnprobe.models.harm import harm_of_previous_map
from attnprobe.reports import verdict
from attnprobe.training import read_recipe
from attnprobe.workflows.ablate import verify_drops, write_evidence
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.compare import compare
from attnprobe.workflows.measure import examine
from attnprobe.workflows.train import train
from attnprobe.workflows.trial import open_trial

VARIANTS = ("vit", "deepvit", "refiner", "structured", "richvit")
COLUMNS = ("data", "blocks", "variant", "top-1 by seed [%]", "mean", "similar, softmax", "similar, effective",
           "untrained: softmax/effective", "redundant heads [%]", "without the similar blocks",
           "without the redundant heads")  # fmt: skip


KIND_COLUMNS = ("data", "blocks", "variant, seed", "top-1 [%]", "kinds found: blocks", "harm of repeating blocks, nats",
                "of the others", "rank correlation with the harm: overlap", "cosine of columns")  # fmt: skip


def judged(run: Path) -> dict[str, Any]:
    """The kinds that the verdict finds in one captured run, and the harm of using the map before, block by block."""
    e = examine(run, pictures=0)
    found = [finding for finding in verdict(e).findings if finding.found == "yes"]
    trial = open_trial(run, images=64)
    harm = harm_of_previous_map(trial.model, (pixels for pixels, _ in trial.labelled()))
    overlap, ratio = (
        e.measurements.get("map_overlap", site="effective"),
        e.measurements.get("similar_blocks", site="effective"),
    )
    softmax = e.measurements.get("map_overlap@weights", e.measurements["map_overlap"])
    by = {"overlap": (overlap or softmax).mean.diagonal(1), "cosine": ratio.summary["ratio"][1:] if ratio else []}
    known = np.isfinite(harm[1:])
    repeats = (overlap or softmax).mean.diagonal(1) > 0.85
    return {
        "accuracy": e.info.get("accuracy"),
        "kinds": {finding.words: f"{len(finding.blocks)} of {finding.of}" for finding in found},
        "repeating": _mean(harm[1:][repeats & known]),
        "others": _mean(harm[1:][~repeats & known]),
        **{name: float(spearmanr(-harm[1:][known], np.array(x, float)[known])[0]) for name, x in by.items()},
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def kinds_row(data: str, depth: int, variant: str, seed: int, found: dict[str, Any]) -> list[str]:
    """One line of the table of kinds."""

    def shown(x: float | None, form: str) -> str:
        return "–" if x is None or not np.isfinite(x) else form.format(x)

    kinds = "; ".join(f"{words}: {blocks}" for words, blocks in found["kinds"].items()) or "none"
    harms = (shown(found[name], "{:.1e}") for name in ("repeating", "others"))
    ranks = (shown(found[name], "{:.2f}") for name in ("overlap", "cosine"))
    return [data, str(depth), f"{variant}, {seed}", f"{100 * found['accuracy']:.1f}", kinds, *harms, *ranks]


def measured(run: Path) -> dict[str, Any]:
    """What one captured run comes to."""
    examined = examine(run, metrics=["similar_blocks", "head_divergence"], pictures=0)
    found: dict[str, Any] = {}
    for key, site in (("similar_blocks@weights", "softmax"), ("similar_blocks", "effective")):
        m = examined.measurements.get(key, examined.measurements["similar_blocks"])
        found[site] = {"count": m.summary["count"], "ci": list(m.summary["count_ci"])}
        found[site]["untrained"] = m.baselines["untrained"].summary["count"]
    heads = examined.measurements["head_divergence"].summary
    found["redundant"], found["heads"] = heads["redundant"], heads["of"]
    evidence = verify_drops(run, images=180)
    write_evidence(evidence, run)
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
    parser.add_argument("--kinds", action="store_true", help="the table of kinds of collapse, one line a run")
    parser.add_argument("--full", action="store_true", help="224 pixels, width 384; 64 images are captured")
    parser.add_argument("-o", "--out", type=Path, default=Path("variants"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = {} if options.full else {"embed_dim": options.width, "num_heads": options.width // 16}
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    lines: list[list[str]] = []
    for seed, *which in product(range(options.seeds), options.data, options.depths, options.variants):
        data, depth, variant = which
        run = folder_of(options.out, data, variant, depth, seed)
        images = 64 if options.full or options.kinds else None
        wanted = ("weights", "effective", "tokens") if options.kinds else ("weights", "effective")
        if not (Run(run).maps if options.kinds else run / "measured.json").exists():
            recipe = f"digits_{variant}_16"
            kwargs = {**read_recipe(recipe).get("model_kwargs", {}), **size, "depth": depth}
            settings = {"model": f"{variant}_16" if options.full else f"{variant}_16_digits", "model_kwargs": kwargs,
                        "dataset": data, "epochs": options.epochs, "seed": seed}  # fmt: skip
            top1 = train(recipe, run, settings=settings).top1
            if not Run(run).maps.exists():
                capture_file(CaptureSpec(run, what=wanted, images=images, batch_size=60, untrained=32))
            if not options.kinds:
                (run / "measured.json").write_text(json.dumps({"top1": top1, **measured(run)}, indent=1))
        if options.kinds:
            lines.append(kinds_row(data, depth, variant, seed, judged(run)))
        else:
            facts = json.loads((run / "measured.json").read_text())
            found.setdefault((data, depth, variant), []).append(facts)
    columns = KIND_COLUMNS if options.kinds else COLUMNS
    lines += [row(*which, seeds) for which, seeds in found.items()]
    for line in (columns, ["---"] * len(columns), *lines):
        print("|", " | ".join(line), "|")
    for data, depth in product(options.data, options.depths) if min(options.seeds, len(options.variants)) > 1 else ():
        differences(options.out, data, depth, options.variants, options.seeds)


if __name__ == "__main__":
    main()
