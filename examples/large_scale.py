"""A million images through DINOv3-7B on 64 GPUs: what is read, computed, kept and paid, and how it is shared out.

    python examples/large_scale.py [--images 1000000] [--gpus 64] [--model vit_7b_patch16_dinov3] [--measure]

Prints two tables; examples/large_scale.md explains them. Each figure says where it comes from: "derived" from the model
and the metrics themselves (shapes, on the device "meta": nothing is loaded), "measured" on this project's machine, or
"assumed", as options that can be changed. The second table is a simulation of scheduling, seeded, with part times that
vary as measured ones did; --measure measures them and decoding again, here, with a small model.
"""

import argparse
import heapq
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

import attnprobe as ap
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.slices import measure_slice
from attnprobe.models import build_model

PART = 64
"""Images of a part, as `--stats-only` cuts them."""

RESAMPLES, FEWEST, RESAMPLED_BYTES = 400, 100, 16 * 2**20
"""Of mergeable sums: resamples of the images, the number below which there are none, and most bytes of a metric's."""

DECODING_MS = 2.69
# fmt: off
RELATIVE = (
    1.14, 1.05, 0.97, 0.88, 0.9, 0.97, 1.0, 1.01, 1.08, 1.11, 1.08, 1.15, 1.02, 1.04, 1.01, 1.1, 1.11, 1.0, 1.04, 0.98,
    1.02, 0.98, 0.99, 0.97, 1.03, 1.06, 0.94, 0.97, 0.93, 1.1, 0.87, 0.79, 0.89, 0.96, 0.84, 1.15, 0.89, 0.97, 0.83,
    1.05,
)
# fmt: on
"""Measured by --measure on a 2-core Intel Xeon with other work on it, torch 2.14.1: decoding and resizing of one JPEG
of 500 x 375 pixels, ms of CPU; seconds of 40 parts of 64 images of vit_16_digits, over their median."""


