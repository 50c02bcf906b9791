"""ConvMixers whose spatial filters are given rather than learned, under the authors' names.

After `import attnprobe.models`, `timm.create_model("convmixer_256_8_3_box")` works: width 256, 8 blocks, 3 x 3 filters,
patches of 2 pixels. Filters learn in "_train" models and stay as drawn in the others.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convmixer import ConvMixer
from torch import nn

from attnprobe.models.initialisers.filters import initialise_filters


class StructuredConvMixer(ConvMixer):
    """timm's ConvMixer with initialised filters.

    Args:
        filter_init, filter_heads, filters_trainable: see `initialise_filters`.
        Everything else as timm's `ConvMixer`.

    Raises:
        InputError, ShapeError: see `initialise_filters`.
    """

    def __init__(
        self,
        *args: Any,
        filter_init: str = "random",
        filter_heads: int | None = None,
        filters_trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        initialise_filters(self, filter_init, num_heads=filter_heads, trainable=filters_trainable)


GEOMETRIES = ((256, 8, 3), (512, 6, 3), (512, 6, 5))
"""Width, depth and kernel of the registered models."""


def _filters(name: str, kernel: int) -> dict[str, Any]:
    init = {"train": "random", "random": "random", "impulse": "impulse", "box": f"box{kernel**2}"}[name]
    return {"filter_init": init, "filters_trainable": name == "train"}


CONVMIXERS = {
    f"convmixer_{dim}_{depth}_{kernel}_{name}": {
        "dim": dim, "depth": depth, "kernel_size": kernel, "patch_size": 2, **_filters(name, kernel)
    }
    for dim, depth, kernel in GEOMETRIES
    for name in ("train", "random", "impulse", "box")
}  # fmt: skip
"""Name -> arguments of `StructuredConvMixer`."""


def _entry_point(name: str, options: dict[str, Any]):
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(StructuredConvMixer, name, pretrained, **{**options, **kwargs})

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"ConvMixer with {options['filter_init']} filters."
    return build


default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 32, 32),
            "num_classes": 10,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "stem.0",
            "classifier": "head",
        }
        for name in CONVMIXERS
    }
)
for _name, _options in CONVMIXERS.items():
    register_model(_entry_point(_name, _options))
