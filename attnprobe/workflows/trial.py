"""A model and labelled images to try changes on: some images choose what to change, others judge it."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.devices import float_type
from attnprobe.core.errors import InputError, check_choice, option
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.core.outputs import class_logits
from attnprobe.core.spec import ImageOptions
from attnprobe.data import load_images
from attnprobe.data.order import one_half
from attnprobe.io.config import read_yaml
from attnprobe.io.reference import UserImages, allowed
from attnprobe.io.run import Run
from attnprobe.models import input_spec
from attnprobe.models.describe import ModelFacts, resolve_model
from attnprobe.models.features import features, n_classes
from attnprobe.stats.neighbours import n_neighbours, neighbour_answers
from attnprobe.training import TrainConfig, pick_device


@dataclass(frozen=True, slots=True)
class Trial:
    """A model on its device, and labelled images prepared for it.

    Attributes:
        judging: images of another split, which measure; None where one half of `images` does.
        ids: ids of the labelled images: those of `images`, then those of `judging`.
        chooses: [labelled image], bool: which of them choose; the others measure what was chosen.
        recipe: the options the run was trained with; empty for anything but a run.
        labels: [labelled image].
        has_head: whether the model tells the images' classes apart; else neighbours of its features do.
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
    labels: np.ndarray
    has_head: bool

    @property
    def measure(self) -> str:
        """Name of what counts as correct: top-1, or the vote of so many nearest neighbours."""
        return "top-1" if self.has_head else f"{n_neighbours(self.labels[self.chooses])}-NN"

    @torch.inference_mode()
    def answers(
        self, model: nn.Module, change: AbstractContextManager[Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correctness [labelled image], bool, and cross-entropy [labelled image], nats, while `change` is in force.

        Of a model without a head, by the nearest neighbours of its features among the images that choose; see
        `neighbour_answers`.
        """
        model = model.to(self.device).eval()
        right, loss, rows = [], [], []
        with change or nullcontext():
            for pixels, labels in self.labelled():
                if not self.has_head:
                    rows.append(features(model, pixels.to(float_type(model))).float().cpu())
                    continue
                logits = logits_of(model, pixels, len(self.images.class_names))
                right.append((logits.argmax(-1) == labels).cpu())
                loss.append(F.cross_entropy(logits.float(), labels, reduction="none").cpu())
        if not self.has_head:
            return neighbour_answers(torch.cat(rows).numpy(), self.labels, self.chooses)
        return torch.cat(right).numpy(), torch.cat(loss).double().numpy()

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels of the labelled images, a batch at a time."""
        for source in filter(None, (self.images, self.judging)):
            for batch in source.batches(self.batch_size, device=self.device):
                known = batch.labels >= 0
                yield batch.pixels[known], batch.labels[known]


def open_trial(ref: Path | str | nn.Module, **options: Any) -> Trial:
    """Open a run, checkpoint, model name or model, with the run's validation images unless others are named.

    A VisionTransformer of torchvision becomes timm's of the same weights, which can be written without parts. A model
    that is no run and tells other classes apart than the images have is judged by its features, with a warning.

    Args:
        options: fields of `ImageOptions`. Of them, `split` is "val" where one half of the validation images chooses and
            the other judges (`one_half`), "train" where training images choose and validation images judge; and
            `images` is a class-balanced subset of so many, of each split.

    Raises:
        InputError: no images are named, fewer than two of them have a label, they have other classes than a run's, or
            the same images are in both splits.
        CheckpointError: the checkpoint cannot be loaded, see `load_model`.
    """
    asked = ImageOptions(**options)
    model, facts = _opened(ref, asked.architecture)
    ref = Path(type(ref).__name__ if isinstance(ref, nn.Module) else ref)
    recipe = recipe_of(ref)
    data, data_dir = run_images(ref, recipe, UserImages(asked.data, asked.data_dir))
    check_choice("split", asked.split, ("train", "val"))
    opening = {
        "spec": prepared_for(model, asked),
        "data_dir": data_dir,
        "limit": asked.images,
        "bad_images": asked.bad_images,
    }
    source = load_images(data, asked.split, **opening)
    classes = n_classes(model)
    has_head = classes != 0
    if not recipe and source.class_names and classes and are_other_classes(source, classes, data):
        n, has_head = len(source.class_names), False
        text = f"{ref} tells {classes} classes apart, not the {n} of {source.name}: its features are judged."
        warnings.warn(text, stacklevel=2)
    else:
        check_classes(source, classes, str(ref), data)
    judging = load_images(data, "val", **opening) if asked.split == "train" else None
    if judging is not None and (same := set(source.ids) & set(judging.ids)):
        raise InputError(
            f"{min(same)!r} is in both splits of {data}, so what training images choose has no others to judge it; "
            f"leave {option('split', 'train')} out, and one half chooses."
        )
    ids, labels, chooses = _shared_out(source, judging)
    device = pick_device(asked.device)
    return Trial(model, facts, source, judging, ids, chooses, device, asked.batch_size, recipe, labels, has_head)


def _opened(ref: Path | str | nn.Module, architecture: str | None) -> tuple[nn.Module, ModelFacts]:
    """The model and its facts; of one built by hand, the name that timm knows it by, if it does."""
    if isinstance(ref, nn.Module):
        name = (getattr(ref, "pretrained_cfg", None) or {}).get("architecture") or type(ref).__name__
        n = n_classes(ref)
        options = {} if n is None else {"num_classes": n}
        model, facts = ref, ModelFacts(name, type(ref).__name__, "", options, sum(p.numel() for p in ref.parameters()))
    else:
        model, facts = resolve_model(ref, architecture)
    if type(model).__module__.startswith("torchvision.models.vision_transformer"):
        from attnprobe.models.torchvision_vit import as_timm  # imports torchvision's models

        name, options, model = as_timm(model)
        facts = replace(facts, model=name, options=options)
    return model, facts


def logits_of(model: nn.Module, pixels: Tensor, classes: int | None = None) -> Tensor:
    """[image, class] of any kind of model with a head; of probabilities their logarithms.

    Args:
        classes: number of the images' classes, by which the logits of several outputs are known where the model does
            not say how many it has.

    Raises:
        InputError: its output has none, or one number per image.
    """
    logits = class_logits(model(pixels.to(float_type(model))), len(pixels), (n_classes(model) or None, classes or None))
    if logits is None:
        raise InputError(f"{type(model).__name__} returns no logits [image, class]; `evaluate --knn` judges features.")
    if logits.shape[-1] < 2:
        raise InputError(
            f"{type(model).__name__} returns one number per image, from which no class follows; give it a logit per "
            "class, or `evaluate --knn` judges features."
        )
    return logits


def check_classes(source: ImageSource, classes: int | None, ref: str, data: str) -> None:
    """Raise InputError unless images have labels, of the model's classes; a backbone (0 classes) takes any."""
    if not source.class_names:
        raise InputError(
            f"the images of {source.name} have no labels, as folders named by class would give them, so there is no "
            f"accuracy; name labelled images with {option('data')}."
        )
    if classes and are_other_classes(source, classes, data):
        n = len(source.class_names)
        raise InputError(f"{source.name} has {n} classes and {ref} tells {classes} apart; name images of its own.")


def are_other_classes(source: ImageSource, classes: int, data: str) -> bool:
    """True if the images' classes are not those that a model tells apart.

    Folders of some of its classes are numbered otherwise than the model numbers them. A list that gives numbers may
    have no image of the last ones.
    """
    n = len(source.class_names)
    of_list = Path(data).suffix == ".txt" and source.class_names == tuple(map(str, range(n)))
    return n > classes or (n < classes and not of_list)


def prepared_for(model: nn.Module, asked: ImageOptions) -> InputSpec:
    """Preparation of pixels: as the model was trained, but for what the user sets; grey by one mean and one std."""
    own, chosen = input_spec(model), asked.preparation
    if not 0 < chosen.get("crop_pct", 1.0) <= 2:
        raise InputError(f"crop_pct {chosen['crop_pct']} must be a share of the resized image, such as 0.9.")
    as_grey = len(chosen.get("mean", ())) == len(chosen.get("std", ())) == 1
    for name in ("mean", "std"):
        if len(chosen.get(name, own.mean)) != len(own.mean) and not as_grey:
            grey = ", or one for mean and std each, for grey images" if len(own.mean) == 3 else ""
            raise InputError(
                f"{option(name)} needs {len(own.mean)} numbers, one per channel{grey}; got {len(chosen[name])}."
            )
    return replace(own, **chosen)


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
        some = f"{option('data', 'digits')} or {option('data', 'FOLDER')}"
        raise InputError(f"no images are named for {ref}. Name some, as in {some}.")
    named = {"data": recipe["dataset"], "data_dir": recipe.get("data_dir")}
    run = Run.of(ref)
    reference = allowed(named, str(run.config), run.path, user)
    return reference.data, None if reference.data_dir is None else Path(reference.data_dir)


def _shared_out(source: ImageSource, judging: ImageSource | None) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The ids of all labelled images, their labels, and which of them choose."""
    ids, labels = _with_label(source)
    if judging is None:
        if len(ids) < 2:
            raise InputError(f"{source.name} has {len(ids)} labelled images; one half chooses and the other judges.")
        return tuple(ids), np.array(labels), one_half(ids, labels)
    others, more = _with_label(judging)
    if not (ids and others):
        raise InputError(f"{(source if not ids else judging).name} has no labelled image, so no accuracy.")
    return (*ids, *others), np.array(labels + more), np.arange(len(ids) + len(others)) < len(ids)


def _with_label(source: ImageSource) -> tuple[list[str], list[int]]:
    """Ids and labels of the labelled images."""
    found = [
        (name, label)
        for batch in source.batches(64)
        for name, label in zip(batch.ids, batch.labels.tolist(), strict=True)
        if label >= 0
    ]
    return [name for name, _ in found], [label for _, label in found]
