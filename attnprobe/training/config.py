"""What can be chosen about a training run? Names are timm's."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Options of one training run."""

    model: str
    """Name of the model: attnprobe's or timm's."""

    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's class, such as `{img_size: 32}`."""

    dataset: str
    """What `load_images` understands: digits, fractals, a folder, torch/cifar10 ..."""

    data_dir: str | None = None
    """Where the data set lives; only for sets that are read from disk."""

    epochs: int = 30
    batch_size: int = 64

    opt: str = "adamw"
    """Any optimiser timm knows."""

    lr: float = 1e-3
    """Peak learning rate, reached after `warmup_epochs`."""

    weight_decay: float = 0.05
    """Not applied to biases, norms and one-dimensional parameters."""

    opt_eps: float | None = None
    clip_grad: float | None = None
    """Largest norm of the gradient."""

    sched: str = "cosine"
    warmup_epochs: int = 3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5

    smoothing: float = 0.1
    """Label smoothing."""

    drop_path: float = 0.0
    """Stochastic depth, rising linearly to this rate in the last block."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: share of the picture's area; (1, 1) for none."""

    ratio: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: aspect ratio."""

    hflip: float = 0.0
    """Probability of a horizontal flip."""

    reprob: float = 0.0
    """Probability of random erasing."""

    cos_reg_component: int = 0
    """Neighbouring pairs of layers, from the first, whose maps' cosine is added to the loss; 0 for none."""

    cos_reg_weight: float = 0.1
    cos_reg_dim: Literal["head", "key"] = "head"
    """Vectors across heads, as DeepViT's code has them; or attention columns, as the paper measures similarity."""

    model_ema: bool = True
    """Keep a moving average of the weights; it is what is validated and saved for use."""

    model_ema_decay: float = 0.99

    amp: bool = True
    """bfloat16 autocast where the device has it (not on a CPU)."""

    device: str = "auto"
    threads: int | None = None
    """PyTorch's threads on a CPU; None leaves them alone. Small models want 1: two threads that wait for each other
    gain a third on an idle machine and lose a factor of 30 on a busy one (2 cores, width 96, batch 64)."""

    seed: int = 42
    workers: int = 0
    """Processes that decode images; 0 for sets that live on the device."""

    bad_images: Literal["refuse", "skip"] = "refuse"

    keep_checkpoints: int = 2
    """How many of the last checkpoints stay on disk, beside the best one."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs={self.epochs} and batch_size={self.batch_size} must be at least 1.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must lie in [0, epochs={self.epochs}).")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale} must be two shares of the area, 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio} must be two aspect ratios, 0 < low <= high.")
        if self.cos_reg_component < 0:
            raise ValueError(f"cos_reg_component={self.cos_reg_component} is a number of pairs of layers; 0 for none.")
        for name in ("smoothing", "drop_path", "hflip", "reprob"):
            if not 0 <= getattr(self, name) < 1 and not (name == "hflip" and self.hflip == 1):
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
