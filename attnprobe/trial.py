"""A model and the images on which something is tried out: what it gets right, with and without a change."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.config import read_yaml
from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource
from attnprobe.core.reference import UserImages, allowed
from attnprobe.core.run import Run
from attnprobe.data import load_images
from attnprobe.models import input_spec
from attnprobe.models.describe import ModelFacts, resolve_model
from attnprobe.training import pick_device


@dataclass(frozen=True, slots=True)
class Trial:
    """A model on its device, and labelled images as it wants them.

    Attributes:
        recipe: the options the run was trained with; empty for anything but a run.
    """

    model: nn.Module
    facts: ModelFacts
    images: ImageSource
    device: torch.device
    batch_size: int
    recipe: dict[str, Any]

    @torch.inference_mode()
    def answers(
        self, model: nn.Module | None = None, change: AbstractContextManager[Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """[image], bool, and [image], nats: what the model (its own if None) gets right, and its cross-entropy.

        Of the images that have a label, while `change` is in force.
        """
        model = (model or self.model).to(self.device).eval()
        right, loss = [], []
        with change or nullcontext():
            for pixels, labels in self.labelled():
                logits = model(pixels)
                right.append((logits.argmax(-1) == labels).cpu())
                loss.append(F.cross_entropy(logits.float(), labels, reduction="none").cpu())
        return torch.cat(right).numpy(), torch.cat(loss).double().numpy()

    def right(self, model: nn.Module | None = None) -> np.ndarray:
        """[image], bool: the first of `answers`."""
        return self.answers(model)[0]

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels of the images that have one, a batch at a time."""
        for batch in self.images.batches(self.batch_size, device=self.device):
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
    """A run, checkpoint or model name, with the run's validation images unless others are named.

    Raises:
        InputError: nobody says which images, none of them has a label, or they have other classes than the model.
        CheckpointError: see `load_model`.
    """
    model, facts = resolve_model(ref, architecture)
    recipe = recipe_of(Path(ref))
    data, data_dir = run_images(Path(ref), recipe, UserImages(data, data_dir))
    source = load_images(data, split, spec=input_spec(model), data_dir=data_dir, limit=images)
    if not source.class_names:
        raise InputError(f"{source.name} has no labels, so no accuracy; name labelled images with --data.")
    classes, told = len(source.class_names), getattr(model, "num_classes", None)
    if told and (classes > told or (recipe and classes < told)):
        raise InputError(f"{source.name} has {classes} classes and {ref} tells {told} apart; name images of its own.")
    return Trial(model, facts, source, pick_device(device), batch_size, recipe)


def recipe_of(ref: Path) -> dict[str, Any]:
    """The options a run, or the run of a checkpoint, was trained with; none for anything else."""
    config = Run.of(ref).config
    return read_yaml(config) if ref.is_dir() and config.exists() else {}


def run_images(ref: Path, recipe: Mapping[str, Any], user: UserImages) -> tuple[str, Path | None]:
    """Name and folder of the images to show a model: the user's, or those its recipe names, if a file may.

    Raises:
        InputError: nobody names any, or the recipe names images that only the user may choose.
    """
    if user.data is not None:
        return user.data, user.data_dir
    if recipe.get("dataset") is None:
        raise InputError(f"which images should {ref} look at? Name them, as in --data digits or --data FOLDER.")
    named = {"data": recipe["dataset"], "data_dir": recipe.get("data_dir")}
    run = Run.of(ref)
    reference = allowed(named, str(run.config), run.path, user)
    return reference.data, None if reference.data_dir is None else Path(reference.data_dir)
