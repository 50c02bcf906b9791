"""Cost of training against a loop of timm's parts, and the share of data in an epoch.

    python examples/benchmarks/training.py [--rounds 3] [--threads 1]
    python examples/benchmarks/training.py --device cuda

1. 90 steps, a validation and a checkpoint of `attnprobe.training.train` against the same epoch written with timm's
   optimiser, schedule, loss, moving average and checkpoint saver: same model, images, batches and device.
2. Handing out augmented 32 px images (crop and flip in batches on the device, RandAugment by timm one after the other),
   as a share of a training step of the tiny ViT of the structured-initialisation recipe for CIFAR and of the narrow one
   for digits, and against timm's loader with PIL in worker processes.
gpu.py measures large models on a GPU.

Ratios of two things run in turn in one process; process CPU time on a CPU, elapsed time on a GPU; medians.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image
from timing import seconds
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, dispatch_clip_grad
from torch import nn

from attnprobe.core.images import InputSpec
from attnprobe.data import load_images
from attnprobe.data.device_resident import DeviceResident
from attnprobe.io.run import Run
from attnprobe.models import build_model
from attnprobe.models.describe import config_json
from attnprobe.training import TrainConfig, evaluate, train
from attnprobe.training.augment import Augmentation
from attnprobe.training.config import AugmentConfig
from attnprobe.training.objective import classification_loss

POLICY = "rand-m5"
"""Without deviation: timm's posterize fails at 0 bits with Pillow 13."""

SMALL = InputSpec(size=(32, 32))

PLAIN = TrainConfig(model="vit_16", dataset="fractals", smoothing=0.0)

OPTIONS = {"num_classes": 10, "depth": 8}


def ours(sets: list, config: TrainConfig) -> None:
    model = build_model(config.model, seed=0, **OPTIONS)
    with tempfile.TemporaryDirectory() as folder:
        facts = config_json(config.model, model, OPTIONS)
        train(model, *sets, config, Run(Path(folder)), config_json=facts)


def timms(sets: list, config: TrainConfig, device: torch.device) -> None:
    """The same epoch, as timm's train.py does it."""
    model = build_model(config.model, seed=0, **OPTIONS).to(device)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=config.lr, weight_decay=config.weight_decay)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=1, updates_per_epoch=len(sets[0]) // config.batch_size)
    ema = ModelEmaV3(model, decay=0.99)
    criterion = LabelSmoothingCrossEntropy(0.1)
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder)
        model.train()
        order = torch.randperm(len(sets[0])).tolist()
        for update, batch in enumerate(sets[0].batches(config.batch_size, device=device, order=order)):
            loss = criterion(model(batch.pixels), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            dispatch_clip_grad(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model, step=update)
            scheduler.step_update(update)
        scores = evaluate(ema.module, sets[1], batch_size=2 * config.batch_size, device=device)
        saver.save_checkpoint(0, metric=scores.top1)


def digits_sets(copies: int) -> list:
    """Training images, each `copies` times, and validation images of 32 px."""
    train_images, val_images = (load_images("digits", split, spec=SMALL) for split in ("train", "val"))
    assert isinstance(train_images, DeviceResident)
    pixels, labels = train_images.pixels.repeat(copies, 1, 1, 1), train_images.labels.repeat(copies)
    many = DeviceResident(
        f"digits {copies} times", SMALL, pixels=pixels, labels=labels, ids=train_images.ids * copies,
        class_names=train_images.class_names, fingerprint="", show=train_images.show,
    )  # fmt: skip
    return [many, val_images]


def epoch_against_timm(device: torch.device, rounds: int) -> None:
    sets = digits_sets(4)
    config = TrainConfig(
        model="vit_16_digits", dataset="digits", epochs=1, warmup_epochs=0, clip_grad=1.0, lr=1e-3, device=str(device)
    )
    ours(sets, config), timms(sets, config, device)
    pairs = [
        (seconds(lambda: timms(sets, config, device), device), seconds(lambda: ours(sets, config), device))
        for _ in range(rounds)
    ]
    theirs, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"one epoch, vit 8 blocks, {len(sets[0])} images of 32 px: timm's parts / ours = {theirs / own:.2f} (goal 1.0)"
    )


def data_share(device: torch.device, rounds: int, workers: int) -> None:
    images, augmentation = small_images(device, 1024)
    augmentation(images[:64])
    data = statistics.median(seconds(lambda: augmentation(images[:64]), device) for _ in range(rounds))
    for name in ("structured_tiny_patch2_32", "vit_16_digits"):
        work = step_of(build_model(name, seed=0, num_classes=10).to(device), images[:64])
        work()
        step = statistics.median(seconds(work, device) for _ in range(rounds))
        print(
            f"augmenting 64 images of 32 px: {data / (data + step):.2%} of a training step of {name} "
            "(goal < 2 % on a CPU)"
        )
    print(
        f"1,024 such images: timm's loader with {workers} workers / ours = "
        f"{loader_against_timms(device, rounds, workers, 1024):.1f} in elapsed time (goal 5 on a GPU)"
    )


def small_images(device: torch.device, n: int, policy: str | None = POLICY) -> tuple[torch.Tensor, Augmentation]:
    """Procedural images of 32 px on the device, and an augmentation for them."""
    images = load_images("fractals:10", "train", spec=SMALL, limit=n)
    augmentation = Augmentation(AugmentConfig(scale=(0.5, 1.0), ratio=(0.75, 4 / 3), hflip=0.5, aa=policy), SMALL)
    return torch.cat([batch.pixels for batch in images.batches(256, device=device)]), augmentation


def loader_against_timms(device: torch.device, rounds: int, workers: int, n: int, policy: str | None = POLICY) -> float:
    """Elapsed time of timm's loader, which decodes nothing here, over that of augmentation on the device.

    A policy is timm's in both, and runs on the CPU.
    """
    images, augmentation = small_images(device, n, policy)
    shown = (SMALL.restore(images) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    loader = create_loader(
        Pictures([Image.fromarray(picture) for picture in shown]), (3, 32, 32), 256, is_training=True, scale=(0.5, 1.0),
        auto_augment=policy, num_workers=workers, use_prefetcher=False, persistent_workers=workers > 0,
    )  # fmt: skip

    def elapsed(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    def theirs() -> None:
        for pixels, _labels in loader:
            pixels.to(device)

    def ours() -> None:
        for start in range(0, len(images), 256):
            augmentation(images[start : start + 256])

    theirs(), ours()
    pairs = [(elapsed(theirs), elapsed(ours)) for _ in range(rounds)]
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    return slow / fast


class Pictures(torch.utils.data.Dataset):
    """PIL images with a label, as timm's loader wants them."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures, self.transform = pictures, None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(self.pictures[index]), 0


def step_of(model: nn.Module, pixels: torch.Tensor, *, amp: bool = False, compile: bool = False) -> Callable[[], None]:
    """A function that makes one training step on these images."""
    trained = torch.compile(model) if compile else model
    labels = torch.arange(len(pixels), device=pixels.device) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    autocast = torch.autocast(pixels.device.type, torch.bfloat16) if amp else nullcontext()

    def step() -> None:
        model.train()
        with autocast:
            loss = classification_loss(trained(pixels), labels, PLAIN)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes of timm's loader")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{where}, torch {torch.__version__}, medians of {options.rounds} rounds")
    epoch_against_timm(device, options.rounds)
    data_share(device, options.rounds, options.workers)


if __name__ == "__main__":
    main()
