"""Options of a training run, named as in timm's train.py."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from attnprobe.core.errors import InputError, check_choice

MAY_CHANGE = frozenset(
    (
        "auto_batch", "data_dir", "device", "keep_checkpoints", "log_tensorboard", "log_wandb", "probe_budget",
        "probe_every", "recovery_interval", "threads", "wandb_project", "workers",
    )
)  # fmt: skip
"""Options that may differ when a run is resumed: they affect where and how it runs, not its result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Augmentation of training images; names and meaning are timm's, but everything is off by default."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: range of the cropped fraction of the area; (1, 1) for none, timm's default is (0.08, 1)."""

    ratio: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: range of the aspect ratio; timm's default is (3/4, 4/3)."""

    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """For crops and policies; random draws one of the other two per image."""

    hflip: float = 0.0
    """Probability of a horizontal flip; timm's default is 0.5."""

    vflip: float = 0.0
    """Probability of a vertical flip."""

    color_jitter: float | tuple[float, ...] = 0.0
    """Strength for brightness, contrast and saturation, or one each and a fourth for hue; timm's default is 0.4.
    Ignored if `aa` is given, unless that is 3a, as in timm."""

    color_jitter_prob: float | None = None
    """Probability of any jitter; None for 1."""

    aa: str | None = None
    """Policy in timm's spelling: rand-m9-mstd0.5-inc1, v0, original, 3a, augmix-m3-w3 ..."""

    reprob: float = 0.0
    """Probability of random erasing."""

    remode: Literal["const", "rand", "pixel"] = "pixel"
    """Content of an erased box: the mean colour, one random colour, or noise per pixel."""

    recount: int = 1
    """Maximum number of erased boxes per image."""

    smoothing: float = 0.0
    """Label smoothing; timm's default is 0.1."""

    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0 for none."""

    cutmix: float = 0.0
    """Alpha of cutmix's Beta distribution; 0 for none."""

    cutmix_minmax: tuple[float, float] | None = None
    """Range of cutmix's box sides as fractions of the image's, uniform, in place of `cutmix`."""

    mixup_prob: float = 1.0
    """Probability of mixup or cutmix."""

    mixup_switch_prob: float = 0.5
    """Probability of cutmix where both are on."""

    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Scope of one random draw: the batch, a pair of images, or one image."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale={self.scale} must be two shares of the area, 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"ratio={self.ratio} must be two aspect ratios, 0 < low <= high.")
        for name in ("hflip", "vflip", "color_jitter_prob", "reprob", "mixup_prob", "mixup_switch_prob", "smoothing"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)} must not be negative; 0 for none.")
        if self.recount < 1:
            raise InputError(f"recount={self.recount} must be at least 1.")
        if self.cutmix_minmax and not 0 <= self.cutmix_minmax[0] <= self.cutmix_minmax[1] <= 1:
            raise InputError(f"cutmix_minmax={self.cutmix_minmax} must be two shares, 0 <= low <= high <= 1.")
        for name in ("train_interpolation", "remode", "mixup_mode"):
            check_choice(name, getattr(self, name), get_args(AugmentConfig.__annotations__[name]))
        strength = self.color_jitter if isinstance(self.color_jitter, tuple) else (self.color_jitter,) * 3
        if len(strength) not in (3, 4) or min(strength) < 0 or max(strength[3:], default=0) > 0.5:
            raise InputError(
                f"color_jitter={self.color_jitter} must be a number, or three: brightness, contrast, saturation; "
                "a fourth is hue, at most 0.5."
            )

    @property
    def by_pillow(self) -> bool:
        """True if a policy or colour jitter is on, which timm's transforms apply to one image at a time."""
        jitter = self.color_jitter
        return bool(self.aa) or bool(max(jitter) if isinstance(jitter, tuple) else jitter)

    @property
    def mixes(self) -> bool:
        """True if mixup or cutmix is on."""
        return bool(self.mixup or self.cutmix or self.cutmix_minmax)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(AugmentConfig):
    """Options of one training run."""

    # --- model ---
    model: str
    """Name of the model: attnprobe's or timm's."""

    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's class, such as `{global_pool: avg}`."""

    img_size: int | None = None
    """Side of the square image the model sees; its own if None."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Moments of pixels (0 to 1), per channel or one for all; the model's own if None. Saved with the model, as are:"""

    crop_pct: float | None = None
    """Share of a validation image that its central crop keeps; the model's own if None."""

    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resampling of validation images; as the model says if None."""

    drop: float = 0.0
    """Dropout before the head."""

    drop_path: float = 0.0
    """Stochastic depth, rising linearly to this rate in the last block."""

    initial_checkpoint: str | None = None
    """Initial weights: a run, a model folder, .safetensors or .pth; head and positions are fitted."""

    freeze: tuple[str, ...] = ()
    """Shell patterns of parameters that are not trained: `[patch_embed.*, "blocks.[0-5].*"]`."""

    # --- data ---
    dataset: str
    """A name or path that `load_images` takes: digits, fractals, a folder, torch/cifar10 ..."""

    data_dir: str | None = None
    """Folder of the data set; only for sets that are read from disk."""

    download: bool = False
    """Fetch a set of torch/ or tfds/ that is not on disk."""

    num_classes: int | None = None
    """Number of classes that the data must have; it is the data's if None."""

    batch_size: int = 64
    """Images per process and step. A last batch of an epoch with fewer images than processes is left out."""

    auto_batch: bool = False
    """If a batch does not fit into memory, process it in halves (quarters, ...) and add up their gradients. One process
    only. The recipe stays the same, but batch norm sees the parts, and rounding differs."""

    bad_images: Literal["refuse", "skip"] = "refuse"
    """Treatment of an unreadable image: the whole set is refused, or the image is skipped."""

    workers: int = 0
    """Processes that decode, and augment, images; sets that live on the device need none."""

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
    """Growth of `lr_base` with the batch; "" is sqrt for adaptive optimisers and linear for the others, as in timm."""

    weight_decay: float = 0.05
    """Not applied to biases, norms and one-dimensional parameters."""

    momentum: float = 0.9
    opt_eps: float | None = None
    opt_betas: tuple[float, float] | None = None
    layer_decay: float | None = None
    """Factor by which the learning rate falls from block to block towards the input."""

    clip_grad: float | None = None
    """Maximum norm of the gradient."""

    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """By the norm of all, by value, or each unit by its own norm (adaptive), which leaves the head out, as in timm."""

    grad_accum_steps: int = 1
    """Batches per update; the last update of an epoch may have fewer."""

    sched: str = "cosine"
    """Any schedule timm knows."""

    sched_on_updates: bool = True
    """Change the learning rate with every update; false for every epoch, as timm does by default."""

    warmup_epochs: float = 3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: int = 0
    """Epochs at `min_lr` after the schedule's end; they come on top of `epochs`."""

    decay_epochs: float = 90.0
    decay_rate: float = 0.1
    """For step schedules; multistep decays at `decay_milestones` instead of every `decay_epochs`."""

    decay_milestones: tuple[int, ...] = (90, 180, 270)
    warmup_prefix: bool = False
    """Let the schedule begin after the warm-up, instead of beneath it."""

    lr_k_decay: float = 1.0
    """Exponent k of the cosine and poly schedules' time."""

    lr_cycle_mul: float = 1.0
    lr_cycle_decay: float = 0.5
    lr_cycle_limit: int = 1
    """Cycles of cosine, tanh and poly: how many, how much longer and how much lower each is than the one before."""

    early_stop: int | None = None
    """Stop after this many epochs without a better validation accuracy."""

    # --- augmentation, beside that of AugmentConfig ---
    aug_repeats: int = 0
    """Repeated augmentation: copies of an image in a row, each augmented anew; 0 or 1 for none."""

    # --- targets and loss ---
    smoothing: float = 0.1
    """Label smoothing."""

    mixup_off_epoch: int = 0
    """First epoch without mixup and cutmix; 0 for never."""

    cos_reg_component: int = 0
    """Number of neighbouring pairs of layers, from the first, whose maps' cosine is added to the loss; 0 for none."""

    cos_reg_weight: float = 0.1
    cos_reg_dim: Literal["head", "key"] = "head"
    """Vectors compared: across heads, as in DeepViT's code, or attention columns, as in the paper's similarity."""

    cls_weight: float = 1.0
    dense_weight: float = 0.5
    """Weights of the class and the patch loss of a model with a dense head (Refiner)."""

    # --- probe ---
    probe_every: int = 0
    """Epochs between measurements of attention on a few validation images; 0 for never."""

    probe_budget: float = 0.01
    """Fraction of the training time the probe may take; it skips epochs to stay below."""

    # --- how ---
    model_ema: bool = True
    """Keep an exponential moving average of the weights, which is validated and saved for use."""

    model_ema_decay: float = 0.99
    model_ema_warmup: bool = True
    """Follow the weights faster at first, where `model_ema_decay` would mostly remember the initial ones."""

    amp: bool = True
    """Autocast where the device has it (not on a CPU)."""

    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    channels_last: bool = False
    grad_checkpointing: bool = False
    """Trade memory for a second forward pass of each block."""

    sync_bn: bool = False
    """Batch norm over the images of all processes, on GPUs; re-attention and Refiner normalise their maps by it."""

    torchcompile: bool = False
    device: str = "auto"
    threads: int | None = None
    """PyTorch's threads on a CPU; None leaves the number alone. Small models want 1: two threads gain a third on an
    idle machine and lose a factor of 30 on a busy one, waiting for each other (2 cores, width 96, batch 64)."""

    seed: int = 42
    recovery_interval: int = 0
    """Steps between checkpoints inside an epoch; 0 for none."""

    keep_checkpoints: int = 2
    """Number of latest checkpoints that stay on disk, beside the best one."""

    log_tensorboard: bool = False
    """Also write the log for TensorBoard, into tensorboard/ in the run."""

    log_wandb: bool = False
    """Also send the log to Weights & Biases."""

    wandb_project: str | None = None

    def __post_init__(self) -> None:
        AugmentConfig.__post_init__(self)  # super() without arguments does not work in a class with slots
        for name in ("epochs", "batch_size", "grad_accum_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.token_label_data and self.mixes:
            raise InputError("token_label_data needs mixup=0 and cutmix=0: label maps do not know what was mixed in.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise InputError(f"warmup_epochs={self.warmup_epochs:g} must lie in [0, epochs={self.epochs}).")
        for name in ("cos_reg_component", "aug_repeats", "cooldown_epochs", "mixup_off_epoch"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)} must not be negative; 0 for none.")
        for name in ("smoothing", "drop", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1).")
