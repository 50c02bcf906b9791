"""A model and labelled images to try changes on: some images choose what to change, others judge it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.images import ImageSource
from attnprobe.data import load_images
from attnprobe.data.order import one_half
from attnprobe.io.config import read_yaml
from attnprobe.io.reference import UserImages, allowed
from attnprobe.io.run import Run
from attnprobe.models import input_spec
from attnprobe.models.describe import ModelFacts, resolve_model
from attnprobe.models.features import n_classes
from attnprobe.training import TrainConfig, pick_device


@dataclass(frozen=True, slots=True)
class Trial:
    """A model on its device, and labelled images prepared for it.

    Attributes:
        judging: images of another split, which measure; None where one half of `images` does.
        ids: ids of the labelled images: those of `images`, then those of `judging`.
        chooses: [labelled image], bool: which of them choose; the others measure what was chosen.
        recipe: the options the run was trained with; empty for anything but a run.
    """

    model: nn.Module
    facts: ModelFacts
    images: ImageSource
    judging: ImageSource | None
    ids: tuple[str, ...]
    chooses: np.ndarray
    device: torch.device
    batch_size: int
    recipe: dict[str, Any]

    @torch.inference_mode()
    def answers(
        self, model: nn.Module | None = None, change: AbstractContextManager[Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correctness [labelled image], bool, and cross-entropy [labelled image], nats, while `change` is in force.

        `model` is this trial's own if None.
        """
        model = (model or self.model).to(self.device).eval()
        right, loss = [], []
        with change or nullcontext():
            for pixels, labels in self.labelled():
                logits = model(pixels)
                right.append((logits.argmax(-1) == labels).cpu())
                loss.append(F.cross_entropy(logits.float(), labels, reduction="none").cpu())
        return torch.cat(right).numpy(), torch.cat(loss).double().numpy()

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels of the labelled images, a batch at a time."""
        for source in filter(None, (self.images, self.judging)):
            for batch in source.batches(self.batch_size, device=self.device):
                known = batch.labels >= 0
                yield batch.pixels[known], batch.labels[known]


def open_trial(
    ref: Path | str,
    *,
    architecture: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    split: str = "val",
    images: int | None = None,
    device: str = "auto",
    batch_size: int = 64,
) -> Trial:
    """Open a run, checkpoint or model name, with the run's validation images unless others are named.

    Args:
        split: "val": one half of the validation images chooses and the other judges (`one_half`); "train": training
            images choose and validation images judge.
        images: a class-balanced subset of this many, of each split.

    Raises:
        InputError: no images are named, fewer than two of them have a label, they have other classes than the model,
            or the same images are in both splits.
        CheckpointError: the checkpoint cannot be loaded, see `load_model`.
    """
    model, facts = resolve_model(ref, architecture)
    recipe = recipe_of(Path(ref))
    data, data_dir = run_images(Path(ref), recipe, UserImages(data, data_dir))
    check_choice("--split", split, ("train", "val"))
    opening = {"spec": input_spec(model), "data_dir": data_dir, "limit": images}
    source = load_images(data, split, **opening)
    check_classes(source, n_classes(model), str(ref), fewer=not recipe)
    judging = load_images(data, "val", **opening) if split == "train" else None
    if judging is not None and (same := set(source.ids) & set(judging.ids)):
        raise InputError(
            f"{min(same)!r} is in both splits of {data}, so what training images choose has no others to judge it; "
            "leave --split train out, and one half chooses."
        )
    return Trial(model, facts, source, judging, *_shared_out(source, judging), pick_device(device), batch_size, recipe)


def check_classes(source: ImageSource, classes: int | None, ref: str, *, fewer: bool) -> None:
    """Raise InputError unless images have labels, of the model's classes; a backbone (0 classes) takes any.

    Args:
        fewer: images of fewer classes than the model's are accepted.
    """
    if not source.class_names:
        raise InputError(f"{source.name} has no labels, so no accuracy; name labelled images with --data.")
    n = len(source.class_names)
    if classes and (n > classes or (n < classes and not fewer)):
        raise InputError(f"{source.name} has {n} classes and {ref} tells {classes} apart; name images of its own.")


def recipe_of(ref: Path) -> dict[str, Any]:
    """The options a run, or the run of a checkpoint, was trained with; none for anything else."""
    config = Run.of(ref).config
    if not ref.is_dir() or not config.exists():
        return {}
    known = {field.name for field in fields(TrainConfig)}
    return {name: value for name, value in read_yaml(config, follow=False).items() if name in known}


def run_images(ref: Path, recipe: Mapping[str, Any], user: UserImages) -> tuple[str, Path | None]:
    """Name and folder of a model's images: the user's, or those of its recipe, if a file may choose them.

    Raises:
        InputError: none are named, or the recipe names images that only the user may choose.
    """
    if user.data is not None:
        return user.data, user.data_dir
    if recipe.get("dataset") is None:
        raise InputError(f"no images are named for {ref}. Name some, as in --data digits or --data FOLDER.")
    named = {"data": recipe["dataset"], "data_dir": recipe.get("data_dir")}
    run = Run.of(ref)
    reference = allowed(named, str(run.config), run.path, user)
    return reference.data, None if reference.data_dir is None else Path(reference.data_dir)


def _shared_out(source: ImageSource, judging: ImageSource | None) -> tuple[tuple[str, ...], np.ndarray]:
    """The ids of all labelled images, and which of them choose."""
    ids, labels = _with_label(source)
    if judging is None:
        if len(ids) < 2:
            raise InputError(f"{source.name} has {len(ids)} labelled images; one half chooses and the other judges.")
        return tuple(ids), one_half(ids, labels)
    others, _ = _with_label(judging)
    if not (ids and others):
        raise InputError(f"{(source if not ids else judging).name} has no labelled image, so no accuracy.")
    return (*ids, *others), np.arange(len(ids) + len(others)) < len(ids)


def _with_label(source: ImageSource) -> tuple[list[str], list[int]]:
    """Ids and labels of the labelled images."""
    found = [
        (name, label)
        for batch in source.batches(64)
        for name, label in zip(batch.ids, batch.labels.tolist(), strict=True)
        if label >= 0
    ]
    return [name for name, _ in found], [label for _, label in found]
