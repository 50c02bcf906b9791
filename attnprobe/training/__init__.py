"""(model, images, TrainConfig) -> checkpoint and log.

Question: a trainer class with hooks, or a loop? Choice: one loop a person reads top to bottom, built from timm's
optimiser, scheduler and moving average. Exact resume comes from seeding each epoch by (seed, epoch) instead of
storing random states: fewer bytes, and any epoch can be run again alone. Reconsider when checkpoints are wanted
inside an epoch.
"""

from attnprobe.training.config import TrainConfig
from attnprobe.training.loop import TrainResult, evaluate, pick_device, train
from attnprobe.training.recipes import RECIPES, read_recipe

__all__ = ["RECIPES", "TrainConfig", "TrainResult", "evaluate", "pick_device", "read_recipe", "train"]
