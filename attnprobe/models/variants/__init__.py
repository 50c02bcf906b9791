"""One file per paper, each showing only what differs from the plain vision transformer."""

from attnprobe.core.registry import Registry
from attnprobe.models.variants.attnscale import ATTNSCALE
from attnprobe.models.variants.deepvit import DEEPVIT
from attnprobe.models.variants.differential import DIFFERENTIAL
from attnprobe.models.variants.featscale import FEATSCALE
from attnprobe.models.variants.gated import GATED
from attnprobe.models.variants.realformer import REALFORMER
from attnprobe.models.variants.refiner import REFINER
from attnprobe.models.variants.rich import RICHVIT
from attnprobe.models.variants.sigma_reparam import SIGMA_REPARAM
from attnprobe.models.variants.structured import MIMETIC, STRUCTURED
from attnprobe.models.variants.talking_heads import TALKING_HEADS
from attnprobe.models.variants.vit import LAYERSCALE, QKNORM, REGISTERS, VIT

VARIANTS = Registry(
    "variant",
    VIT,
    DEEPVIT,
    REFINER,
    RICHVIT,
    REALFORMER,
    TALKING_HEADS,
    ATTNSCALE,
    FEATSCALE,
    LAYERSCALE,
    QKNORM,
    REGISTERS,
    SIGMA_REPARAM,
    DIFFERENTIAL,
    GATED,
    STRUCTURED,
    MIMETIC,
)
