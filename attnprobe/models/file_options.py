"""Architectures and options that a file may name: entries of tables, with types and bounds.

timm takes options that load other files or fetch them (`pretrained`, `checkpoint_path`, `pretrained_cfg` with a file
or URL, `cache_dir`), and names that are addresses (`hf-hub:`). A checkpoint comes from elsewhere, so what it says about
its model is data: a name that timm or an installed package has a model for, and options from the list below.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import timm

from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.models.elsewhere import plugins

Check = Callable[[Any], bool]


def _whole(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(low: float, high: float) -> Check:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _each(check: Check, most: int = 1024) -> Check:
    """One such value, or a list of them."""
    return _or(check, _list(check, 1, most))


def _list(check: Check, least: int, most: int) -> Check:
    return lambda value: isinstance(value, list | tuple) and least <= len(value) <= most and all(map(check, value))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]{0,64}", value) is not None


def _among(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _or(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


_SHARE, _SIDE, _COUNT = _real(0, 1), _each(_whole(1, 8192), 2), _each(_whole(0, 65536))

OPTIONS: Mapping[str, Check] = {
    **dict.fromkeys(("img_size", "patch_size", "window_size", "ref_feat_shape"), _SIDE),
    **dict.fromkeys(("depth", "depths"), _each(_whole(1, 1024))),
    **dict.fromkeys(("embed_dim", "num_heads", "head_dim", "heads", "in_chans"), _COUNT),
    **{"image_size": _whole(1, 8192), "num_layers": _whole(1, 1024), "hidden_dim": _COUNT, "mlp_dim": _COUNT},
    **dict.fromkeys(("reg_tokens", "num_reg_tokens", "reattention", "swiglu_align_to"), _COUNT),
    "num_classes": _whole(0, 1_000_000),
    **dict.fromkeys(
        ("mlp_ratio", "head_expand", "init_values", "noise_std", "scale_adjustment"), _each(_real(0, 1024))
    ),
    "depth_token_only": _whole(0, 1024),
    "qk_scale": _real(1e-6, 1024),
    **dict.fromkeys(("rope_temperature", "rope_grid_offset"), _real(0, 1e9)),
    **dict.fromkeys(("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate"), _SHARE),
    "patch_drop_rate": _SHARE,
    **dict.fromkeys(("class_token", "qkv_bias", "qkv_fused", "qk_norm", "proj_bias", "pre_norm", "final_norm"), _flag),
    **dict.fromkeys(("no_embed_class", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "fix_init"), _flag),
    **dict.fromkeys(("pool_include_prefix", "scale_attn_norm", "scale_mlp_norm", "scale_attn_inner"), _flag),
    **dict.fromkeys(("swiglu_mlp", "scale_mlp", "use_rot_pos_emb", "use_abs_pos_emb", "rotate_half"), _flag),
    **dict.fromkeys(("use_post_norm", "use_pre_transformer_norm", "use_post_transformer_norm", "use_fc_norm"), _flag),
    **dict.fromkeys(("conv_stem", "transform_scale", "dense", "mix_token", "sin_pe", "init_once"), _flag),
    **dict.fromkeys(("pos_embed", "global_pool", "act_layer", "norm_layer", "embed_norm_layer"), _word),
    **dict.fromkeys(("weight_init", "pseudo_input1", "pseudo_input2", "solver", "compat", "cascade", "fuse"), _word),
    **dict.fromkeys(("attn_type", "rope_type"), _word),
    **dict.fromkeys(("fc_norm", "share", "refine"), _or(_each(_flag), _word)),
}
"""Option -> check of a value's type and bounds; None is always allowed."""

CLAIMED = ("embed_dim", "num_heads", "depth", "patch_size", "global_pool")
"""Options that training scripts take by these names as arguments of their own."""

_SEEING: Mapping[str, Check] = {
    "input_size": _list(_whole(1, 8192), 3, 3),
    "mean": _list(_real(-1e6, 1e6), 1, 1024),
    "std": _list(_real(1e-6, 1e6), 1, 1024),
    "crop_pct": _real(1e-3, 8),
    "num_classes": _whole(0, 1_000_000),
    "interpolation": _among("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming", "random"),
    "crop_mode": _among("center", "squash", "border"),
    **dict.fromkeys(("first_conv", "classifier"), _each(_word)),
    "fixed_input_size": _flag,
}
"""Entries of a `pretrained_cfg` about the input; addresses of weights are left out."""


