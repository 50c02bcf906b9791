"""CPU seconds of whole commands, in units of an interpreter that imports torch and does nothing.

    python examples/benchmarks/commands.py [--images 360] [--rounds 3] [--runs A B]

Processor time of the process and its children (user and system), so that other work on the machine matters little;
medians. Without --runs, two ViTs of 16 blocks with initial weights are captured on the digits.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HELP = (["--help"], ["report", "--help"], ["list", "metrics"], ["explain", "similar_blocks"])


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command and its children."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def attnprobe(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "attnprobe", *arguments]


def two_runs(folder: Path, images: int) -> list[str]:
    """Maps files of two models that differ in their initial weights."""
    paths = []
    for seed in ("0", "1"):
        path = str(folder / f"vit_s{seed}.h5")
        options = ["--data", "digits", "--images", str(images), "--seed", seed, "--initial", "-o", path]
        subprocess.run(attnprobe("capture", "vit_16_digits", *options), check=True, stdout=subprocess.DEVNULL)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", nargs=2, help="two maps files or runs, instead of fresh ones")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = options.runs or two_runs(folder, options.images)
        commands = {
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            **{" ".join(arguments): attnprobe(*arguments) for arguments in HELP},
            "inspect MAPS": attnprobe("inspect", runs[0]),
            "report RUN": attnprobe("report", runs[0], "-o", str(folder / "report")),
            "compare RUN RUN": attnprobe("compare", *runs, "-o", str(folder / "comparison")),
        }
        print(f"{'command':28} {'CPU s':>7} {'/ import torch':>15}")
        empty = None
        for what, command in commands.items():
            cpu_seconds(command)  # reads files from the disk
            taken = statistics.median(cpu_seconds(command) for _ in range(options.rounds))
            empty = empty or taken
            print(f"{what:28} {taken:7.2f} {taken / empty:15.2f}", flush=True)


if __name__ == "__main__":
    main()
