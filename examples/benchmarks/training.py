"""Cost of training against a loop of timm's parts, and the share of data in an epoch.

    python examples/benchmarks/training.py [--rounds 3] [--threads 1]
    python examples/benchmarks/training.py --device cuda --model deepvit_16 --batch 128 [--amp] [--compile]

1. 90 steps, a validation and a checkpoint of `attnprobe.training.train` against the same epoch written with timm's
   optimiser, schedule, loss, moving average and checkpoint saver: same model, images, batches and device.
2. Handing out augmented 32 px images (crop and flip in batches on the device, RandAugment by timm one after the other),
   as a share of a training step of the tiny ViT of the structured-initialisation recipe for CIFAR and of the narrow one
   for digits, and against timm's loader with PIL in worker processes.
3. On a GPU: images/s, TFLOP/s and peak memory of the model and of the plain ViT at 224 px, on procedural images.

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
from torch.utils.flop_counter import FlopCounterMode

from attnprobe.core.images import InputSpec
from attnprobe.data import load_images
from attnprobe.data.device_resident import DeviceResident
from attnprobe.io.run import Run
from attnprobe.models import build_model
from attnprobe.models.describe import config_json
from attnprobe.training import TrainConfig, evaluate, train
from attnprobe.training.augment import Augmentation
from attnprobe.training.config import AugmentConfig

POLICY = "rand-m5"
"""Without deviation: timm's posterize fails at 0 bits with Pillow 13."""

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


def epoch_against_timm(device: torch.device, rounds: int) -> None:
    spec = InputSpec(size=(32, 32))
    train_images, val_images = (load_images("digits", split, spec=spec) for split in ("train", "val"))
    assert isinstance(train_images, DeviceResident)
    pixels, labels = train_images.kept[torch.device("cpu")]
    sets = [
        DeviceResident(
            "digits four times", spec, pixels=pixels.repeat(4, 1, 1, 1), labels=labels.repeat(4),
            ids=train_images.ids * 4, class_names=train_images.class_names, fingerprint="", show=train_images.show,
        ),
        val_images,
    ]  # fmt: skip
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
    spec = InputSpec(size=(32, 32))
    images = load_images("fractals:10", "train", spec=spec, limit=1024)
    kept = torch.cat([batch.pixels for batch in images.batches(256, device=device)])
    augmentation = Augmentation(AugmentConfig(scale=(0.5, 1.0), ratio=(0.75, 4 / 3), hflip=0.5, aa=POLICY), spec)
    augmentation(kept[:64])
    data = statistics.median(seconds(lambda: augmentation(kept[:64]), device) for _ in range(rounds))
    for name in ("structured_tiny_patch2_32", "vit_16_digits"):
        work = step_of(build_model(name, seed=0, num_classes=10).to(device), kept[:64], amp=False, compile=False)
        work()
        step = statistics.median(seconds(work, device) for _ in range(rounds))
        print(
            f"augmenting 64 images of 32 px: {data / (data + step):.2%} of a training step of {name} "
            "(goal < 2 % on a CPU)"
        )

    shown = (spec.restore(kept) * 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    loader = create_loader(
        Pictures([Image.fromarray(picture) for picture in shown]), (3, 32, 32), 256, is_training=True, scale=(0.5, 1.0),
        auto_augment=POLICY, num_workers=workers, use_prefetcher=False, persistent_workers=workers > 0,
    )  # fmt: skip

    def elapsed(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def batched() -> None:
        for start in range(0, len(kept), 256):
            augmentation(kept[start : start + 256])

    list(loader), batched()
    pairs = [(elapsed(lambda: list(loader)), elapsed(batched)) for _ in range(rounds)]
    theirs, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"the same 1,024 images: timm's loader with {workers} workers / ours = {theirs / own:.1f} in elapsed time "
        "(goal 5 on a GPU)"
    )


class Pictures(torch.utils.data.Dataset):
    """PIL images with a label, as timm's loader wants them."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures, self.transform = pictures, None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(self.pictures[index]), 0


def step_of(model: nn.Module, pixels: torch.Tensor, *, amp: bool, compile: bool) -> Callable[[], None]:
    trained = torch.compile(model) if compile else model
    labels = torch.arange(len(pixels), device=pixels.device) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    autocast = torch.autocast(pixels.device.type, torch.bfloat16) if amp else nullcontext()

    def step() -> None:
        model.train()
        with autocast:
            loss = nn.functional.cross_entropy(trained(pixels).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def large_model(name: str, batch: int, device: torch.device, rounds: int, amp: bool, compile: bool) -> None:
    for each in (name, "vit_16"):
        model = build_model(each, seed=0, num_classes=10).to(device)
        spec = InputSpec(size=model.patch_embed.img_size)
        pixels = next(load_images("fractals:10", spec=spec, limit=batch).batches(batch, device=device)).pixels
        with FlopCounterMode(display=False) as counter:
            step_of(model, pixels, amp=amp, compile=False)()
        step = step_of(model, pixels, amp=amp, compile=compile)
        for _ in range(3):
            step()
        torch.cuda.reset_peak_memory_stats()
        took = statistics.median(seconds(step, device) for _ in range(max(rounds, 10)))
        print(
            f"{each}: {batch / took:.0f} images/s, {counter.get_total_flops() / took / 1e12:.1f} TFLOP/s, "
            f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes of timm's loader")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="deepvit_16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{where}, torch {torch.__version__}, medians of {options.rounds} rounds")
    epoch_against_timm(device, options.rounds)
    data_share(device, options.rounds, options.workers)
    if device.type == "cuda":
        large_model(options.model, options.batch, device, options.rounds, options.amp, options.compile)


if __name__ == "__main__":
    main()
