"""Accuracy and loss of a model on labelled images, by one process or by several under torchrun."""

import json
import warnings
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnprobe.core.accuracy import accuracy_interval
from attnprobe.core.devices import float_type
from attnprobe.core.errors import InputError, option
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.core.spec import EvaluateSpec
from attnprobe.data import load_images
from attnprobe.data.order import one_half
from attnprobe.io import fs
from attnprobe.io.progress import Advance, progress
from attnprobe.io.reference import UserImages
from attnprobe.models.describe import resolve_model
from attnprobe.models.features import features, n_classes
from attnprobe.reports.json_report import plain
from attnprobe.stats.neighbours import neighbour_votes
from attnprobe.training import evaluate as scores_of
from attnprobe.training import pick_device
from attnprobe.training.processes import Processes, processes
from attnprobe.workflows.trial import check_classes, logits_of, prepared_for, recipe_of, run_images


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Accuracy and loss of a model.

    Attributes:
        model, data: as they were named; `spec` is how pixels were prepared.
        class_names: one per row of `counts`; empty where classes have no names, and `counts` one row.
        counts: [class, 3], int: images of the class, those classified correctly, those whose label is among the `k`
            first classes.
        k: number of first classes; 0 where neighbours vote, and the third count is meaningless.
        loss: mean cross-entropy, nats; NaN where neighbours vote.
        neighbours: number of neighbours that vote; 0 where the model's own head decides.
        amp: "bf16" under autocast.
    """

    model: str
    data: str
    spec: InputSpec
    class_names: tuple[str, ...]
    counts: np.ndarray
    k: int
    loss: float
    neighbours: int = 0
    amp: str | None = None

    @property
    def n_images(self) -> int:
        """Number of images that were classified."""
        return int(self.counts[:, 0].sum())

    @property
    def shares(self) -> dict[str, tuple[float, float, float]]:
        """Accuracies by name (top-1, top-5; k-NN), each with its 95 % interval (Wilson)."""
        n, right, among = self.counts.sum(0)
        named = {f"{self.neighbours}-NN": right} if self.neighbours else {"top-1": right, f"top-{self.k}": among}
        return {name: _share(count, n) for name, count in named.items()}

    @property
    def per_class(self) -> dict[str, tuple[int, float, float, float]]:
        """Images, accuracy and its 95 % interval of every class that has images."""
        rows = zip(self.class_names, self.counts, strict=False)
        return {name: (int(n), *_share(right, n)) for name, (n, right, _) in rows if n}

    def document(self) -> dict[str, Any]:
        """Everything by name; what is not measured is NaN."""
        return {
            "format": "attnprobe evaluation",
            "model": self.model,
            "data": self.data,
            "n_images": self.n_images,
            "input": asdict(self.spec),
            "amp": self.amp,
            "accuracy": {
                name: {"value": value, "low": low, "high": high} for name, (value, low, high) in self.shares.items()
            },
            "loss": self.loss,
            "classes": {
                name: {"n_images": n, "accuracy": value, "low": low, "high": high}
                for name, (n, value, low, high) in self.per_class.items()
            },
        }

    def text(self, *, per_class: bool = False) -> str:
        """A table for a terminal: accuracies with their 95 % intervals, the loss, and the classes on request."""
        size = " x ".join(map(str, self.spec.size))
        amp = f", {self.amp}" if self.amp else ""
        lines = [
            f"{self.model} on {self.data}: {self.n_images} images of {size} px, crop {self.spec.crop_pct:g}, "
            f"{self.spec.interpolation}{amp}"
        ]
        if self.neighbours:
            lines.append(
                f"features judged by the {self.neighbours} nearest neighbours in the other half of the images; this is "
                "k-NN accuracy, not that of a head"
            )
        lines += [f"{name:6} {value:8.2%}  ({low:.2%}–{high:.2%})" for name, (value, low, high) in self.shares.items()]
        if not self.neighbours:
            lines.append(f"{'loss':6} {self.loss:8.4f}  nats")
        if per_class:
            width = max(map(len, self.per_class), default=0)
            lines += [
                f"{name:{width}}  {n:6} images {value:8.2%}  ({low:.2%}–{high:.2%})"
                for name, (n, value, low, high) in self.per_class.items()
            ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def _share(count: Any, n: Any) -> tuple[float, float, float]:
    return (float(count / n), *accuracy_interval(int(count), int(n)))


def evaluate(
    model: EvaluateSpec | Path | str | nn.Module, source: ImageSource | None = None, /, **options: Any
) -> Evaluation:
    """Top-1 and top-5 accuracy (top-k of fewer classes) and loss of a model, on pixels prepared as in its training.

    Counts are those of timm's validate.py on the same images. Under torchrun each process takes its share of them.

    Args:
        model: a run, a checkpoint, the name of a model or a model; or all options at once.
        source: labelled images that `load_images` opened for it; those that the options name if None.
        options: fields of `EvaluateSpec` otherwise.

    Raises:
        InputError: the model has no head (then see `knn`), or another number of classes than the images; no labelled
            image.
        CheckpointError: the checkpoint cannot be loaded, see `load_model`.
    """
    if isinstance(model, nn.Module):
        module, spec = model, EvaluateSpec(type(model).__name__, **options)
    else:
        spec = model if isinstance(model, EvaluateSpec) else EvaluateSpec(model, **options)
        module, facts = resolve_model(spec.model, spec.architecture, img_size=spec.img_size)
        for note in facts.notes:
            warnings.warn(note, stacklevel=2)
    pixels = prepared_for(module, spec)
    if source is not None and not hasattr(source, "class_names"):
        raise InputError(
            f"accuracy needs labelled images, got {type(source).__name__}; "
            "ap.load_images(FOLDER, spec=ap.input_spec(model)) opens some."
        )
    images = source or _images_of(spec, pixels)
    classes = n_classes(module)
    if not spec.knn:
        if classes == 0:
            neighbours = option("knn", python="knn=True")
            raise InputError(f"{spec.model} has no head that tells classes apart; {neighbours} judges its features.")
        check_classes(images, classes, str(spec.model), spec.data or images.name)
    named = (str(spec.model), images.name, images.spec)
    amp = torch.bfloat16 if spec.amp else None
    with (
        processes(pick_device(spec.device)) as group,
        progress(f"evaluate {Path(spec.model).name}", len(group.share(range(len(images))))) as advance,
    ):
        module = module.to(group.device).eval()
        if spec.knn:
            classified = _by_neighbours(module, images, spec, group, advance)
            return Evaluation(*named, images.class_names, *classified, spec.amp)
        scores = scores_of(
            _Logits(module, images), images, batch_size=spec.batch_size, device=group.device, processes=group, amp=amp,
            advance=advance,
        )  # fmt: skip
    return Evaluation(*named, images.class_names, scores.counts.numpy(), scores.k, scores.loss, 0, spec.amp)


def _images_of(spec: EvaluateSpec, pixels: InputSpec) -> ImageSource:
    """The images that options name, or those of the run's recipe."""
    data, data_dir = run_images(Path(spec.model), recipe_of(Path(spec.model)), UserImages(spec.data, spec.data_dir))
    # on the device, images of the training split would not be cropped
    whole: dict[str, Any] = {"resident_bytes": 0} if spec.split == "train" else {}
    opening = {"data_dir": data_dir, "limit": spec.images, "workers": spec.workers, "bad_images": spec.bad_images}
    return load_images(data, spec.split, spec=pixels, **opening, **whole)


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write all numbers of an evaluation.

    Raises:
        WorkError: the file cannot be written.
    """
    with fs.as_work_error(f"writing {path}"):
        fs.write_file(path, (json.dumps(plain(evaluation.document()), indent=1) + "\n").encode(), overwrite=True)


class _Logits(nn.Module):
    """A model of any kind that returns its logits alone."""

    def __init__(self, model: nn.Module, images: ImageSource) -> None:
        super().__init__()
        self.model, self.images = model, images

    def forward(self, pixels: Tensor) -> Tensor:
        classes = len(self.images.class_names)
        logits = logits_of(self.model, pixels, classes)
        if (n := logits.shape[-1]) < classes:
            raise InputError(f"{self.images.name} has more classes than the {n} logits of {type(self.model).__name__}.")
        return logits


@torch.inference_mode()
def _by_neighbours(
    model: nn.Module, images: ImageSource, spec: EvaluateSpec, group: Processes, advance: Advance
) -> tuple[np.ndarray, int, float, int]:
    """Counts, k, loss and neighbours of an `Evaluation` by nearest neighbours; one half of the images votes."""
    ids, labels, rows = [], [], []
    for batch in images.batches(spec.batch_size, device=group.device, order=group.share(range(len(images)))):
        with torch.autocast(group.device.type, torch.bfloat16, enabled=spec.amp is not None):
            found = features(model, batch.pixels.to(float_type(model))).float()
        known = (batch.labels >= 0).tolist()
        ids += [name for name, counts in zip(batch.ids, known, strict=True) if counts]
        labels += batch.labels[batch.labels >= 0].tolist()
        rows += list(found[batch.labels >= 0].cpu().numpy())
        advance(len(batch.ids))
    gathered = zip(*group.gather((ids, labels, rows)), strict=True)
    ids, labels, rows = (list(chain.from_iterable(parts)) for parts in gathered)
    votes_of = one_half(ids, labels)
    votes, k = neighbour_votes(np.array(rows), np.array(labels), votes_of)
    judged = np.flatnonzero(~votes_of)
    counts = np.zeros((max(len(images.class_names), votes.shape[1]), 3), int)
    for place in judged:
        counts[labels[place]] += (1, votes[place].argmax() == labels[place], 0)
    return counts, 0, float("nan"), k
