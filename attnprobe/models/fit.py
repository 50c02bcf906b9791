"""Options of a model that its weights show: head, class token, registers, pooling, channels, patches, image size."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from attnprobe.core.errors import CheckpointError, option
from attnprobe.models.build import build_model
from attnprobe.models.misfit import require_same_tokens
from attnprobe.models.read import Checkpoint
from attnprobe.models.unwrap import require_ranks, unwrap
from attnprobe.models.weights import classifiers, has_table, stored_grid


def fit_options(
    checkpoint: Checkpoint,
    name: str,
    options: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The options with which the named model takes a checkpoint's weights as stored, and a note on every assumption.

    Args:
        options: what the file or its weights say; what the weights show otherwise takes precedence.
        num_classes, img_size: what the user says; takes precedence over all.

    Raises:
        CheckpointError: the image size is neither given nor known, or only one of file and model is distilled.
    """
    options = dict(options)
    model = _shape_of(name, options)
    state, _ = unwrap(checkpoint.stored or checkpoint.state, model.state_dict())
    require_ranks(state, model.state_dict(), checkpoint.path.name)
    require_same_tokens(checkpoint, state, name, model, options)
    shown, notes = _head(state, model)
    if isinstance(model, VisionTransformer):
        tokens, more = _tokens(state, model)
        shown |= tokens | _patches(state, model)
        notes += more
    options |= shown
    if num_classes is not None:
        options["num_classes"] = num_classes
        notes = [note for note in notes if "num_classes" not in note]
    if img_size is not None:
        return {**options, "img_size": img_size}, notes
    model = _shape_of(name, options) if shown else model
    size, more = _image_size(state, checkpoint, model)
    return options | size, notes + more


def _shape_of(name: str, options: Mapping[str, Any]) -> Any:
    """The model without memory for its weights, or with, if it computes while it is built."""
    try:
        with torch.device("meta"):
            return build_model(name, **options)
    except Exception:
        return build_model(name, **options)


def _head(state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """The number of classes of the stored head; 0 without one."""
    weight = f"{classifiers(model)[0]}.weight"
    if weight in state:
        return {"num_classes": state[weight].shape[0]}, []
    if weight not in model.state_dict():
        return {}, []
    return {"num_classes": 0}, ["holds no head, so the model has none (num_classes=0)"]


def _tokens(state: Mapping[str, Tensor], model: Any) -> tuple[dict[str, Any], list[str]]:
    """Class token, registers and pooling of a ViT, where they differ from the named model's."""
    own, shown = model.state_dict(), {}
    if ("cls_token" in own) != ("cls_token" in state):
        shown["class_token"] = "cls_token" in state
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    if registers != getattr(model, "num_reg_tokens", registers):
        shown["reg_tokens"] = registers
    attention_pool = any(name.startswith("attn_pool.") for name in state)
    if attention_pool and "attn_pool.q.weight" not in own:
        shown["global_pool"] = "map"
    elif not attention_pool:
        averages = ("fc_norm.weight" in state) != ("fc_norm.weight" in own)
        if averages or (shown.get("class_token") is False and model.global_pool == "token"):
            shown |= {"global_pool": "avg", "fc_norm": "fc_norm.weight" in state}
    said = ", ".join(f"{option}={value}" for option, value in shown.items())
    return shown, [f"its weights show {said}"] if shown else []


def _patches(state: Mapping[str, Tensor], model: Any) -> dict[str, Any]:
    """Channels and patch size of a ViT's linear embedding, where they differ from the named model's."""
    name = "patch_embed.proj.weight"
    own, stored = model.state_dict().get(name), state.get(name)
    if own is None or stored is None or stored.ndim != 4 or hasattr(model.patch_embed, "conv1"):
        return {}
    shown: dict[str, Any] = {"in_chans": stored.shape[1]} if stored.shape[1] != own.shape[1] else {}
    if stored.shape[2:] != own.shape[2:]:
        rows, cols = stored.shape[2:]
        shown["patch_size"] = rows if rows == cols else (rows, cols)
    return shown


def _image_size(state: Mapping[str, Tensor], checkpoint: Checkpoint, model: Any) -> tuple[dict[str, Any], list[str]]:
    """The image size at which the position table is used as stored, where it differs from the model's own.

    Raises:
        CheckpointError: a table that is no square, in a file that does not say for which images.
    """
    embed: Any = getattr(model, "patch_embed", None)
    own = getattr(embed, "img_size", None)
    if not own:
        return {}, []
    if not has_table(state, model):
        declared = tuple(checkpoint.pretrained_cfg.get("input_size", ())[-2:])
        return ({"img_size": _shortest(declared)} if declared and declared != tuple(own) else {}), []
    grid, is_declared = stored_grid(state["pos_embed"], checkpoint, model)
    if grid is None:
        raise CheckpointError(
            f"{checkpoint.path.name}: its position table of {state['pos_embed'].shape[1]} entries is no square of "
            "patches, and the file does not say for which images; give their rows and columns, as in "
            f"{option('img-size', '64 256', python='img_size=(64, 256)')}."
        )
    if grid == tuple(embed.grid_size):
        return {}, []
    size = _shortest(tuple(cells * (side // n) for cells, side, n in zip(grid, own, embed.grid_size, strict=True)))
    if is_declared:
        return {"img_size": size}, []
    assumed = f"its {grid[0] * grid[1]} positions are read as {grid[0]} x {grid[1]} patches ({size} px)"
    sides = option("img-size", "ROWS COLUMNS", python="img_size=(ROWS, COLUMNS)")
    confirmed = option("img-size", str(size), python=f"img_size={size}")
    return {"img_size": size}, [f"{assumed}; confirm that with {confirmed}, or give {sides}"]


def _shortest(size: tuple[int, ...]) -> Any:
    return size[0] if size[0] == size[1] else size
