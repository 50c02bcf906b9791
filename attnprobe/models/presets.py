"""The named models, one line each; all are registered with timm.

After `import attnprobe.models`, `timm.create_model("deepvit_16")` works like any other timm model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from attnprobe.core.registry import Registry
from attnprobe.models.variant import Variant
from attnprobe.models.variants import VARIANTS
from attnprobe.models.variants.deepvit import DEEPVIT
from attnprobe.models.variants.refiner import REFINER
from attnprobe.models.variants.rich import RICHVIT
from attnprobe.models.variants.structured import STRUCTURED
from attnprobe.models.variants.vit import VIT


@dataclass(frozen=True, slots=True)
class Preset:
    """A named model: a variant and the arguments its class is called with."""

    name: str
    variant: Variant
    options: Mapping[str, Any]
    summary: str


def _papers(depth: int) -> dict[str, Any]:
    """The geometry of the DeepViT paper's 16, 24 and 32 block models (24.4M, 36.3M, 48.1M parameters)."""
    return {"depth": depth, "embed_dim": 384, "num_heads": 12, "mlp_ratio": 3, "patch_size": 16, "img_size": 224}


def _digits(depth: int) -> dict[str, Any]:
    """Same depth, narrow, for 32 x 32 pixels in 16 patches: trains on two CPU cores in minutes."""
    return {"depth": depth, "embed_dim": 96, "num_heads": 6, "mlp_ratio": 3, "patch_size": 8, "img_size": 32}


def _at_every_depth(variant: Variant) -> list[Preset]:
    """NAME_16, NAME_24, NAME_32, and the same with _digits: one variant at the geometries all share."""
    return [
        Preset(
            f"{variant.name}_{depth}{suffix}",
            variant,
            {**geometry(depth), **variant.options},
            f"{variant.summary}; {depth} blocks, {words}",
        )
        for suffix, geometry, words in (("", _papers, "width 384, 224 px"), ("_digits", _digits, "width 96, 32 px"))
        for depth in (16, 24, 32)
    ]


def _deepvit(depth: int, width: int, reattention: int, **options: Any) -> dict[str, Any]:
    """DeepViT-S and -L: re-attention in the last blocks only, convolutional stem, doubled branches."""
    last = tuple(range(depth - reattention, depth))
    more = {"embed_dim": width, "reattention": last, "scale_adjustment": 0.5, "conv_stem": True}
    return {**_papers(depth), **more, **options}


def _plain(depth: int, width: int, **options: Any) -> dict[str, Any]:
    """The plain controls of DeepViT-S and -L: no re-attention and, as in the paper's code, plain branches."""
    return {**_papers(depth), "embed_dim": width, "conv_stem": True, **options}


def _refiner(depth: int, width: int, heads: int, size: int = 224) -> dict[str, Any]:
    """Refiner-S, -M and -L: every second block shares a map, dense head and mix-token on."""
    more = {"embed_dim": width, "num_heads": heads, "img_size": size, "share": "alternate"}
    return {**_papers(depth), **more, "dense": True, "mix_token": True, "conv_stem": True}


def _tiny(img_size: int, patch_size: int) -> dict[str, Any]:
    """The structured-initialisation papers' tiny ViT: no class token, fixed sinusoidal positions, average pooling."""
    geometry = {"depth": 12, "embed_dim": 192, "num_heads": 3, "mlp_ratio": 4}
    return {**geometry, "img_size": img_size, "patch_size": patch_size, **STRUCTURED.options}


_VIT_B16 = {"depth": 12, "embed_dim": 768, "num_heads": 12, "mlp_ratio": 4, "patch_size": 16, "img_size": 224}

