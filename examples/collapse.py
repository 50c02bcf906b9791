"""What does the probe say while attention collapses? Trains a ViT on digits, then raises the learning rate too far.

    python examples/collapse.py [FOLDER] [--epochs 14] [--break-after 7] [--lr 0.1]

12 blocks, two minutes on two CPU cores. Alarms are printed as they come. filmstrip.png shows the similarity of all
pairs of blocks over the epochs, and below it which blocks repeat the one before, and their entropy. The loop is an
ordinary one: `probe(epoch, model)` is all there is to add to yours.
"""

import argparse
import warnings
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch import nn

matplotlib.use("Agg")

from matplotlib.figure import Figure

import attnprobe as ap
from attnprobe.core.history import History
from attnprobe.core.images import ImageSource
from attnprobe.plots import filmstrip, onset
from attnprobe.workflows.probe import AttentionAlarm


def main(folder: Path, epochs: int, break_after: int, lr: float) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # matrices are small: threads would mostly wait for each other
    warnings.filterwarnings("always", category=AttentionAlarm)
    warnings.showwarning = lambda message, *_where, **_more: print(f"  ! {message}")

    model = ap.build_model("vit_16_digits", seed=0, num_classes=10, depth=12)
    images, val_images = (ap.load_images("digits", split, spec=ap.input_spec(model)) for split in ("train", "val"))
    probe = ap.Probe(val_images, folder, epochs=epochs, budget=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for epoch in range(1, epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, epoch / 3) if epoch <= break_after else lr
        train_epoch(model, images, optimizer)
        seen = probe(epoch, model)
        rate = optimizer.param_groups[0]["lr"]
        print(f"epoch {epoch:2}, lr {rate:.1e}: accuracy {accuracy(model, val_images):.0%}, {seen}")
    assert probe.history is not None, "the first epoch is always probed"
    print(probe.history.overhead())
    draw(probe.history).savefig(folder / "filmstrip.png", dpi=130)
    print(folder / "filmstrip.png")


def train_epoch(model: nn.Module, images: ImageSource, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for batch in images.batches(64, order=torch.randperm(len(images)).tolist()):
        F.cross_entropy(model(batch.pixels), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.inference_mode()
def accuracy(model: nn.Module, images: ImageSource) -> float:
    model.eval()
    batch = next(images.batches(len(images)))
    return (model(batch.pixels).argmax(-1) == batch.labels).float().mean().item()


def draw(history: History) -> Figure:
    """The filmstrip, and below it when each block changed."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    film, below = figure.subfigures(2, 1, height_ratios=[5, 4])
    filmstrip(history, film.add_subplot())
    left, right = below.subplots(1, 2)
    onset(history, left, metric="similar_blocks")
    onset(history, right, metric="row_entropy")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("collapse"), help="the probe's files and the figure"
    )
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--break-after", type=int, default=7, help="epochs with a sound learning rate")
    parser.add_argument("--lr", type=float, default=0.1, help="the learning rate after that")
    main(**vars(parser.parse_args()))
