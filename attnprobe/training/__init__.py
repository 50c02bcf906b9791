"""Training: (model, images, TrainConfig) -> checkpoint and log.

Question: a trainer class with hooks, or a loop? Choice: one loop that reads top to bottom, built from timm's
optimiser, scheduler and moving average. Exact resume comes from seeding each step by (seed, epoch, step, process)
instead of storing random states: 20 microseconds a step, and any process can resume training anywhere.
"""

from attnprobe.training.config import MAY_CHANGE, TrainConfig
from attnprobe.training.devices import pick_device
from attnprobe.training.evaluate import evaluate
from attnprobe.training.loop import TrainResult, train
from attnprobe.training.recipes import RECIPES, read_recipe

__all__ = ["MAY_CHANGE", "RECIPES", "TrainConfig", "TrainResult", "evaluate", "pick_device", "read_recipe", "train"]