def is_architecture(name: object) -> bool:
    """True if a file may name this architecture: one of timm, attnprobe or an installed package."""
    if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)?", name):
        return False
    return timm.is_model(name) or name in plugins()


def shown_value(value: Any) -> str:
    """A value in a message; its kind alone if it holds containers, which may hold one another many times over, or
    whole numbers of more digits than Python writes."""
    parts = list(value) if isinstance(value, list | tuple) else [value]
    plain = all(part is None or isinstance(part, str | bytes | int | float) for part in parts)
    plain = plain and not any(isinstance(part, int) and part.bit_length() > 1024 for part in parts)
    return f"{value!r:.80}" if plain else f"{type(value).__name__} of {len(parts)} parts"


def is_option(name: str, value: Any) -> bool:
    """True for an option in the list, of a type and in the bounds that it may have."""
    return name in OPTIONS and (value is None or OPTIONS[name](value))


def claimed(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a training script by names of options, unchecked; `gp` is timm's short name of global_pool."""
    given = {name: args.get(name) for name in CLAIMED}
    given["global_pool"] = args.get("global_pool") or args.get("gp")
    return {name: value for name, value in given.items() if value is not None}


def check_flags(options: Mapping[str, Any]) -> None:
    """Raises InputError for a word in place of true or false, which Python would take for true."""
    for name, value in options.items():
        if OPTIONS.get(name) is _flag and isinstance(value, str):
            raise InputError(f"{name}={value!r} is neither true nor false.")


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model from a file, checked.

    Raises:
        InputError: an option that is not in the list, a value of another type or out of bounds.
    """
    for name, value in options.items():
        if name == "of":  # the architecture that a pruned model was made from
            fits = is_architecture(value) and value != "pruned_vit"
        elif name in OPTIONS:
            fits = value is None or OPTIONS[name](value)
        else:
            said = str(name)
            raise InputError(
                f"no option of a model that may be set is named {said!r:.80}.{did_you_mean(said, OPTIONS)}"
            )
        if not fits:
            raise InputError(f"{name}={shown_value(value)} is not a value that this option of a model may have.")
    return dict(options)


def checked_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a `pretrained_cfg` about the input: sizes, normalisation, crop, first and last layer.

    Raises:
        InputError: a value of another type, or out of bounds.
    """
    seeing = {name: value for name, value in cfg.items() if name in _SEEING and value is not None}
    for name, value in seeing.items():
        if not _SEEING[name](value):
            raise InputError(f"pretrained_cfg: {name}={value!r:.80} is not a value that a file may give a model.")
    channels = seeing.get("input_size", (3,))[0]
    for name in ("mean", "std"):
        if len(seeing.get(name, (0,))) not in (1, 3, channels):
            raise InputError(f"pretrained_cfg: {name} has {len(seeing[name])} numbers for {channels} channels.")
    return seeing


def trained_with(args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a model and the description of its input, from the arguments of a training script as timm's.

    `model_kwargs` must be valid; other arguments may be another script's of the same name, and count only if valid.

    Returns:
        options: num_classes, in_chans and `model_kwargs`.
        cfg: input_size (also from `img_size`), mean, std, crop_pct and interpolation, as in a `pretrained_cfg`.

    Raises:
        InputError: an entry of `model_kwargs` that is not in the list, or of another type or out of bounds.
    """

    def valid(names: Mapping[str, Check], *wanted: str) -> dict[str, Any]:
        return {name: args[name] for name in wanted if args.get(name) is not None and names[name](args[name])}

    cfg = valid(_SEEING, "input_size", "mean", "std", "crop_pct", "interpolation")
    size, side = cfg.pop("input_size", None), args.get("img_size")
    if isinstance(size, list | tuple) and len(size) == 3:
        cfg["input_size"] = tuple(size)
    elif side is not None and _SIDE(side):
        rows, cols = (side, side) if isinstance(side, int) else (side[0], side[-1])
        cfg["input_size"] = (3, rows, cols)
    options = valid(OPTIONS, "num_classes")
    channels = args.get("in_chans") or cfg.get("input_size", (3,))[0]
    if isinstance(channels, int) and channels != 3:
        options["in_chans"] = channels
    kwargs = args.get("model_kwargs")
    return options | checked_options(dict(kwargs) if isinstance(kwargs, Mapping) else {}), cfg
