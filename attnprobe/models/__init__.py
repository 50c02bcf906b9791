"""Models by name or from a checkpoint, with attention that can be read.

Question: our own transformer, or timm's? Choice: timm's `VisionTransformer`, subclassed once per paper, because
users know it, and every option, checkpoint and tool of timm's then works. A variant's file shows only what the
paper changes. Parameter names are the authors', so published checkpoints load strictly.
Reconsider if timm changes its block's call: `variants/` and `conv_stem.py` are what would have to follow.
"""

from attnprobe.models.build import build_model, input_spec
from attnprobe.models.load import load_model
from attnprobe.models.presets import ALIASES, MODELS
from attnprobe.models.prune import pruned_vit
from attnprobe.models.read import Checkpoint, read_checkpoint
from attnprobe.models.variants import VARIANTS
from attnprobe.models.weights import load_weights

__all__ = [
    "ALIASES",
    "MODELS",
    "VARIANTS",
    "Checkpoint",
    "build_model",
    "input_spec",
    "load_model",
    "load_weights",
    "pruned_vit",
    "read_checkpoint",
]