@dataclass(frozen=True)
class Shape:
    """Sizes that the plan follows from."""

    parameters: int
    blocks: int
    heads: int
    tokens: int
    width: int
    cells: dict[str, int]

    @property
    def flops(self) -> float:
        """Of one image: two per weight and token, and Q K^T and A V."""
        return 2.0 * self.parameters * self.tokens + 4.0 * self.blocks * self.tokens**2 * self.width

    @property
    def map_bytes(self) -> float:
        return 4.0 * self.blocks * self.heads * self.tokens**2

    @property
    def value_bytes(self) -> float:
        """Values of all metrics of one image, float32."""
        return 4.0 * sum(self.cells.values())

    @property
    def sum_bytes(self) -> float:
        """Sums of all metrics: count, mean, squares, and those over resamples, of few where cells are many."""
        possible = {cells: min(RESAMPLES, RESAMPLED_BYTES // (8 * cells)) for cells in self.cells.values()}
        resampled = sum(8 * cells * possible[cells] for cells in self.cells.values() if possible[cells] >= FEWEST)
        return 3 * 8.0 * sum(self.cells.values()) + resampled


def shape_of(name: str) -> Shape:
    """Of a timm model and the default metrics; the metrics run on one image of two layers' worth of empty maps."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(name)
    prefix, size = model.num_prefix_tokens, model.default_cfg["input_size"][-1]
    side, blocks, heads = size // model.patch_embed.patch_size[0], len(model.blocks), model.blocks[0].attn.num_heads
    grid = TokenGrid(side, side, tuple(f"prefix{i}" for i in range(prefix)))
    few = 5  # queries and keys of the maps that metrics are tried on: cells depend on layers, heads and width alone
    tried = TokenGrid(2, 2, ("cls",))
    maps = AttentionMaps(torch.full((1, blocks, heads, few, few), 1 / few), ("x",), tried,
                         tokens=torch.randn(1, blocks, few, model.embed_dim))  # fmt: skip
    cells = {metric.name: metric.per_image(maps)[0].numel() for metric in choose(["default"])[0]}
    parameters = sum(p.numel() for p in model.parameters())
    return Shape(parameters, blocks, heads, grid.n_tokens, model.embed_dim, cells)


@dataclass(frozen=True)
class Fleet:
    """Workers, and what happens to them.

    Attributes:
        workers: number of them.
        slow: share of the workers that take `factor` times as long.
        hours: mean time between failures of one worker; infinite for none.
        restart: seconds until a failed worker works again: found dead, started, weights loaded.
    """

    workers: int
    slow: float = 0.0
    factor: float = 3.0
    hours: float = np.inf
    restart: float = 120.0


def simulate(
    relative: tuple[float, ...], parts: int, seconds: float, fleet: Fleet, pulled: bool, seed: int
) -> tuple[float, int]:
    """Seconds until all parts are done, and how many were begun again.

    Args:
        relative: measured times of parts over their median; each part takes one of them, times `seconds`.
        parts: number of them.
        pulled: a free worker takes the next part (claims, Ray); else each has an equal run of them from the start.
    """
    rng = np.random.default_rng(seed)
    times = seconds * rng.choice(np.array(relative), parts)
    pace = np.where(rng.random(fleet.workers) < fleet.slow, fleet.factor, 1.0)
    own = [list(run[::-1]) for run in np.array_split(np.arange(parts), fleet.workers)]
    queue, again, end = list(range(parts))[::-1], 0, 0.0
    free = [(0.0, worker) for worker in range(fleet.workers)]
    failure = rng.exponential(1.0, fleet.workers) * fleet.hours * 3600
    waiting: list[tuple[float, int]] = []
    while free:
        now, worker = heapq.heappop(free)
        todo = queue if pulled else own[worker]
        while waiting and waiting[0][0] <= now:  # lost parts are free again when their worker is known to be dead
            todo.append(heapq.heappop(waiting)[1])
        if not todo:
            if waiting:
                heapq.heappush(free, (waiting[0][0], worker))
            continue
        part = todo.pop()
        done = now + times[part] * pace[worker]
        if failure[worker] < done:
            back = failure[worker] + fleet.restart
            failure[worker] = back + rng.exponential(fleet.hours * 3600)
            again += 1
            if pulled:
                heapq.heappush(waiting, (back, part))
            else:
                todo.append(part)
            heapq.heappush(free, (back, worker))
        else:
            end = max(end, done)
            heapq.heappush(free, (done, worker))
    return end, again


def measured() -> tuple[float, tuple[float, ...]]:
    """`DECODING_MS` and `RELATIVE`, of this machine."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    smooth = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
    smooth.save(buffer, "JPEG", quality=90)

    def decode() -> None:
        Image.open(io.BytesIO(buffer.getvalue())).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC).load()

    decode()
    start = time.process_time()
    for _ in range(50):
        decode()
    decoding = (time.process_time() - start) / 50 * 1e3
    model = build_model("vit_16_digits", num_classes=10, seed=0).eval()
    pixels, seconds = torch.randn(PART, 3, 32, 32), []
    for _ in range(41):
        start = time.perf_counter()
        measure_slice(ap.capture(model, pixels, tokens=True), ["default"])
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    return decoding, tuple(round(s / median, 2) for s in seconds[1:])


def plan(shape: Shape, decoding: float, options: argparse.Namespace) -> tuple[list[tuple[str, str, str]], float]:
    """Rows of the plan: what, how much, where it comes from; then seconds of one part."""
    n, gpus, rate = options.images, options.gpus, options.tflops * 1e12 * options.utilisation
    forward = shape.flops / rate
    metrics = options.passes * shape.map_bytes / (options.bandwidth * 1e12)
    seconds, parts = PART * (forward + metrics), -(-n // PART)
    hours = parts * seconds / gpus / 3600
    cores = decoding / 1e3 / (forward + metrics)
    sums, used = shape.sum_bytes, f"{options.tflops:g} TFLOP/s, {options.utilisation:.0%} of them used"
    over = f"maps read or written {options.passes:g} times at {options.bandwidth:g} TB/s"
    one_map, values = f"{shape.map_bytes / 1e6:.0f} MB", f"{shape.value_bytes / 1e6:.2f} MB"
    cost = f"{hours * gpus:.0f} GPU hours, {hours * gpus * options.price:.0f} $"
    rows = [
        ("weights, float32", f"{4 * shape.parameters / 1e9:.1f} GB", "derived"),
        ("images read", f"{n * options.kilobytes / 1e6:.0f} GB", f"assumed: {options.kilobytes:g} kB each"),
        ("FLOPs of all forward passes", f"{n * shape.flops:.2e}", f"derived: {shape.flops / 1e12:.2f} T per image"),
        ("maps, were they stored", f"{n * shape.map_bytes / 1e12:.0f} TB", f"derived: {one_map} per image, float32"),
        (
            "values, were all kept",
            f"{n * shape.value_bytes / 1e12:.2f} TB",
            f"derived: {values} per image, default set",
        ),
        ("sums kept instead", f"{sums / 1e6:.0f} MB", "derived: does not grow with the images"),
        ("parts", f"{parts:,}", f"derived: {PART} images each"),
        ("sums merged", f"{parts - 1:,}", "derived: a tree over the parts"),
        ("written and read for that", f"{2 * parts * sums / 1e12:.1f} TB", "derived: at most, every part's and merged"),
        ("forward pass of one image", f"{forward * 1e3:.1f} ms", f"assumed: {used}"),
        ("metrics of one image", f"{metrics * 1e3:.1f} ms", f"assumed: {over}"),
        ("decoding of one image", f"{decoding:.1f} ms of a core", f"measured; {cores:.2f} cores for each GPU"),
        ("one part", f"{seconds:.1f} s", "derived: from passes and metrics"),
        ("all parts, nothing goes wrong", f"{hours * 60:.0f} min", f"derived: {gpus} GPUs"),
        ("claims of parts", f"{parts / hours / 3600:.0f} per second", "derived"),
        ("cost", cost, f"assumed: {options.price:g} $ per GPU hour"),
    ]
    return rows, seconds


FLEETS: dict[str, Callable[[int], Fleet]] = {
    "nothing goes wrong": Fleet,
    "5 % of the workers three times as slow": lambda n: Fleet(n, slow=0.05),
    "each worker fails once in 24 hours": lambda n: Fleet(n, hours=24),
    "each worker fails once an hour": lambda n: Fleet(n, hours=1),
    "both: slow ones, and once an hour": lambda n: Fleet(n, slow=0.05, hours=1),
}


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for row in (header, ("---",) * len(header), *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_7b_patch16_dinov3", help="a ViT of timm's")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--kilobytes", type=float, default=110, help="of an image")
    parser.add_argument("--tflops", type=float, default=67, help="of a GPU; 67: H100 in float32, 989: bfloat16")
    parser.add_argument("--utilisation", type=float, default=0.5)
    parser.add_argument("--bandwidth", type=float, default=3.35, help="of a GPU's memory, TB/s")
    parser.add_argument("--passes", type=float, default=100, help="times that metrics go over the maps")
    parser.add_argument("--price", type=float, default=3, help="$ of a GPU hour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="decoding and part times, on this machine")
    options = parser.parse_args()
    decoding, relative = measured() if options.measure else (DECODING_MS, RELATIVE)
    if options.measure:
        print(f"DECODING_MS = {decoding:.2f}\nRELATIVE = {relative}\n")
    rows, seconds = plan(shape_of(options.model), decoding, options)
    table(("what", "how much", "from"), rows)
    print()
    lines = []
    for name, fleet in FLEETS.items():
        for size in (PART, 16 * PART):
            parts, one = -(-options.images // size), seconds * size / PART
            ideal = parts * one * statistics.mean(relative) / options.gpus
            run = (relative, parts, one, fleet(options.gpus))
            found = [simulate(*run, pulled, options.seed) for pulled in (True, False)]
            minutes = [f"{end / 60:.1f} min, {ideal / end:.0%}" for end, _ in found]
            lines.append((name, str(size), *minutes, str(found[0][1])))
    table(("what happens", "images of a part", "parts are pulled", "parts are dealt out", "done again"), lines)


if __name__ == "__main__":
    main()
