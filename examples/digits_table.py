"""Do the variants learn, and does their attention collapse? Trains them on digits and prints one table.

    python examples/digits_table.py [--seeds 3] [-o digits-table]

Each variant has its recipe, `attnprobe train digits_NAME_16`; about two minutes a run on one CPU core. Run
again, it goes on where it was stopped.
"""

import argparse
import statistics
from pathlib import Path

import torch

from attnprobe import pipeline
from attnprobe.core.run import Run

VARIANTS = ("vit", "deepvit", "refiner", "structured", "richvit")


def counts(run: Path) -> list[str]:
    """Similar blocks at the softmax and at the effective maps, each with its interval."""
    examined = pipeline.examine(run, metrics=["similar_blocks"], pictures=0)
    told = []
    for name in ("similar_blocks@weights", "similar_blocks"):
        if name in examined.measurements:
            summary = examined.measurements[name].summary
            low, high = summary["count_ci"]
            told.append(f"{summary['count']} ({low}-{high})")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=Path("digits-table"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| variant | accuracy by seed | mean | similar blocks of 16 by seed: softmax / effective (95 % CI) |")
    print("|---|---|---|---|")
    for variant in VARIANTS:
        accuracies, similar = [], []
        for seed in range(options.seeds):
            run = options.out / f"{variant}-{seed}"
            result = pipeline.train(f"digits_{variant}_16", run, settings={"seed": seed})
            accuracies.append(100 * result.top1)
            if not Run(run).maps.exists():
                pipeline.capture(run, what=("weights", "effective"), batch_size=60, untrained=0)
            similar.append(" / ".join(counts(run)))
        shown = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        print(f"| {variant} | {shown} | {statistics.mean(accuracies):.1f} | {'; '.join(similar)} |", flush=True)


if __name__ == "__main__":
    main()
