"""One file per paper, each showing only what differs from the plain vision transformer."""

from attnprobe.core.registry import Registry
from attnprobe.models.variants.deepvit import DEEPVIT
from attnprobe.models.variants.refiner import REFINER
from attnprobe.models.variants.vit import VIT

VARIANTS = Registry("variant", VIT, DEEPVIT, REFINER)