MODELS = Registry(
    "model",
    *(preset for variant in VARIANTS.values() for preset in _at_every_depth(variant)),
    Preset("deepvit_s", DEEPVIT, _deepvit(16, 396, 5, transform_scale=True), "DeepViT-S, 27.3M"),
    Preset("deepvit_l", DEEPVIT, _deepvit(32, 420, 12), "DeepViT-L, 58.9M"),
    Preset("deepvit_l_384", DEEPVIT, _deepvit(32, 420, 12, img_size=384), "DeepViT-L at 384 px"),
    Preset("vit_conv_s", VIT, _plain(16, 396), "plain control of DeepViT-S, 27.3M"),
    Preset("vit_conv_l", VIT, _plain(32, 420), "plain control of DeepViT-L, 58.9M"),
    Preset("vit_conv_l_384", VIT, _plain(32, 420, img_size=384), "plain control of DeepViT-L at 384 px"),
    Preset("refiner_s", REFINER, _refiner(16, 384, 12), "Refiner-S, 25.4M"),
    Preset("refiner_m", REFINER, _refiner(32, 420, 12), "Refiner-M, 55.5M"),
    Preset("refiner_l", REFINER, _refiner(32, 512, 16), "Refiner-L, 81.2M"),
    Preset("refiner_s_384", REFINER, _refiner(16, 384, 12, 384), "Refiner-S at 384 px"),
    Preset("refiner_m_384", REFINER, _refiner(32, 420, 12, 384), "Refiner-M at 384 px"),
    Preset("refiner_l_384", REFINER, _refiner(32, 512, 16, 384), "Refiner-L at 384 px"),
    Preset("refiner_l_448", REFINER, _refiner(32, 512, 16, 448), "Refiner-L at 448 px"),
    Preset("structured_tiny_patch2_32", STRUCTURED, _tiny(32, 2), "ViT-Ti/2 at 32 px, impulse initialisation"),
    Preset("structured_tiny_patch16_224", STRUCTURED, _tiny(224, 16), "ViT-Ti/16, impulse initialisation"),
    Preset("richvit_b16", RICHVIT, _VIT_B16, "rich head interaction (our reading) in ViT-B/16"),
    lister="attnprobe list models",
)

ALIASES = {
    "deepvit_patch16_224_re_attn_16b": "deepvit_16",
    "deepvit_patch16_224_re_attn_24b": "deepvit_24",
    "deepvit_patch16_224_re_attn_32b": "deepvit_32",
    "deepvit_S": "deepvit_s",
    "deepvit_L": "deepvit_l",
    "deepvit_L_384": "deepvit_l_384",
    "Refiner_ViT_S": "refiner_s",
    "Refiner_ViT_M": "refiner_m",
    "Refiner_ViT_L": "refiner_l",
    "vit_tiny_patch2_32": "structured_tiny_patch2_32",
}
"""The authors' names of our models. Their `vit_tiny_patch16_224` is a name of timm's, and stays timm's unless one of
their options is given; see `structured`."""

PLAIN = re.compile(r"vit_(tiny|small|base)_patch(\d+)_(\d+)")
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
STRUCTURED_ONLY = ("sin_pe", "pseudo_input1", "pseudo_input2", "init_once", "solver", "compat")


def is_structured(name: str, options: Mapping[str, Any]) -> bool:
    """True if a plain ViT of timm's is named with an option that only `StructuredViT` has."""
    initialised = str(options.get("weight_init", "")).startswith(("impulse", "mimetic"))
    named = PLAIN.fullmatch(name) is not None and name not in ALIASES
    return named and (initialised or any(option in options for option in STRUCTURED_ONLY))


def structured(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """The plain ViT of a name as timm's (12 blocks, heads of 64) as a `StructuredViT`: the authors' spelling.

    `vit_tiny_patch16_224` with `sin_pe=True` is that model with fixed positions, and no other option changed.
    """
    kind, patch, side = PLAIN.fullmatch(name).groups()  # type: ignore[union-attr]
    width = WIDTHS[kind]
    geometry = {"depth": 12, "embed_dim": width, "num_heads": width // 64, "patch_size": int(patch)}
    return build_model_with_cfg(
        STRUCTURED.model,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{**geometry, "img_size": int(side), **options},
    )


def _default_cfg(preset: Preset) -> dict[str, Any]:
    """timm's default configuration of a model; pixels and crop as in the authors' evaluation."""
    side = preset.options["img_size"]
    conv_stem = preset.options.get("conv_stem", False)
    return {
        "input_size": (3, side, side),
        "num_classes": 1000,
        "pool_size": None,
        "crop_pct": 0.9 if side >= 224 else 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.conv1" if conv_stem else "patch_embed.proj",
        "classifier": "head",
    }


def _entry_point(name: str, preset: Preset):
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            preset.variant.model,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            **{**preset.options, **kwargs},
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = preset.summary
    return build


_ENTRIES = {**{name: MODELS[name] for name in MODELS}, **{alias: MODELS[name] for alias, name in ALIASES.items()}}
default_cfgs = generate_default_cfgs({name: _default_cfg(preset) for name, preset in _ENTRIES.items()})
for _name, _preset in _ENTRIES.items():
    register_model(_entry_point(_name, _preset))
