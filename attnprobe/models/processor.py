"""The input of a model of transformers, as the image processor saved with its weights makes it."""

import importlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from attnprobe.core.images import InputSpec

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of its filters, which image processors use."""

RESAMPLED = 0.03
"""Mean difference of pixels, in standard deviations, up to which two libraries only resample otherwise."""

LARGEST = 4096
"""Largest number of a processor's settings with which it is tried on a picture."""

CONVNEXT_SQUASHES = 384
"""ConvNeXt's processor, the one with a `crop_pct`, crops smaller images and squashes those of this side or more."""


def processed(ref: str, config: Any, asked: tuple[int, int] | None = None) -> InputSpec:
    """The input of a model by its processor's files; of the configured size, with mean and std 0.5, without one.

    Args:
        ref: a folder, or an identifier whose files may be fetched.
        config: the model's; its `image_size` counts where the processor leaves the size open.
        asked: the user's size, which takes precedence.
    """
    configured = getattr(config, "image_size", None) or 224
    configured = (configured, configured) if isinstance(configured, int) else (configured[0], configured[1])
    made, settings = _settings(ref)
    if not settings:
        return InputSpec(asked or configured)
    size, crop_pct, crop_mode, is_crop = _geometry(settings, configured)
    mean, std = _normalisation(settings)
    spec = InputSpec(
        size,
        mean,
        std,
        FILTERS.get(int(settings.get("resample") or 0), "bicubic") if "resample" in settings else "bicubic",
        crop_pct,
        crop_mode,
        "bgr" if settings.get("do_flip_channel_order") else "rgb",
    )
    if not is_crop:
        warnings.warn(
            f"hf:{ref}: its image processor does not make images of one size by resizing and one square crop; they are "
            f"resized and cropped in the middle to {size[0]} x {size[1]}.",
            stacklevel=3,
        )
    elif made is not None and (other := _difference(made, spec)):
        warnings.warn(
            f"hf:{ref}: its image processor ({type(made).__name__}) {other}; maps are of other pixels than those it "
            f"prepares: images are resized and cropped to {size[0]} x {size[1]}. For its own, capture pixels that it "
            "made.",
            stacklevel=3,
        )
    return replace(spec, size=asked or size)


def _difference(made: Any, spec: InputSpec) -> str:
    """What a processor does to a test picture other than an `InputSpec`, after "its image processor"; "" if nothing."""
    if not _is_modest(vars(made)):
        return "names sizes that no picture is tried with"
    rows, cols = np.mgrid[:60, :80] / 60
    waves = np.stack([np.sin(7 * cols), np.sin(9 * rows + 1), np.cos(6 * (rows + cols))], axis=-1)
    picture = Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8))
    try:
        theirs = torch.as_tensor(made(picture, return_tensors="pt")["pixel_values"]).float()
    except Exception:  # one that takes more than a picture, or makes no pixels
        return "makes no pixels of a picture alone"
    ours = spec.normalise(torch.as_tensor(spec.transform()(picture))[None].float() / 255)
    if ours.shape != theirs.shape:
        return f"makes {tuple(theirs.shape[1:])} of a test picture, not {tuple(ours.shape[1:])}"
    apart = float((ours - theirs).abs().mean() / ours.std().clamp(min=1e-6))
    return "" if apart <= RESAMPLED else f"makes a test picture differ by {apart:.2f} of the pixels' standard deviation"


def _is_modest(values: Any, name: str = "") -> bool:
    """True if no number among nested settings would make a small picture huge: the files they are in are data."""
    if isinstance(values, Mapping):
        return all(_is_modest(value, str(key)) for key, value in values.items())
    if isinstance(values, list | tuple):
        return all(_is_modest(value, name) for value in values)
    number = abs(values) if isinstance(values, int | float) else 0
    return number <= LARGEST and (number == 0 or number >= 1 / LARGEST or name == "rescale_factor")


