"""What do capture, metrics and storage cost, in units of the model's own forward pass?

    python examples/benchmarks/pipeline.py [--rounds 5] [--images 32] [--threads 1]

A 16-block, 12-head, 197-token ViT with random weights. Every line is a ratio of two things run in turn in one process:
process CPU time (all threads) unless it says otherwise, median over rounds. What a round wrote is removed: otherwise
each takes fresh memory for the page cache, which costs ten times as much as writing on a virtual machine that gives its
free memory back. Memory is the growth of the process's peak resident size.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from resident import peak_growth

from attnprobe.capturing import Capture, capture, find_layers
from attnprobe.capturing.hooks import unfused
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.io import fs
from attnprobe.metrics import METRICS, measure
from attnprobe.models import build_model
from attnprobe.store import CapturePlan, MapWriter, shard

BATCH = 4
SITES = ("weights", "effective")


def taken(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def cpu(work: Callable[[], object]) -> float:
    return taken(work, time.process_time)


def in_turn(
    rounds: int,
    reference: Callable[[], object],
    work: Callable[[], object],
    clock: Callable[[], float] = time.process_time,
) -> tuple[float, float]:
    """Median seconds of both, CPU time unless another clock is given, after one warm-up of each."""
    reference(), work()
    pairs = [(taken(reference, clock), taken(work, clock)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def plain_forward(model: torch.nn.Module, pixels: torch.Tensor, batch: int = BATCH) -> None:
    """The same forward pass with the explicit softmax, nobody listening."""
    with torch.inference_mode(), unfused(model.modules(), find_layers(model)):
        for start in range(0, len(pixels), batch):
            model(pixels[start : start + batch])


def double_loop(values: torch.Tensor) -> torch.Tensor:
    """Column cosine of every layer pair the way a throw-away script does it."""
    layers = values.shape[1]
    out = torch.empty(len(values), layers, layers)
    for p in range(layers):
        for r in range(layers):
            out[:, p, r] = F.cosine_similarity(values[:, p], values[:, r], dim=-2).mean((-1, -2))
    return out


def peaky_maps(images: int) -> AttentionMaps:
    """Softmax of logits with standard deviation 3, as trained deep networks have."""
    generator = torch.Generator().manual_seed(0)
    values = (3 * torch.randn(images, 16, 12, 197, 197, generator=generator)).softmax(-1)
    return AttentionMaps(values, tuple(str(i) for i in range(images)), TokenGrid(14, 14))


def store(capturing: Capture, folder: Path) -> Path:
    """Capture into committed shards; returns where they are."""
    plan = CapturePlan(image_ids=tuple(str(i) for i in range(len(capturing.images))), model="benchmark")
    with MapWriter(Path(tempfile.mkdtemp(dir=folder)) / "maps.h5", plan, keep_shards=True) as writer:
        for maps in capturing.batches():
            writer.append(maps)
        return writer.close(capturing.certificate.to_dict())


def merge(capturing: Capture, folder: Path, rounds: int) -> float:
    """Median CPU seconds, the child process included, of making one file of all shards."""
    plan = CapturePlan(image_ids=tuple(str(i) for i in range(len(capturing.images))), model="benchmark")
    times = []
    for _ in range(rounds):
        path = store(capturing, folder).with_suffix(".h5")
        start = os.times()
        with MapWriter(path, plan) as writer:
            writer.close()
        times.append(sum(os.times()[:4]) - sum(start[:4]))
    return statistics.median(times)


def cost_of_safety(capturing: Capture, folder: Path) -> float:
    """Share of the CPU seconds of a capture to disk for checksums, hashes and commits, besides writing the bytes."""
    seconds: Counter[str] = Counter()

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return work(*args, **options)
            finally:
                seconds[name] += time.thread_time() - start

        return call

    with ExitStack() as stack:
        for owner, name in ((shard, "checked"), (shard, "seal_shard"), (fs, "write_file"), (fs, "write")):
            stack.enter_context(mock.patch.object(owner, name, timed(name, getattr(owner, name))))
        whole = cpu(lambda: store(capturing, folder))
    return (seconds.total() - 2 * seconds["write"]) / whole  # it is part of write_file


def hand_on(capturing: Capture) -> None:
    for maps in capturing.batches():
        del maps  # or two batches would be alive while the next one is computed


def memory(capturing: Capture, one_batch: int) -> None:
    """Print the peak memory beyond the model of handing on and of storing, in units of one batch's maps."""
    handed = peak_growth(lambda: hand_on(capturing))
    with tempfile.TemporaryDirectory() as folder:
        stored = peak_growth(lambda: store(capturing, Path(folder)))
    print(
        f"memory beyond the model, {len(capturing.images):3} images: "
        f"handed on {handed / one_batch:.2f} x one batch of maps (goal <= 1.7), "
        f"stored {stored / 2**20:.0f} MiB = {stored / one_batch:.2f} x (goal <= 1.7 and two shards)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; the writer has one thread of its own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build_model("vit_16", seed=0).eval()
    pixels = torch.randn(options.images, 3, 224, 224)
    capturing = capture(model, pixels, SITES, batch_size=BATCH)
    _ = capturing.certificate

    def forward() -> None:
        plain_forward(model, pixels)

    def measured(*names: str) -> Callable[[], object]:
        return lambda: measure(capturing, [METRICS[name] for name in names], bootstrap=0)

    rows: list[tuple[str, float, str]] = []

    def ratio(what: str, work: Callable[[], object], goal: str, clock: Callable[[], float] = time.process_time) -> None:
        plain, ours = in_turn(options.rounds, forward, work, clock)
        rows.append((what, plain / ours, goal))
        print(f"{what:58} {plain / ours:6.3f}  {goal}", flush=True)

    print(f"{options.images} images, batch {BATCH}, {options.threads} thread(s), torch {torch.__version__}, "
          f"{options.rounds} rounds\n{'plain unfused forward / this':58} {'ratio':>6}  goal")  # fmt: skip
    ratio("capture, maps handed on", lambda: hand_on(capturing), ">= 0.95")
    three = ("row_entropy", "head_similarity", "layer_similarity")
    ratio("capture + entropy + head cosine + cross-layer cosine", measured(*three), ">= 0.88")
    ratio("the same + exact Jensen-Shannon", measured(*three, "head_divergence"), ">= 0.78")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def to_disk() -> None:
            shutil.rmtree(store(capturing, folder).parent)

        ratio("capture to disk (committed shards)", to_disk, "")
        ratio("the same by the clock: other cores compress", to_disk, ">= 0.85", time.perf_counter)
        safety = statistics.median(cost_of_safety(capturing, folder) for _ in range(options.rounds))
        print(f"{'of that, checksums, hashes and commits, not the writing':58} {safety:6.3f}  <= 0.05")
        seconds = merge(capturing, folder, options.rounds)
        print(
            f"{'CPU ms per image to make one file of the shards, child included':58} {1e3 * seconds / len(pixels):6.1f}"
        )

    maps = next(iter(capturing)).values.clone()
    cosine = METRICS["layer_similarity"]
    batch = pixels[: len(maps)]
    plain, ours = in_turn(options.rounds, lambda: plain_forward(model, batch), lambda: cosine(maps))
    print(f"{'all-pairs column cosine, in forward passes':58} {ours / plain:6.3f}  <= 0.12")
    loop, ours = in_turn(options.rounds, lambda: double_loop(maps), lambda: cosine(maps))
    print(f"{'double loop of F.cosine_similarity / all-pairs column cosine':58} {loop / ours:6.1f}  >= 15")

    peaky = peaky_maps(8)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "maps.h5"
        with MapWriter(path, CapturePlan(image_ids=peaky.image_ids, model="benchmark")) as writer:
            writer.append([peaky])
        print(f"{'file size / float32 bytes, peaky maps':58} {path.stat().st_size / peaky.values.nbytes:6.3f}  <= 0.38")
    del peaky, maps

    if sys.platform == "linux":
        one_batch = BATCH * 16 * 12 * 197 * 197 * 4
        for factor in (1, 3):
            memory(capture(model, pixels.repeat(factor, 1, 1, 1), SITES, batch_size=BATCH), one_batch)


if __name__ == "__main__":
    main()
