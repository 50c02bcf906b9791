"""Growth of the CPU seconds, memory and bytes written of a capture, one factor at a time.

    python examples/benchmarks/growth.py [--out growth.json] [--minutes 30] [--limit 300] [--quick]

Factors are images, tokens, layers, heads and processes of a ViT of width 96 with initial weights, on fractals; ways are
`capture` to disk, and `capture --stats-only` with the default metrics. Each point runs in a process of its own (Linux),
forked from one that has imported everything, after a tiny capture that loads what is loaded late: CPU seconds of it and
its children, bytes passed to write(), and most resident memory beyond the model and what was there, or of a child (the
merge) beyond that of the tiny capture if that is more. Points of --out are not measured again, so a run that was
stopped, or whose --minutes were over, goes on. Written are OUT, a Markdown table OUT.md and a figure OUT.png.

A cost is a sum of powers of a factor, none above what theory says, and of what does not depend on it; so the slope
between two points, of logarithms, is at most that of theory and nears it. The slope of the last two points is bold
where it is larger by more than 0.15.
"""

import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from resident import LargestChild, peak_growth

QUANTITIES = {"cpu": "CPU s", "memory": "memory, MiB", "written": "written, MB"}
UNITS = {"cpu": 1.0, "memory": 2.0**20, "written": 1e6}

PRELOADED = ["attnprobe.workflows.capture", "attnprobe.metrics.engine.kernels"]
"""Modules that import what a capture needs; the second one is skipped where numba is not installed."""

ABOVE = 0.15
"""Excess of a slope over theory that is no noise."""


@dataclass(frozen=True)
class Sizes:
    """What is captured, by how many processes."""

    images: int = 64
    tokens: int = 65
    layers: int = 12
    heads: int = 3
    processes: int = 1

    @property
    def model(self) -> str:
        """The model's name; of 1,374 tokens four are registers, as in DINOv2."""
        registers = next(n for n in (0, 4) if math.isqrt(self.tokens - 1 - n) ** 2 == self.tokens - 1 - n)
        size = 4 * math.isqrt(self.tokens - 1 - registers)
        return (
            f"vit_16:depth={self.layers},embed_dim=96,num_heads={self.heads},mlp_ratio=2,patch_size=4,"
            f"img_size={size},reg_tokens={registers}"
        )


Sweeps = dict[str, tuple[Sizes, tuple[int, ...]]]

SWEEPS: Sweeps = {
    "images": (Sizes(tokens=17), (64, 256, 1024, 4096, 16384, 32768, 65536)),
    "tokens": (Sizes(images=8), (17, 65, 197, 577, 1374)),
    "layers": (Sizes(), (12, 24, 48)),
    "heads": (Sizes(), (3, 6, 12, 24)),
    "processes": (Sizes(images=4096, tokens=17), (1, 2)),
}
"""The sizes around which each factor is varied, and its values."""

TINY = Sizes(images=8, tokens=5, layers=2, heads=1)
QUICK: Sweeps = {"images": (TINY, (8, 16)), "processes": (TINY, (1, 2))}

WAYS = ("to disk", "statistics")

THEORY: dict[tuple[str, str], dict[str, float]] = {
    # Of more images than --keep-values the values of so many are kept, and sums whose size is fixed.
    ("images", "to disk"): {"cpu": 1, "memory": 0, "written": 1},
    ("images", "statistics"): {"cpu": 1, "memory": 0, "written": 1},
    # Maps have tokens squared cells; the Gram matrix of their rows takes tokens cubed products.
    ("tokens", "to disk"): {"cpu": 2, "memory": 2, "written": 2},
    ("tokens", "statistics"): {"cpu": 3, "memory": 2, "written": 1},
    # Pairs of layers, and pairs of heads, are compared.
    ("layers", "to disk"): {"cpu": 1, "memory": 1, "written": 1},
    ("layers", "statistics"): {"cpu": 2, "memory": 1, "written": 2},
    ("heads", "to disk"): {"cpu": 1, "memory": 1, "written": 1},
    ("heads", "statistics"): {"cpu": 2, "memory": 1, "written": 2},
    # Work is shared; each process proves its maps by itself. Memory is that of the largest.
    ("processes", "to disk"): {"cpu": 0, "memory": 0, "written": 0},
    ("processes", "statistics"): {"cpu": 0, "memory": 0, "written": 0},
}
"""Largest exponent of each quantity in each factor."""

Point = dict[str, Any]
"""Sizes, a way, and either the quantities or why there are none."""

Key = tuple[str, Sizes]


def keys(sweeps: Sweeps) -> list[Key]:
    """Ways and sizes of all points, each once, small ones first."""
    longest = max(len(values) for _, values in sweeps.values())
    found = [
        (way, replace(base, **{factor: values[k]}))
        for k in range(longest)
        for factor, (base, values) in sweeps.items()
        for way in WAYS
        if k < len(values)
    ]
    return list(dict.fromkeys(found))


def captured(sizes: Sizes, way: str, folder: Path) -> None:
    """Capture once, as the command does."""
    from attnprobe.core.spec import CaptureSpec
    from attnprobe.workflows.capture import capture_file, measure_live

    spec = CaptureSpec(
        sizes.model,
        data=f"fractals:20:{-(-sizes.images // 20)}",
        split="train",
        images=sizes.images,
        initial=True,
        device="cpu",
        batch_size=64,
    )
    if way == "statistics":
        measure_live(spec, out=folder / "report", formats=("json",))
    else:
        capture_file(spec, out=folder / "maps.h5")


