"""Does the demo say the same with another seed and another number of threads? Both change what is trained.

    python examples/benchmarks/demo_words.py [--seeds 5] [--threads 1 2] [--out runs/demo_words]

Trains the demo's two models for each pair of seed and threads, and prints for each model which kinds of collapse its
verdict names, with the block each starts at, and in how many of the runs each kind is named. README quotes of the demo
only what nearly all of them say. Run again it goes on where it was stopped; two processes may share the pairs.
"""

import argparse
from collections import Counter
from pathlib import Path

from attnprobe.core.errors import InUse
from attnprobe.core.spec import CaptureSpec
from attnprobe.io.run import Run
from attnprobe.reports import verdict
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.demo import PAIR
from attnprobe.workflows.measure import examine
from attnprobe.workflows.train import train

MODELS = tuple(recipe.removeprefix("digits_") for recipe in PAIR)


def kinds_of(run: Path, seed: int, threads: int, model: str) -> tuple[float, dict[str, int]]:
    """Top-1, and kind of collapse -> its first block, of those that the headline names as more than single blocks."""
    top1 = train(f"digits_{model}", run, settings={"seed": seed, "threads": threads}).top1
    if not Run(run).maps.exists():
        capture_file(CaptureSpec(run, batch_size=60))
    found = verdict(examine(run, pictures=0)).findings
    return top1, {f.kind: f.first_block or 0 for f in found if f.found == "yes" and not f.single}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo_words"))
    options = parser.parse_args()
    pairs = [(seed, threads) for seed in range(options.seeds) for threads in options.threads]
    for model in MODELS:
        said, accuracies = [], []
        for seed, threads in pairs:
            try:
                top1, kinds = kinds_of(options.out / f"{model}_s{seed}_t{threads}", seed, threads, model)
            except InUse:  # another process is at it
                continue
            said.append(kinds)
            accuracies.append(top1)
            print(f"{model}, seed {seed}, {threads} threads: top-1 {top1:.1%}, {kinds or 'none'}", flush=True)
        print(f"{model}: top-1 {min(accuracies):.1%} to {max(accuracies):.1%} over {len(said)} runs")
        for kind, n in Counter(kind for kinds in said for kind in kinds).most_common():
            first = Counter(kinds[kind] for kinds in said if kind in kinds).most_common()
            print(f"{model}: {kind} in {n} of {len(said)}, from block {', '.join(f'{b} ({n})' for b, n in first)}")


if __name__ == "__main__":
    main()
