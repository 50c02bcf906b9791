"""Which named geometries are there? One line each; all are registered with timm.

After `import attnprobe.models`, `timm.create_model("deepvit_16")` works like any other timm model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from attnprobe.core.registry import Registry
from attnprobe.models.variant import Variant
from attnprobe.models.variants.deepvit import DEEPVIT
from attnprobe.models.variants.refiner import REFINER
from attnprobe.models.variants.vit import VIT


@dataclass(frozen=True, slots=True)
class Preset:
    """A named model: a variant and the arguments its class is called with."""

    name: str
    variant: Variant
    options: Mapping[str, Any]
    summary: str
    aliases: tuple[str, ...] = ()


def _papers(depth: int) -> dict[str, Any]:
    """The geometry of the DeepViT paper's 16, 24 and 32 block models (24.4M, 36.3M, 48.1M parameters)."""
    return {"depth": depth, "embed_dim": 384, "num_heads": 12, "mlp_ratio": 3, "patch_size": 16, "img_size": 224}


def _digits(depth: int) -> dict[str, Any]:
    """Same depth, narrow, for 32 x 32 pixels in 16 patches: trains on two CPU cores in minutes."""
    return {"depth": depth, "embed_dim": 96, "num_heads": 6, "mlp_ratio": 3, "patch_size": 8, "img_size": 32}


def _small(depth: int, width: int, reattention: int, **options: Any) -> dict[str, Any]:
    """DeepViT-S and -L: re-attention in the last blocks only, convolutional stem, doubled branches."""
    last = tuple(range(depth - reattention, depth))
    more = {"embed_dim": width, "reattention": last, "scale_adjustment": 0.5, "conv_stem": True}
    return {**_papers(depth), **more, **options}


def _refiner(depth: int, width: int, heads: int, size: int = 224) -> dict[str, Any]:
    """Refiner-S, -M and -L: every second block shares a map, dense head and mix-token on."""
    share = tuple(block % 2 == 1 for block in range(depth))
    more = {"embed_dim": width, "num_heads": heads, "img_size": size, "share": share}
    return {**_papers(depth), **more, "dense": True, "mix_token": True, "conv_stem": True}


MODELS = Registry(
    "model",
    Preset("vit_16", VIT, _papers(16), "plain ViT, 16 blocks, width 384"),
    Preset("vit_24", VIT, _papers(24), "plain ViT, 24 blocks, width 384"),
    Preset("vit_32", VIT, _papers(32), "plain ViT, 32 blocks, width 384"),
    Preset("vit_16_digits", VIT, _digits(16), "plain ViT, 16 blocks, width 96, 32 px"),
    Preset("vit_24_digits", VIT, _digits(24), "plain ViT, 24 blocks, width 96, 32 px"),
    Preset("vit_32_digits", VIT, _digits(32), "plain ViT, 32 blocks, width 96, 32 px"),
    Preset("deepvit_16", DEEPVIT, _papers(16), "re-attention in all 16 blocks", ("deepvit_patch16_224_re_attn_16b",)),
    Preset("deepvit_24", DEEPVIT, _papers(24), "re-attention in all 24 blocks", ("deepvit_patch16_224_re_attn_24b",)),
    Preset("deepvit_32", DEEPVIT, _papers(32), "re-attention in all 32 blocks", ("deepvit_patch16_224_re_attn_32b",)),
    Preset("deepvit_16_digits", DEEPVIT, _digits(16), "re-attention, 16 blocks, width 96, 32 px"),
    Preset("deepvit_24_digits", DEEPVIT, _digits(24), "re-attention, 24 blocks, width 96, 32 px"),
    Preset("deepvit_32_digits", DEEPVIT, _digits(32), "re-attention, 32 blocks, width 96, 32 px"),
    Preset("deepvit_s", DEEPVIT, _small(16, 396, 5, transform_scale=True), "DeepViT-S, 27.3M", ("deepvit_S",)),
    Preset("deepvit_l", DEEPVIT, _small(32, 420, 12), "DeepViT-L, 58.9M", ("deepvit_L",)),
    Preset("deepvit_l_384", DEEPVIT, _small(32, 420, 12, img_size=384), "DeepViT-L at 384 px", ("deepvit_L_384",)),
    Preset("refiner_s", REFINER, _refiner(16, 384, 12), "Refiner-S, 25.4M", ("Refiner_ViT_S",)),
    Preset("refiner_m", REFINER, _refiner(32, 420, 12), "Refiner-M, 55.5M", ("Refiner_ViT_M",)),
    Preset("refiner_l", REFINER, _refiner(32, 512, 16), "Refiner-L, 81.2M", ("Refiner_ViT_L",)),
    Preset("refiner_s_384", REFINER, _refiner(16, 384, 12, 384), "Refiner-S at 384 px"),
    Preset("refiner_m_384", REFINER, _refiner(32, 420, 12, 384), "Refiner-M at 384 px"),
    Preset("refiner_l_384", REFINER, _refiner(32, 512, 16, 384), "Refiner-L at 384 px"),
    Preset("refiner_l_448", REFINER, _refiner(32, 512, 16, 448), "Refiner-L at 448 px"),
)


def _default_cfg(preset: Preset) -> dict[str, Any]:
    """What timm needs to know of a model; pixels and crop as the authors' evaluation."""
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


ALIASES = {alias: preset.name for preset in MODELS.values() for alias in preset.aliases}
default_cfgs = generate_default_cfgs(
    {name: _default_cfg(preset) for preset in MODELS.values() for name in (preset.name, *preset.aliases)}
)
for _preset in MODELS.values():
    for _name in (_preset.name, *_preset.aliases):
        register_model(_entry_point(_name, _preset))
