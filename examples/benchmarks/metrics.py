"""What does each metric cost, in units of the model's own forward pass, and what does the bootstrap?

    python examples/benchmarks/metrics.py [--rounds 3] [--images 4] [--width 384] [--metric NAME ...]

Maps, block outputs and values of a 16-block, 12-head, 197-token ViT with random weights; 384 wide as in the DeepViT
paper, or 768 as ViT-B, whose maps cost the same and whose pass costs four times as much; the forward pass is that of
the same model with an explicit softmax, which is what capture needs. Process CPU time (all threads), pass and metric
in turn, median over rounds. Metrics outside of "all" and the exact rank are left out unless named.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from attnprobe.capturing import capture, find_layers
from attnprobe.capturing.hooks import unfused
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.metric import Metric
from attnprobe.metrics import DEFAULT, METRICS, SLOW
from attnprobe.models import build_model
from attnprobe.stats.bootstrap import interval_of_mean


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
    singles = [maps.images(i, i + 1) for i in range(maps.n_images)]
    found = {}
    for metric in metrics:

        def work(metric: Metric = metric) -> None:
            with torch.inference_mode():
                for image in singles:
                    metric.per_image(image)

        forward(), work()
        pairs = [(cpu(forward), cpu(work)) for _ in range(rounds)]
        found[metric.name] = statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)
        print(f"{metric.name:32} {found[metric.name]:6.3f}", flush=True)
    return found


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
        with torch.inference_mode(), unfused(model, find_layers(model)):
            model(pixels)

    names = options.metric or [name for name in METRICS if name not in SLOW and name != "effective_rank"]
    print(f"width {options.width}, {options.images} images, {options.threads} thread(s), torch {torch.__version__}, "
          f"{options.rounds} rounds\n{'metric / plain unfused forward':32}  ratio")  # fmt: skip
    found = costs([METRICS[name] for name in names], forward, maps, options.rounds)
    light = sum(ratio for name, ratio in found.items() if name in DEFAULT)
    print(f"{'default set, without exact rank':32} {light:6.3f}")
    print(f"{'all of these':32} {sum(found.values()):6.3f}  goal: 1.0")
    bootstrap(options.rounds)


if __name__ == "__main__":
    main()
