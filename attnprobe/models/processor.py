"""The input of a model of transformers, as the image processor saved with its weights makes it."""

import importlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

from attnprobe.core.images import InputSpec

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers of its filters, which image processors use."""

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
    settings = _settings(ref)
    if not settings:
        return InputSpec(asked or configured)
    size, crop_pct, crop_mode = _geometry(ref, settings, configured)
    mean, std = _normalisation(settings)
    return InputSpec(
        asked or size,
        mean,
        std,
        FILTERS.get(int(settings.get("resample") or 0), "bicubic") if "resample" in settings else "bicubic",
        crop_pct,
        crop_mode,
        "bgr" if settings.get("do_flip_channel_order") else "rgb",
    )


def _settings(ref: str) -> dict[str, Any]:
    """Settings of a processor, with its class's defaults; {} without one."""
    if not ref:  # a model that was built by hand
        return {}
    transformers: Any = importlib.import_module("transformers")
    try:
        made = transformers.AutoImageProcessor.from_pretrained(ref, trust_remote_code=False)
        return {name: getattr(made, name) for name in dir(made) if not name.startswith("_") and name in NAMES}
    except Exception:  # a class that is not here or needs another package: the file's own entries
        try:
            return transformers.ImageProcessingMixin.get_image_processor_dict(ref)[0]
        except (OSError, ValueError):
            return {}


NAMES = (
    *("do_resize", "size", "do_center_crop", "crop_size", "crop_pct", "resample", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_flip_channel_order"),
)


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


def _geometry(ref: str, settings: Mapping[str, Any], configured: tuple[int, int]) -> tuple[tuple[int, int], float, Any]:
    """Size, crop_pct and crop_mode of resizing and cropping."""
    size = settings.get("size") if settings.get("do_resize", True) else None
    edge, whole = _side(size, "shortest_edge"), None if isinstance(size, int) else _rectangle(size)
    crop = _rectangle(settings.get("crop_size")) if settings.get("do_center_crop") else None
    share = settings.get("crop_pct")
    if edge and share and not crop:
        squashes = edge >= CONVNEXT_SQUASHES
        return (edge, edge), 1.0 if squashes else float(share), "squash" if squashes else "center"
    if edge and crop and crop[0] == crop[1]:
        return crop, _share(crop[0], edge), "center"
    if whole and not crop:
        return whole, 1.0, "squash"
    if whole and crop and crop[0] * whole[1] == crop[1] * whole[0]:
        return crop, _share(crop[0], whole[0]), "squash"
    target = crop or whole or configured
    warnings.warn(
        f"hf:{ref}: its image processor does not make images of one size by resizing and one square crop; they are "
        f"resized and cropped in the middle to {target[0]} x {target[1]}.",
        stacklevel=4,
    )
    return target, 1.0, "center"


def _share(side: int, resized: int) -> float:
    """The crop_pct for which floor(side / crop_pct) is `resized`, as timm computes it."""
    share = side / resized
    while math.floor(side / share) < resized:
        share = math.nextafter(share, 0)
    return share


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in [0, 1] that amount to (255 f pixel - mean) / std, of a processor that scales by f."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize", "image_mean" in settings):
        mean, std = (_three(settings.get(name), 0.5) for name in ("image_mean", "image_std"))
    factor = settings.get("rescale_factor") or 1 / 255
    scale = 255 * (factor if settings.get("do_rescale", True) else 1.0)
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def _three(values: Any, otherwise: float) -> tuple[float, ...]:
    values = otherwise if values is None else values
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values))
