"""What can be chosen about a training run? Names are timm's."""

from dataclasses import dataclass, field
from typing import Any, Literal

MAY_CHANGE = frozenset(
    (
        "auto_batch", "data_dir", "device", "keep_checkpoints", "log_tensorboard", "log_wandb", "probe_budget",
        "probe_every", "recovery_interval", "threads", "wandb_project", "workers",
    )
)  # fmt: skip
"""Options a run can be gone on with at other values: they say where and how, not what is learnt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Options of one training run."""

    # --- model ---
    model: str
    """Name of the model: attnprobe's or timm's."""

    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's class, such as `{global_pool: avg}`."""

    img_size: int | None = None
    """Side of the square image the model sees; its own if None."""

    drop: float = 0.0
    """Dropout before the head."""

    drop_path: float = 0.0
    """Stochastic depth, rising linearly to this rate in the last block."""

    initial_checkpoint: str | None = None
    """Start from these weights: a run, a model folder, .safetensors or .pth; head and positions are fitted."""

    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by shell pattern: `[patch_embed.*, "blocks.[0-5].*"]`."""

    # --- data ---
    dataset: str
    """What `load_images` understands: digits, fractals, a folder, torch/cifar10 ..."""

    data_dir: str | None = None
    """Where the data set lives; only for sets that are read from disk."""

    batch_size: int = 64
    """Images per process and step. A last batch of an epoch with fewer images than processes is left out."""

    auto_batch: bool = False
    """Where a batch does not fit into memory, work on halves of it (quarters, ...), and add up their gradients. One
    process only. The recipe stays as it is, but batch norm sees the parts, and rounding differs."""

    bad_images: Literal["refuse", "skip"] = "refuse"
    workers: int = 0
    """Processes that decode images; 0 for sets that live on the device."""

    token_label_data: str | None = None
    """Folder of label maps, one per training image, as TokenLabeling releases them; for models with a dense head."""

    # --- optimiser and schedule ---
    epochs: int = 30
    opt: str = "adamw"
    """Any optimiser timm knows."""

    lr: float | None = None
    """Peak learning rate, reached after `warmup_epochs`; 1e-3 if neither this nor `lr_base` is given."""

    lr_base: float | None = None
    """Peak learning rate for `lr_base_size` images per step, scaled to ours; used where `lr` is not given."""

    lr_base_size: int = 256
    lr_base_scale: Literal["linear", "sqrt", ""] = ""
    """How `lr_base` grows with the batch; "" is sqrt for adaptive optimisers and linear for the others, as in timm."""

    weight_decay: float = 0.05
    """Not applied to biases, norms and one-dimensional parameters."""

    momentum: float = 0.9
    opt_eps: float | None = None
    opt_betas: tuple[float, float] | None = None
    layer_decay: float | None = None
    """Factor by which the learning rate falls from block to block towards the input."""

    clip_grad: float | None = None
    """Largest norm of the gradient."""

    clip_mode: Literal["norm", "value", "agc"] = "norm"
    grad_accum_steps: int = 1
    """Batches per update; the last update of an epoch may have fewer."""

    sched: str = "cosine"
    """Any schedule timm knows."""

    sched_on_updates: bool = True
    """Change the learning rate with every update; false for every epoch, as timm does by default."""

    warmup_epochs: int = 3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: int = 0
    """Epochs at `min_lr` after the schedule's end; they come on top of `epochs`."""

    decay_epochs: float = 90.0
    decay_rate: float = 0.1
    """For step schedules."""

    early_stop: int | None = None
    """Stop after this many epochs without a better validation accuracy."""

    # --- augmentation ---
    scale: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: share of the picture's area; (1, 1) for none."""

    ratio: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: aspect ratio."""

    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    hflip: float = 0.0
    """Probability of a horizontal flip."""

    vflip: float = 0.0
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes; without effect beside `aa`, as in timm."""

    color_jitter_prob: float | None = None
    """Probability of any jitter; None for 1."""

    aa: str | None = None
    """Policy: rand-m9-mstd0.5-inc1, v0, original ..."""

    aug_repeats: int = 0
    """Repeated augmentation: how often an image comes in a row, each time augmented anew."""

    reprob: float = 0.0
    """Probability of random erasing."""

    remode: Literal["const", "rand", "pixel"] = "pixel"
    recount: int = 1

    # --- targets and loss ---
    smoothing: float = 0.1
    """Label smoothing."""

    mixup: float = 0.0
    cutmix: float = 0.0
    """Parameters of the Beta distributions; 0 for none."""

    cutmix_minmax: tuple[float, float] | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    mixup_off_epoch: int = 0
    """Epoch from which on nothing is mixed; 0 for never."""

    cos_reg_component: int = 0
    """Neighbouring pairs of layers, from the first, whose maps' cosine is added to the loss; 0 for none."""

    cos_reg_weight: float = 0.1
    cos_reg_dim: Literal["head", "key"] = "head"
    """Vectors across heads, as DeepViT's code has them; or attention columns, as the paper measures similarity."""

    cls_weight: float = 1.0
    dense_weight: float = 0.5
    """Weights of the class and the patch loss of a model with a dense head (Refiner)."""

    # --- probe ---
    probe_every: int = 0
    """Measure attention on a few validation images every so many epochs; 0 for never."""

    probe_budget: float = 0.01
    """Share of the training time the probe may take; it skips epochs to stay below."""

    # --- how ---
    model_ema: bool = True
    """Keep a moving average of the weights; it is what is validated and saved for use."""

    model_ema_decay: float = 0.99
    model_ema_warmup: bool = True
    """Let the average follow faster in the beginning, while `model_ema_decay` would mostly remember initial weights."""

    amp: bool = True
    """Autocast where the device has it (not on a CPU)."""

    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    channels_last: bool = False
    grad_checkpointing: bool = False
    """Trade memory for a second forward pass of each block."""

    sync_bn: bool = False
    """Batch norm over all processes' images rather than each one's own; re-attention and Refiner normalise maps so."""

    torchcompile: bool = False
    device: str = "auto"
    threads: int | None = None
    """PyTorch's threads on a CPU; None leaves them alone. Small models want 1: two threads that wait for each other
    gain a third on an idle machine and lose a factor of 30 on a busy one (2 cores, width 96, batch 64)."""

    seed: int = 42
    recovery_interval: int = 0
    """Also write a checkpoint every so many steps inside an epoch; 0 for none."""

    keep_checkpoints: int = 2
    """How many of the last checkpoints stay on disk, beside the best one."""

    log_tensorboard: bool = False
    """Also write the log for TensorBoard, into tensorboard/ in the run."""

    log_wandb: bool = False
    """Also send the log to Weights & Biases."""

    wandb_project: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accum_steps", "recount", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.token_label_data and (self.mixup or self.cutmix or self.cutmix_minmax):
            raise ValueError("token_label_data needs mixup=0 and cutmix=0: label maps do not know what was mixed in.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must lie in [0, epochs={self.epochs}).")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale} must be two shares of the area, 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio} must be two aspect ratios, 0 < low <= high.")
        for name in ("cos_reg_component", "aug_repeats", "cooldown_epochs", "mixup", "cutmix", "mixup_off_epoch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative; 0 for none.")
        for name in ("smoothing", "drop", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        for name in ("hflip", "vflip", "reprob", "mixup_prob", "mixup_switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability; it must lie in [0, 1].")
