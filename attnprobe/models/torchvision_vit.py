"""torchvision's VisionTransformer as timm's, which computes the same and can be written without some of its parts.

torchvision has no file format of its own, and no option for the number of blocks of `vit_b_16`.
"""

import re
from typing import Any

from attnprobe.core.errors import InputError
from attnprobe.models.build import build_model, input_spec
from attnprobe.models.same import compute_alike

NAME = "vit_base_patch16_224"
"""The architecture of timm's that is built with other sizes."""

NAMES = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)
"""Parts of torchvision's names of weights, as patterns, and what they are in timm."""


def as_timm(model: Any) -> tuple[str, dict[str, Any], Any]:
    """Name, options and model of timm's that computes what a VisionTransformer of torchvision does.

    Raises:
        InputError: a convolutional stem, or a head with a hidden layer, which timm's model does not have.
    """
    layers = model.encoder.layers
    options = {
        "img_size": model.image_size,
        "patch_size": model.patch_size,
        "embed_dim": model.hidden_dim,
        "depth": len(layers),
        "num_heads": layers[0].num_heads,
        "mlp_ratio": model.mlp_dim / model.hidden_dim,
        "num_classes": model.num_classes,
    }
    spec, other = input_spec(model), build_model(NAME, **options)
    other.pretrained_cfg = {  # type: ignore[assignment]
        **other.pretrained_cfg,  # type: ignore[dict-item]
        **{name: getattr(spec, name) for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")},
        "input_size": (3, *spec.size),
    }
    state = model.state_dict()
    for pattern, ours in NAMES:
        state = {re.sub(pattern, ours, name): value for name, value in state.items()}
    try:
        other.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(
            f"torchvision's model has parts that timm's has not ({reason:.120}); "
            "only a plain patch embedding and a linear head can be carried over."
        ) from error
    if not compute_alike(model, other):
        raise InputError("torchvision's model computes something else than timm's, so its parts cannot be removed.")
    return NAME, options, other.train(model.training)
