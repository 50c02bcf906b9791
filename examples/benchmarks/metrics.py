"""What does each metric cost, in units of the model's own forward pass, and what does the bootstrap?

    python examples/benchmarks/metrics.py [--rounds 3] [--images 4] [--width 384] [--metric NAME ...]

Maps, block outputs and values of a 16-block, 12-head, 197-token ViT with random weights; 384 wide as in the DeepViT
paper, or 768 as ViT-B, whose maps cost the same and whose pass costs four times as much; the forward pass is that of
the same model with an explicit softmax, which is what capture needs. Process CPU time (all threads), pass and metric
in turn, median over rounds. Metrics outside of "all" are left out unless named; --metric default, all and names with
settings as on the command line. Then sets together, as `measure` runs them: what several metrics need is computed once.
Without --metric, at the end, the six ranks by singular values one by one and together, and the bootstrap.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from attnprobe.capturing import capture, find_layers
from attnprobe.capturing.hooks import unfused
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.metric import Metric
from attnprobe.core.sharing import sharing
from attnprobe.metrics import DEFAULT
from attnprobe.metrics.engine.choose import choose
from attnprobe.models import build_model
from attnprobe.stats.bootstrap import interval_of_mean

RANKS = ("effective_rank", "numerical_rank", "approximate_rank", "stable_rank", "nuclear_ratio", "spectral_gap")
"""Metrics by singular values."""


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def maps_of(model: torch.nn.Module, pixels: torch.Tensor, spread: float) -> AttentionMaps:
    """What was captured, made as peaky as trained networks are: random weights look everywhere alike."""
    maps = next(iter(capture(model, pixels, "weights", tokens=True, batch_size=len(pixels))))
    assert maps.tokens is not None
    generator = torch.Generator().manual_seed(0)
    shape = tuple(maps.values.shape)
    values = (spread * torch.randn(shape, generator=generator)).softmax(-1)
    vectors = torch.randn(*shape[:3], shape[-1], maps.tokens.shape[-1] // shape[2], generator=generator)
    return replace(maps, values=values, tokens=maps.tokens.clone(), value_vectors=vectors)


def costs(metrics: list[Metric], forward: Callable[[], object], maps: AttentionMaps, rounds: int) -> dict[str, float]:
    """CPU time of each metric, image by image as on a CPU, over that of the forward pass of as many images."""
    found = {}
    for metric in metrics:
        found[metric.name] = cost([metric], forward, maps, rounds)
        print(f"{metric.name:32} {found[metric.name]:6.3f}", flush=True)
    return found


def cost(metrics: list[Metric], forward: Callable[[], object], maps: AttentionMaps, rounds: int) -> float:
    """CPU time of metrics that share decompositions, as `measure` lets them, over that of the forward pass."""
    singles = [maps.images(i, i + 1) for i in range(maps.n_images)]

    def work() -> None:
        for image in singles:
            with torch.inference_mode(), sharing():
                for metric in metrics:
                    metric.per_image(image)

    forward(), work()
    pairs = [(cpu(forward), cpu(work)) for _ in range(rounds)]
    return statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)


def bootstrap(rounds: int) -> None:
    """10,000 resamples of 512 images."""
    rng = np.random.default_rng(0)
    print("\n10,000 resamples of 512 images, CPU seconds (goal: below 2)")
    for what, cells in (("one number per block and head", (16, 12)), ("per pair of blocks", (16, 16))):
        values = rng.normal(size=(512, *cells)).astype(np.float32)
        seconds = statistics.median(cpu(lambda v=values: interval_of_mean(v, 10_000, 0)) for _ in range(rounds))
        print(f"{f'intervals of {what}':52} {seconds:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--metric", action="append", help="instead of all; slow ones, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build_model("vit_16", seed=0, embed_dim=options.width).eval()
    pixels = torch.randn(options.images, 3, 224, 224)
    maps = maps_of(model, pixels, spread=3)

    def forward() -> None:
        with torch.inference_mode(), unfused(model.modules(), find_layers(model)):
            model(pixels)

    chosen = list(choose(options.metric or ["all"])[0])
    sets = {"default": [metric for metric in chosen if metric.name in DEFAULT], "all of these": chosen}
    print(f"width {options.width}, {options.images} images, {options.threads} thread(s), torch {torch.__version__}, "
          f"{options.rounds} rounds\n{'metric / plain unfused forward':32}  ratio")  # fmt: skip
    with threadpool_limits(options.threads):  # NumPy's and SciPy's BLAS have threads of their own
        costs(chosen, forward, maps, options.rounds)
        for (name, metrics), goal in zip(sets.items(), (1.5, 2.0), strict=True):
            print(f"{name + ', together':32} {cost(metrics, forward, maps, options.rounds):6.3f}  goal: {goal}")
        if options.metric:
            return
        ranks = list(choose(RANKS)[0])
        alone = sum(costs(ranks, forward, maps, options.rounds).values())
        together = cost(ranks, forward, maps, options.rounds)
        print(f"{'these six one by one':32} {alone:6.3f}\n{'these six together':32} {together:6.3f}")
        bootstrap(options.rounds)


if __name__ == "__main__":
    main()
