"""The work of a capture: a model and its images, ready to be captured, and the plan that says what is stored."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from attnprobe.capturing import Capture, Recording
from attnprobe.capturing.selection import Selection
from attnprobe.core.devices import own_gpu
from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource
from attnprobe.core.spec import CaptureSpec
from attnprobe.data import load_images
from attnprobe.data.decode import DecodedImages
from attnprobe.data.shared_list import Shared
from attnprobe.io.ranks import Rank
from attnprobe.io.reference import UserImages
from attnprobe.io.run import Run
from attnprobe.models import build_model
from attnprobe.models.describe import resolve_model
from attnprobe.models.features import n_classes
from attnprobe.store.plan import CapturePlan
from attnprobe.training import pick_device
from attnprobe.workflows.lockstep import Replica
from attnprobe.workflows.trial import prepared_for, recipe_of, run_images


@dataclass(frozen=True)
class Task:
    """One model and its images, ready to be captured; `name` stands for it in a report."""

    name: str
    module: nn.Module
    device: torch.device
    images: ImageSource
    plan: CapturePlan
    capture: Callable[[nn.Module], Capture]

    @cached_property
    def capturing(self) -> Capture:
        """The capture; the model is on the device from now on, until `release`."""
        return self.capture(self.module)

    def release(self) -> None:
        """Leave the device to the next model."""
        self.__dict__.pop("capturing", None)
        self.module.to("cpu")


def tasks(
    spec: CaptureSpec, rank: Rank, replica: Replica | None = None, shared: Path | None = None, scan: bool = False
) -> tuple[Task, Task | None]:
    """The capture, and that of its untrained baseline if the model has trained weights.

    Args:
        replica: of this process; by itself if None.
        shared: file in which the first process of a job leaves the list of images for the others.
        scan: open every file before anything else, so that the plan has none that cannot be read.
    """
    replica = replica or Replica(rank)
    factors = spec.store == "qk"
    if factors and not {"weights", "effective"} & set(spec.kept):
        raise InputError("queries and keys are stored in place of maps; ask for weights or effective, too.")
    selection = Selection.parse(spec.layers, spec.heads, spec.queries)
    how = {name: getattr(spec, name) for name in ("img_size", "seed", "allow_nonfinite", "initial")}
    model, facts = resolve_model(spec.model, spec.architecture, **how)
    for note in facts.notes:
        warnings.warn(note, stacklevel=3)
    device = pick_device(spec.device)
    device = device if rank.alone and replica.size == 1 else own_gpu(device, rank.local)
    # a graph (onnx:) has trained weights alone
    has_baseline = bool(spec.untrained and facts.sha256) and not facts.model.startswith("onnx:")
    pixels, recipe = prepared_for(model, spec), recipe_of(Path(spec.model))
    data, data_dir = run_images(Path(spec.model), recipe, UserImages(spec.data, spec.data_dir))
    opening: dict[str, Any] = {"spec": pixels, "data_dir": data_dir, "bad_images": spec.bad_images}
    opening |= {"workers": spec.workers, "scan": scan}
    with TemporaryDirectory() as alone:
        if shared or has_baseline:  # which would list them a second time
            request = f"{data} {data_dir} {spec.split} {spec.images} {scan}"
            opening["shared"] = Shared(shared or Path(alone) / "images", request)
        source = load_images(data, spec.split, limit=spec.images, **opening)
        few = None
        if has_baseline:
            with warnings.catch_warnings(action="ignore"):  # they are some of the images, of which all was said
                few = load_images(data, spec.split, limit=min(spec.untrained, spec.images or spec.untrained), **opening)
            if isinstance(source, DecodedImages) and isinstance(few, DecodedImages):
                few.remarked = source.remarked  # what is said of the one need not be said of the other
    if remark := no_accuracy(len(source.class_names), n_classes(model), str(spec.model), source.name):
        warnings.warn(remark, stacklevel=3)
    images = {"data": data, "split": spec.split, "data_dir": data_dir and str(data_dir), "images": spec.images}
    plan = CapturePlan(
        image_ids=tuple(source.ids),
        model=facts.model,
        variant=facts.variant,
        checkpoint_sha256=facts.sha256,
        config={
            "model_args": facts.options,
            "named": {"model": str(spec.model), "architecture": spec.architecture},
            "parameters": facts.parameters,
            "notes": list(facts.notes),
            "spec": asdict(pixels),
            **({"preparation": asked} if (asked := spec.preparation) else {}),
            "images": images,
            "class_names": list(source.class_names),
            "recipe": recipe,
        },
        versions={name: version(name) for name in ("torch", "timm", "attnprobe")},
        data=source.fingerprint,
        seed=spec.seed,
        device=device.type,
        settings=_settings(spec, selection),
    )

    def task(module: nn.Module, of: ImageSource, its: CapturePlan) -> Task:
        kept: dict[str, Any] = {"factors": factors, "allow_missing": spec.allow_missing}
        kept["amp"] = torch.bfloat16 if spec.amp else None
        kept |= {name: name in spec.kept for name in ("tokens", "values")}

        def capture(model: nn.Module) -> Capture:
            there = replica.placed(model, device)
            return Capture(
                Recording(there, spec.sites, selection=selection, **kept), of, spec.batch_size, replica.size == 1
            )

        return Task(Run.of(Path(spec.model)).path.stem or its.model, module, device, of, its, capture)

    main = task(model, source, plan)
    if few is None:
        return main, None
    base = replace(plan, image_ids=tuple(few.ids), checkpoint_sha256="", data=few.fingerprint)
    return main, task(build_model(facts.model, seed=spec.seed, **facts.options), few, base)


def no_accuracy(of_images: int, of_model: int | None, model: str, images: str) -> str:
    """Sentence on a model whose head does not tell the images' classes apart, so that nothing is right or wrong.

    Empty where it does, or where it is not known.

    Args:
        of_images, of_model: numbers of classes; 0 for images without labels, and for a model without a head.
    """
    if not of_images or of_model is None or of_images == of_model:
        return ""
    apart = (
        f"tells {of_model} classes apart, not the {of_images}"
        if of_model
        else f"has no head for the {of_images} classes"
    )
    return f"no accuracy: {model} {apart} of {images} (attnprobe evaluate --knn judges its features)."


def _settings(spec: CaptureSpec, selection: Selection) -> dict[str, Any]:
    """The options that decide which numbers are stored. What is not chosen is left out, as in plans of old."""
    settings: dict[str, Any] = {"what": list(spec.kept), "autocast": spec.amp or False}
    if spec.store == "qk":
        settings["store"] = "qk"
    if not selection.everything:
        layers = None if selection.layers is None else sorted(selection.layers)
        settings |= {"layers": layers, "heads": selection.heads, "queries": selection.queries}
    return settings