def process_of_a_point(sizes: Sizes, way: str, folder: Path, limit: float, rank: int) -> dict[str, float]:
    """The quantities of one process of a point, which is killed when its time is over."""
    import torch

    from attnprobe.models import build_model

    signal.alarm(math.ceil(limit))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as other, LargestChild() as first:
        captured(TINY, way, Path(other))
    if sizes.processes > 1:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
        os.environ.update(zip(names, map(str, (rank, sizes.processes, rank, sizes.processes, "growth")), strict=True))
    weights = sum(p.nbytes for p in build_model(sizes.model).parameters())
    cpu, written = cpu_seconds(), bytes_written()
    with LargestChild() as child:
        memory = peak_growth(partial(captured, sizes, way, folder)) - weights
    memory = max(memory, child.bytes - first.bytes)
    return {"cpu": cpu_seconds() - cpu, "memory": memory, "written": bytes_written() - written}


def cpu_seconds() -> float:
    """CPU time of this process and its children that ended."""
    return sum(os.times()[:4])


def bytes_written() -> int:
    """Bytes that this process and its children that ended passed to write()."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def measured(way: str, sizes: Sizes, limit: float) -> Point:
    """A point: the quantities of all its processes, or why there are none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    point: Point = {"way": way, "sizes": asdict(sizes)}
    with tempfile.TemporaryDirectory() as name:
        work = partial(process_of_a_point, sizes, way, Path(name), limit)
        try:
            with ProcessPoolExecutor(sizes.processes, context, max_tasks_per_child=1) as pool:
                parts = list(pool.map(work, range(sizes.processes)))
        except BrokenProcessPool:
            return {**point, "why": f"stopped after {limit:.0f} s, or killed"}
        except Exception as error:  # of one point: the others may go well
            return {**point, "why": f"{type(error).__name__}: {error}"}
    total = {name: sum(part[name] for part in parts) for name in QUANTITIES}
    return {**point, **total, "memory": max(part["memory"] for part in parts)}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of log y in log x; NaN of fewer than two points, or where one is not positive."""
    if len(x) < 2 or min(y) <= 0:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def curves(sweeps: Sweeps, found: dict[Key, Point]) -> Iterator[tuple[str, str, list[int], list[Point]]]:
    """Factor, way, values and points of each sweep, of the points that were measured."""
    for factor, (base, values) in sweeps.items():
        for way in WAYS:
            its = {n: found.get((way, replace(base, **{factor: n})), {"why": "not measured"}) for n in values}
            there = {n: point for n, point in its.items() if "why" not in point}
            if there:
                yield factor, way, list(there), list(there.values())


def markdown(sweeps: Sweeps, found: dict[Key, Point]) -> str:
    """A row for each sweep and quantity: first and last value, slopes and theory; then points that failed."""
    heads = ("factor", "way", "what", "first", "last", "slope of all", "at the end", "theory")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for factor, way, x, its in curves(sweeps, found):
        for name, title in QUANTITIES.items():
            y, most = [p[name] / UNITS[name] for p in its], THEORY[factor, way][name]
            end = slope(x[-2:], y[-2:])
            shown = f"**{end:z.2f}**" if end > most + ABOVE else f"{end:z.2f}"
            cells = (f"{factor} {x[0]:,} to {x[-1]:,}", way, title, f"{y[0]:,.1f}", f"{y[-1]:,.1f}")
            lines.append(f"| {' | '.join((*cells, f'{slope(x, y):z.2f}', shown, f'{most:.0f}'))} |")
    failed = [f"- {point['way']}, {point['sizes']}: {point['why']}" for point in found.values() if "why" in point]
    return "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


def draw(sweeps: Sweeps, found: dict[Key, Point], path: Path) -> None:
    """Each quantity against each factor, on logarithmic axes; dotted, theory between the last two points."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    factors = [factor for factor in sweeps if factor != "processes"]
    size = (2.4 * len(factors), 2.0 * len(QUANTITIES))
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(QUANTITIES), len(factors), sharex="col", squeeze=False)
    for factor, way, x, its in curves({name: sweeps[name] for name in factors}, found):
        for axes, (name, title) in zip(grid[:, factors.index(factor)], QUANTITIES.items(), strict=True):
            y = np.array([p[name] / UNITS[name] for p in its])
            (line,) = axes.loglog(x, y, "o-", markersize=3, label=way)
            theory = y[-1] * (np.array(x[-2:]) / x[-1]) ** THEORY[factor, way][name]
            axes.loglog(x[-2:], theory, ":", color=line.get_color())
            axes.set_title(title if factor == factors[0] else "")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            if x[-1] < 10 * x[0]:
                axes.set_xticks(x, labels=map(str, x))
    for axes, factor in zip(grid[-1], factors, strict=True):
        axes.set_xlabel(factor)
    grid[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("growth.json"), help="results; table and figure go beside them"
    )
    parser.add_argument("--minutes", type=float, default=30, help="after which no point begins")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a point is stopped")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    options = parser.parse_args()
    before = json.loads(options.out.read_text())["points"] if options.out.exists() else []
    found: dict[Key, Point] = {(point["way"], Sizes(**point["sizes"])): point for point in before}
    sweeps, until = QUICK if options.quick else SWEEPS, time.monotonic() + 60 * options.minutes
    for way, sizes in keys(sweeps):
        left = until - time.monotonic()
        if (way, sizes) in found or left <= 0:
            continue
        found[way, sizes] = measured(way, sizes, min(options.limit, left))
        print(json.dumps(found[way, sizes]), file=sys.stderr, flush=True)
        options.out.write_text(json.dumps({"torch": version("torch"), "points": list(found.values())}, indent=1))
    table = markdown(sweeps, found)
    options.out.with_suffix(".md").write_text(table)
    draw(sweeps, found, options.out.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
