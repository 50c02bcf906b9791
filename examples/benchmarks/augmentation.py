"""Cost of augmentation in batches on the device, against timm's transforms, one image at a time.

    python examples/benchmarks/augmentation.py [--size 224] [--batch 64] [--rounds 5] [--threads 1]
    python examples/benchmarks/augmentation.py --size 32 --batch 512 --device cuda

Both get decoded images (random crops of two photographs) and end with normalised pixels on the device, erased where
chosen. Policies and colour jitter are timm's in both: the first column is the path of sets that have no files, the
second that of worker processes. Times are per image, median over rounds in which both take turns: process CPU time on a
CPU; elapsed time between synchronisations for a GPU, where timm's transforms still run in one process.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timing import seconds
from torch import Tensor

from attnprobe.core.images import InputSpec
from attnprobe.training.augment import Augmentation
from attnprobe.training.config import AugmentConfig
from attnprobe.training.mix import Mix
from attnprobe.training.transforms import train_transform

CROP = AugmentConfig(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5)
SETTINGS = {
    "crop, flip": replace(CROP, train_interpolation="bilinear"),
    "crop, flip, bicubic": replace(CROP, train_interpolation="bicubic"),
    "... and colour jitter 0.4": replace(CROP, color_jitter=0.4),
    "... or rand-m9-mstd0.5-inc1": replace(CROP, aa="rand-m9-mstd0.5-inc1"),
    "... or v0": replace(CROP, aa="v0"),
    "rand-m9, erasing 0.25": replace(CROP, aa="rand-m9-mstd0.5-inc1", reprob=0.25),
}


def pictures(n: int, size: int) -> list[Image.Image]:
    """Crops of two photographs."""
    whole = [Image.fromarray(photo) for photo in load_sample_images().images]
    generator, found = np.random.default_rng(0), []
    for k in range(n):
        left, top = generator.integers(0, 640 - 320), generator.integers(0, 427 - 320)
        found.append(whole[k % 2].crop((left, top, left + 320, top + 320)).resize((size, size)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, spec = torch.device(options.device), InputSpec((options.size, options.size))
    opened = pictures(options.batch, options.size)
    stored = torch.from_numpy(np.stack([np.asarray(picture) for picture in opened])).permute(0, 3, 1, 2).to(device)

    def batched(augmentation: Augmentation) -> Tensor:
        return augmentation(spec.normalise(stored.float() / 255))

    def streamed(transform: Callable[..., Tensor], augmentation: Augmentation) -> Tensor:
        decoded = torch.stack([transform(picture, 0, position) for position, picture in enumerate(opened)])
        return augmentation.erase(spec.normalise(decoded.to(device).float() / 255))

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{where}, torch {torch.__version__}, {options.batch} images of {options.size}x{options.size}")
    print(f"{'ms per image':32}{'in batches':>12}{'timm, Pillow':>14}{'ratio':>8}")
    for name, config in SETTINGS.items():
        augmentation, transform = Augmentation(config, spec), train_transform(config, spec)
        work, reference = partial(batched, augmentation), partial(streamed, transform, augmentation)
        work(), reference()
        times = [(seconds(work, device), seconds(reference, device)) for _ in range(options.rounds)]
        ours, theirs = (statistics.median(side) / options.batch * 1e3 for side in zip(*times, strict=True))
        print(f"{name:32}{ours:12.3f}{theirs:14.3f}{theirs / ours:8.2f}", flush=True)
    pixels, labels = spec.normalise(stored.float() / 255), torch.arange(options.batch, device=device) % 10
    for mode in ("batch", "elem"):
        mix = partial(Mix(AugmentConfig(mixup=0.8, cutmix=1.0, mixup_mode=mode), 10), pixels, labels)
        cost = statistics.median(seconds(mix, device) for _ in range(options.rounds))
        print(f"{'mixup and cutmix, ' + mode:32}{cost / options.batch * 1e3:12.3f}")


if __name__ == "__main__":
    main()