def _settings(ref: str) -> tuple[Any, dict[str, Any]]:
    """A processor and its settings, with its class's defaults; None and the file's own without the class; None and {}
    without a processor."""
    if not ref:  # a model that was built by hand
        return None, {}
    transformers: Any = importlib.import_module("transformers")
    try:
        made = transformers.AutoImageProcessor.from_pretrained(ref, trust_remote_code=False)
        return made, {name: getattr(made, name) for name in dir(made) if name in NAMES} | {KIND: type(made).__name__}
    except Exception:  # a class that is not here or needs another package: the file's own entries
        try:
            return None, transformers.ImageProcessingMixin.get_image_processor_dict(ref)[0]
        except (OSError, ValueError):
            return None, {}


NAMES = (
    *("do_resize", "size", "do_center_crop", "crop_size", "crop_pct", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_flip_channel_order", "rescale_offset", "include_top"),
)
KIND = "image_processor_type"


def _side(size: Any, name: str) -> int | None:
    """An entry of a size; a bare number is the shortest edge."""
    if isinstance(size, int):
        return size if name == "shortest_edge" else None
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)


def _rectangle(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    rows, cols = _side(size, "height"), _side(size, "width")
    return (rows, cols) if rows and cols else None


def _geometry(
    settings: Mapping[str, Any], configured: tuple[int, int]
) -> tuple[tuple[int, int], float, Literal["center", "squash"], bool]:
    """Size, crop_pct and crop_mode of resizing and cropping, and whether they are what the processor does."""
    size = settings.get("size") if settings.get("do_resize", True) else None
    edge, whole = _side(size, "shortest_edge"), None if isinstance(size, int) else _rectangle(size)
    crop = _rectangle(settings.get("crop_size")) if settings.get("do_center_crop") else None
    share = settings.get("crop_pct")
    if edge and share and not crop:
        squashes = edge >= CONVNEXT_SQUASHES
        return (edge, edge), 1.0 if squashes else float(share), "squash" if squashes else "center", True
    if edge and crop and crop[0] == crop[1]:
        return crop, _share(crop[0], _resized(edge, settings)), "center", True
    if whole and not crop:
        return whole, 1.0, "squash", True
    if whole and crop and crop[0] * whole[1] == crop[1] * whole[0]:
        return crop, _share(crop[0], whole[0]), "squash", True
    return crop or whole or configured, 1.0, "center", False


def _resized(edge: int, settings: Mapping[str, Any]) -> int:
    """The shortest edge of a resized image: larger than the stated one by PoolFormer's and LeViT's processors."""
    if settings.get("crop_pct"):
        return int(edge / settings["crop_pct"])
    return int(256 / 224 * edge) if str(settings.get(KIND)).startswith("Levit") else edge


def _share(side: int, resized: int) -> float:
    """The crop_pct for which floor(side / crop_pct) is `resized`, as timm computes it."""
    share = side / resized
    while math.floor(side / share) < resized:
        share = math.nextafter(share, 0)
    return share


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in [0, 1] that amount to (255 f pixel - mean) / std, of a processor that scales by f.

    EfficientNet's may subtract 1 more after scaling, and divide by std once more ("include_top").
    """
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize", "image_mean" in settings):
        mean, std = (_three(settings.get(name), 0.5) for name in ("image_mean", "image_std"))
    factor = settings.get("rescale_factor") or 1 / 255
    scale = 255 * (factor if settings.get("do_rescale", True) else 1.0)
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    offset = 1.0 if settings.get("rescale_offset") and settings.get("do_rescale", True) else 0.0
    again = _three(settings.get("image_std"), 0.5) if settings.get("include_top") else (1.0,) * len(std)
    return tuple((m + offset) / scale for m in mean), tuple(s * t / scale for s, t in zip(std, again, strict=True))


def _three(values: Any, otherwise: float) -> tuple[float, ...]:
    values = otherwise if values is None else values
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))
