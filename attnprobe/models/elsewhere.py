"""Models that are not timm's, by name: torchvision:NAME, hf:PATH_OR_ID, and names that other packages add.

A package adds names by the entry-point group `attnprobe.models`, in its pyproject.toml:

    [project.entry-points."attnprobe.models"]
    my_vit = "my_package.models:my_vit"

where `my_vit(**options)` returns any `nn.Module`; with `pretrained=True` among the options, its trained weights. Its
attribute `input_spec` (an `InputSpec`) says how it wants its pixels; without it, timm's resolution applies. Its
attribute `family` (a `Family` of `attnprobe.models.parts`) says how blocks and heads are removed from it.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn

from attnprobe.core.errors import InputError, did_you_mean, option
from attnprobe.core.images import InputSpec
from attnprobe.models.hub_folder import check_config, model_class, require_stored
from attnprobe.models.processor import processed

GROUP = "attnprobe.models"

SIZES = {"patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim"}
"""Options of torchvision's VisionTransformer that its functions by name, such as vit_b_16, fix."""


def is_elsewhere(name: str) -> bool:
    """True if a name is of torchvision, of transformers, of an ONNX file or of another package."""
    return name.startswith(("torchvision:", "hf:", "onnx:")) or name in plugins()


def plugins() -> dict[str, EntryPoint]:
    """Names that installed packages add."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def build_elsewhere(name: str, **options: Any) -> nn.Module:
    """The model of a name for which `is_elsewhere`, with its `input_spec`.

    Args:
        options: `pretrained` for trained weights, num_classes, img_size, and other options of the model.

    Raises:
        InputError: no such model, or the package it is in is not installed.
    """
    where, colon, rest = name.partition(":")
    if not colon:
        return plugins()[name].load()(**options)
    return {"torchvision": _torchvision, "hf": _hugging_face, "onnx": _onnx}[where](rest, **options)


def _onnx(path: str, *, pretrained: bool = True, **options: Any) -> nn.Module:
    """The graph of a file with the weights it holds; there is no other form of it."""
    from attnprobe.models.onnx_model import OnnxModel

    if not pretrained:
        raise InputError(f"onnx:{path} holds trained weights alone; it cannot be built with initial ones.")
    options.pop("num_classes", None)  # a graph has those it was exported with
    if options:
        raise InputError(f"onnx:{path} takes no options, got {', '.join(options)}; export the model with them.")
    return OnnxModel(path)


def _torchvision(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    models = importlib.import_module("torchvision").models
    if name not in models.list_models():
        raise InputError(f"torchvision has no model {name!r}.{did_you_mean(name, models.list_models())}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    if img_size is not None and name.startswith(("vit", "maxvit")):
        maxvit = name.startswith("maxvit")
        options["input_size" if maxvit else "image_size"] = to_2tuple(img_size) if maxvit else to_2tuple(img_size)[0]
    weights = models.get_model_weights(name).DEFAULT
    if name.startswith("vit") and SIZES & set(options):
        model: Any = _vit_of_sizes(models, name, options, pretrained)
        img_size = model.image_size
    else:
        model = models.get_model(name, weights=weights if pretrained else None, **options)
    eye = weights.transforms()
    crop_pct = eye.crop_size[0] / eye.resize_size[0]
    size: Any = to_2tuple(img_size or eye.crop_size[0])
    model.input_spec = InputSpec(size, tuple(eye.mean), tuple(eye.std), eye.interpolation.value, crop_pct)
    return model


def _vit_of_sizes(models: Any, name: str, sizes: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """torchvision's VisionTransformer of a name but for some sizes, which the function of that name does not take.

    Raises:
        InputError: trained weights of these sizes are asked for.
    """
    if pretrained:
        initial = option("initial", python="pretrained=False")
        raise InputError(f"torchvision has no weights of {name} with other sizes; {initial} takes initial ones.")
    with torch.device("meta"):
        usual = models.get_model(name)
    own = {size: getattr(usual, size) for size in ("image_size", "patch_size", "hidden_dim", "mlp_dim")}
    own |= {"num_layers": len(usual.encoder.layers), "num_heads": usual.encoder.layers[0].num_heads}
    return models.VisionTransformer(**{**own, **sizes})


def _hugging_face(
    ref: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise InputError(f"hf:{ref} needs transformers: pip install 'attnprobe[hf]'.") from None
    if os.path.isdir(ref):
        check_config(Path(ref))
    with without_network() if os.path.isdir(ref) else nullcontext():
        config = _config(transformers, ref, options)
        kind = model_class(transformers, ref, config)
        if hasattr(config, "vision_config"):  # a model of images and text: its image tower
            config = config.vision_config
            kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", transformers.AutoModel)
        try:
            if num_classes is not None:
                config.num_labels = num_classes
            if img_size is not None:
                config.image_size = img_size if isinstance(img_size, int) else list(img_size)
            with _quiet(transformers.logging):
                if os.path.isdir(ref):
                    require_stored(Path(ref), lambda: _initial(kind, deepcopy(config)))
                model = _weighted(ref, kind, config) if pretrained else _initial(kind, config)
        except AttributeError as error:  # as of a configuration of another model
            raise InputError(f"hf:{ref}: its config.json does not fit {kind.__name__}: {error}.") from error
        asked: Any = None if img_size is None else to_2tuple(img_size)
        model.input_spec = processed(ref, config, asked)
        return model


def _config(transformers: Any, ref: str, options: Mapping[str, Any]) -> Any:
    """The configuration of a folder or identifier.

    Raises:
        InputError: values that no model of its type has.
    """
    try:
        return transformers.AutoConfig.from_pretrained(ref, trust_remote_code=False, **options)
    except OSError:  # not there
        raise
    except Exception as error:  # transformers checks values by classes of its own
        reason = " ".join(str(error).split())
        raise InputError(f"hf:{ref}: its config.json is of no model of transformers: {reason:.300}") from error


def _initial(kind: Any, config: Any) -> Any:
    """The model of a configuration with initial weights."""
    return getattr(kind, "_from_config", getattr(kind, "from_config", kind))(config)


def _weighted(ref: str, kind: Any, config: Any) -> Any:
    """The model of a configuration with the weights of a folder or identifier.

    Raises:
        InputError: they lack some.
    """
    model, info = kind.from_pretrained(ref, config=config, dtype="float32", output_loading_info=True)
    if lacking := sorted(info["missing_keys"]):
        raise InputError(f"hf:{ref} has no weights for {len(lacking)} parameters, such as {lacking[0]!r}.")
    return model


@contextmanager
def without_network() -> Iterator[None]:
    """Switch the network off while a local folder is read: its config.json may name a backbone to fetch."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Switch off the progress bars and warnings of transformers."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
