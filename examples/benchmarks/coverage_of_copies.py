"""How often does a 95 % interval hold the truth where every image is there in eight augmented copies?

    python examples/benchmarks/coverage_of_copies.py RUN

RUN is a run on digits, such as `attnprobe train digits_vit_16 -o RUN` makes. Its maps of 360 validation digits, eight
shifted and noisy copies each, are measured once; the mean of all is the truth. Then 40 digits are drawn with all their
copies, 1,000 times, and the interval made of 320 images, or with --group of 40 groups. The goal is 92 % with groups.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import attnprobe as ap
from attnprobe.core.images import ImageBatch
from attnprobe.data import load_images
from attnprobe.metrics.engine.units import STEM, Units, alike_in_words
from attnprobe.models import input_spec, load_model
from attnprobe.stats.bootstrap import interval_of_mean

COPIES, DRAWN, DRAWS = 8, 40, 1000
METRICS = ("row_entropy", "head_similarity", "layer_similarity_centred", "attention_distance", "token_similarity")


class Augmented:
    """Eight copies of each image of a source, shifted by up to two pixels and with noise; "digits/0007_3" is one."""

    def __init__(self, source: ap.ImageSource) -> None:
        self.source, self.spec, self.class_names = source, source.spec, source.class_names
        self.name, self.fingerprint = f"{source.name}, augmented", f"{source.fingerprint} augmented"
        self.ids = tuple(f"{name}_{k}" for name in source.ids for k in range(COPIES))

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, batch_size: int, *, device="cpu", order=None):
        """Of whole originals, in order; `order` picks among all copies."""
        (whole,) = self.source.batches(len(self.source), device=device)
        generator = torch.Generator().manual_seed(0)
        copies = [torch.roll(whole.pixels, (k % 3 - 1, k // 3 - 1), (2, 3)) for k in range(COPIES)]
        pixels = torch.stack(copies, 1).flatten(0, 1)
        pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=generator)
        labels = whole.labels.repeat_interleave(COPIES)
        chosen = list(range(len(self)) if order is None else order)
        for start in range(0, len(chosen), batch_size):
            some = chosen[start : start + batch_size]
            yield ImageBatch(pixels[some], labels[some], tuple(self.ids[i] for i in some))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.run).eval()
    images = Augmented(load_images("digits", "val", spec=input_spec(model)))
    found = ap.measure(ap.capture(model, images, tokens=True, batch_size=64), METRICS, bootstrap=0)
    print(alike_in_words(list(found.values())))
    rng = np.random.default_rng(0)
    draws = rng.integers(len(images) // COPIES, size=(DRAWS, DRAWN))
    names = [f"{i}_{k}" for i in range(DRAWN) for k in range(COPIES)]  # an original that was drawn twice is two
    unit = Units.of(names, [0] * len(names), STEM).of_image
    for metric, m in found.items():
        values = m.per_image.reshape(len(images), -1).mean(1, dtype=np.float64).reshape(-1, COPIES)
        drawn = values[draws]  # [draw, original, copy]
        truth, covered = values.mean(), []
        for sample in (drawn.reshape(DRAWS, -1), np.stack([np.bincount(unit, x.ravel()) / COPIES for x in drawn])):
            low, high = interval_of_mean(sample.T, 1000, seed=0)
            covered.append(((low <= truth) & (truth <= high)).mean())
        print(f"{metric:26} without --group {covered[0]:6.1%}   with it {covered[1]:6.1%}")


if __name__ == "__main__":
    main()
