"""Reasons why a file's weights are not those of the model that was named, and what to name or to save instead."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import timm
from torch import Tensor, nn

from attnprobe.core.errors import CheckpointError, option
from attnprobe.models.build import without_memory
from attnprobe.models.identify import identify, sizes_beyond
from attnprobe.models.read import Checkpoint

SHOWN_BY: Mapping[str, tuple[str, Any]] = {
    r"blocks\.\d+\.attn\.[qk]_norm\.": ("qk_norm", True),
    r"blocks\.\d+\.ls[12]\.gamma$": ("init_values", 1e-5),
}
"""Names of parameters that an option of timm's gives a ViT; the value of the latter is an initial one."""

LORA = re.compile(r"(^|\.)lora_\w+(\.|$)")
"""What adapters beside a model's own weights are called."""


def require_same_tokens(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], name: str, model: nn.Module, options: Mapping[str, Any]
) -> None:
    """Raise CheckpointError if one of file and model has a distillation token, and so another table of positions.

    Args:
        state: the file's weights as the model calls them.
        name, options: of the model.
    """
    is_distilled = "dist_token" in state
    if is_distilled == ("dist_token" in model.state_dict()):
        return
    other = _distilled(name) if is_distilled else name.replace("_distilled", "")
    has, lacks = ("has a", "has none") if is_distilled else ("has no", "has one")
    advice = ""
    if timm.is_model(other):
        shown = _argument(other, _with_sizes(sizes_beyond(other, state), options))
        advice = f" Name the {'distilled' if is_distilled else 'plain'} model, as in {option('model', shown)}."
    raise CheckpointError(
        f"{checkpoint.path.name} {has} distillation token (dist_token), and {name!r} {lacks}.{advice}"
    )


def refuse_misfits(
    checkpoint: Checkpoint,
    got: Mapping[str, Tensor],
    name: str,
    model: nn.Module,
    options: Mapping[str, Any],
    left_out: Iterable[str] = (),
) -> None:
    """Raise CheckpointError unless a file's weights are the model's, one by one.

    Args:
        got: the file's weights as the model calls them.
        name, options: of the model.
        left_out: names in the file that would be left out as parts of no vision transformer.
    """
    wanted = model.state_dict()
    wrong = [f"{k} is {tuple(got[k].shape)}, model wants {tuple(v.shape)}" for k, v in wanted.items()
             if k in got and got[k].shape != v.shape]  # fmt: skip
    wrong += [f"{k} is {got[k].dtype}, model wants {v.dtype}" for k, v in wanted.items()
              if k in got and got[k].is_floating_point() != v.is_floating_point()]  # fmt: skip
    missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    if not (wrong or missing or extra):
        return
    unknown = sorted({*extra, *left_out}) if missing else extra
    parts = [("of other shapes", wrong), ("missing", missing), ("unknown to it", unknown)]
    problems = "; ".join(f"{len(items)} {what} ({', '.join(items[:2])})" for what, items in parts if items)
    advice = _advice(checkpoint, got, name, options, unknown)
    raise CheckpointError(f"{checkpoint.path.name} is not a {name!r} checkpoint: {problems}. {advice}.")


def _advice(
    checkpoint: Checkpoint, got: Mapping[str, Tensor], name: str, options: Mapping[str, Any], unknown: list[str]
) -> str:
    """What to name or to save; nothing that was named already."""
    if adapters := [key for key in unknown if LORA.search(key)]:
        return (
            f"{adapters[0]} is of an adapter (LoRA): merge adapters into the weights first, as peft's "
            "merge_and_unload() does, then save model.state_dict()"
        )
    likely = identify(checkpoint.state)
    if likely and likely.name != name:
        return f"It looks like {likely.name!r}; try {option('model', likely.name)}"
    sizes = sizes_beyond(name, got)
    shown = _shown_options(name, got, {**options, **sizes}, unknown)
    argument = _argument(name, {**_with_sizes(sizes, options), **shown})
    if shown:
        said = ", ".join(f"{key}={_text(value)}" for key, value in shown.items() if key != "num_heads")
        return f"They are those of {said}; name the model with its options, as in {option('model', argument)}"
    if checkpoint.architecture == name:
        return f"The file's own description does not fit its weights; name its model with {option('model')}"
    if any(options.get(key) != value for key, value in sizes.items()):
        hidden = "HEADS" in argument
        told = ", with the number of heads that it was built with" if hidden else ""
        return f"The sizes of its weights are those of {option('model', argument)}{told}"
    if sizes and unknown:
        return (
            f"No option of {name!r} is known to give it {' and '.join(unknown[:2])}; name the model that has them with "
            f"{option('model')}, or save the weights without them"
        )
    example = f"{name}:{'hidden_dim=256' if name.startswith('torchvision:') else 'embed_dim=256'},num_heads=4"
    return f"Name the model and the options it was built with, as in {option('model', example)}"


def _shown_options(
    name: str, got: Mapping[str, Tensor], options: Mapping[str, Any], unknown: list[str]
) -> dict[str, Any]:
    """The options that give the named model parameters of these names."""
    shown: dict[str, Any] = {}
    for pattern, (key, value) in SHOWN_BY.items():
        names = {one for one in unknown if re.match(pattern, one)}
        heads = {"num_heads": 1} if "embed_dim" in options else {}  # names do not depend on it
        tried = without_memory(name, {**options, **heads, **shown, key: value}) if names else None
        if tried is not None and names <= set(tried.state_dict()):
            shown[key] = value
    head = got.get("blocks.0.attn.q_norm.weight")
    width = options.get("embed_dim")
    if "qk_norm" in shown and head is not None and isinstance(width, int) and head.numel() and width > head.numel():
        shown["num_heads"] = width // head.numel()
    return shown


def _with_sizes(sizes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that weights show, and other options; but head and images are as a model's own where no size says so."""
    fitted = {"num_classes", "img_size", *sizes}
    return {**sizes, **{key: value for key, value in options.items() if key not in fitted}}


def _argument(name: str, options: Mapping[str, Any]) -> str:
    """A name with options, as users write it; HEADS where a width is its own and no weight shows the heads."""
    options = {**options, **({"num_heads": "HEADS"} if "embed_dim" in options and "num_heads" not in options else {})}
    said = ",".join(f"{key}={_text(value)}" for key, value in options.items() if value is not None)
    return f"{name}:{said}" if said else name


def _text(value: Any) -> str:
    """A value as `named_options` reads it."""
    value = list(value) if isinstance(value, tuple) else value
    text = str(value).replace(" ", "")
    return text.lower() if isinstance(value, bool) else text.replace("e-0", "e-")


def _distilled(name: str) -> str:
    """The distilled model of a plain one's size; "" if timm has none."""
    words = re.sub("^vit_", "deit_", name).partition(".")[0].split("_")
    names = ("_".join([*words[:k], "distilled", *words[k:]]) for k in range(1, len(words) + 1))
    return next(filter(timm.is_model, names), "")
