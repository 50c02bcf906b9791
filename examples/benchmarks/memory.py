"""Does the memory of `capture --stats-only` stay flat, and how much do long sequences take?

    python examples/benchmarks/memory.py [--model deepvit_16_digits] [--images 2000] [--plot memory.png]
    python examples/benchmarks/memory.py --model vit_16_digits --images 100000 --keep-values 4096 --plot memory.png
    python examples/benchmarks/memory.py --model vit_small_patch14_reg4_dinov2 --images 2 [--metric row_entropy]

Measures images of fractals in this process and samples its resident memory fifty times a second (Linux). Printed is
the largest beyond the libraries and the model's weights: in the first tenth of the images, among all of them, and when
the intervals are computed, for which every metric's values of each image are needed, or of `--keep-values` of them (at
most 128 MiB, see `attnprobe.metrics.engine.collected`); and the bytes on disk. Then what is resident after each slice
was committed, with and without what the C library's allocator (glibc) keeps free for later: growth of the median from
the second tenth of the slices to the last one. Drawn is the whole curve.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from resident import Watch, free_in_malloc, resident

from attnprobe.core.spec import KEEP_VALUES, CaptureSpec
from attnprobe.metrics.engine.sink import MeasureSink
from attnprobe.models import build_model
from attnprobe.workflows.capture import measure_live


class Sampled(Watch):
    """Times and resident bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[tuple[float, int]] = []

    def look(self) -> None:
        self.samples.append((time.time(), resident()))


def draw(samples: list[tuple[float, int]], title: str, path: Path) -> None:
    """The samples as a curve."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot([seconds for seconds, _ in samples], [size / 2**20 for _, size in samples])
    axes.set(title=title, xlabel="seconds", ylim=(0, None))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deepvit_16_digits")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--metric", action="append", help="repeat for several; the default ones if absent")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep-values", type=int, default=KEEP_VALUES)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    weights = sum(p.nbytes for p in build_model(options.model).parameters())  # loads all libraries, too
    base = resident() + weights
    between: list[tuple[int, int]] = []
    write = MeasureSink.write

    def written(*arguments: Any) -> None:
        write(*arguments)
        between.append((resident("RssAnon"), free_in_malloc()))

    patched = mock.patch.object(MeasureSink, "write", written)
    with tempfile.TemporaryDirectory() as folder, patched, Sampled() as sampled:
        measure_live(
            CaptureSpec(
                options.model,
                data=f"fractals:20:{-(-options.images // 20)}",
                split="train",
                images=options.images,
                initial=True,
                device="cpu",
            ),
            out=Path(folder) / "report",
            metrics=options.metric,
            formats=("json",),
            keep_values=options.keep_values,
        )
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        measured = max(path.stat().st_mtime for path in Path(folder).rglob("slices/*.npz"))
    begun = sampled.samples[0][0]
    samples = [(when - begun, size - base) for when, size in sampled.samples]
    measured -= begun

    def largest(until: float) -> str:
        return f"{max(size for seconds, size in samples if seconds <= until) / 2**20:.0f}"

    def rise(sizes: list[int]) -> str:
        tenth = max(1, len(sizes) // 10)
        return f"{(statistics.median(sizes[-tenth:]) - statistics.median(sizes[tenth : 2 * tenth])) / 2**20:+.1f} MiB"

    title = f"{options.model}, {options.images} images: MiB beyond the model"
    print(
        f"{title}: {largest(measured / 10)} in the first tenth of {measured:.0f} s, {largest(measured)} in all of it, "
        f"{largest(samples[-1][0])} with the intervals; {on_disk / 2**20:.0f} MiB on disk"
    )
    if len(between) > 2:
        print(
            f"between slices, {len(between)} of them, from the second tenth to the last: "
            f"{rise([size for size, _ in between])}, without what malloc keeps free "
            f"{rise([size - free for size, free in between])}"
        )
    if options.plot:
        draw(samples, title, options.plot)


if __name__ == "__main__":
    main()
