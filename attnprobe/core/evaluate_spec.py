"""Options of an evaluation; `attnprobe evaluate` is made of them."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True, slots=True)
class EvaluateSpec:
    """One evaluation: which model, on which labelled images, prepared how; names are those of timm's validate.py."""

    model: Positional[Annotated[str | Path, arg(metavar="MODEL")]]
    """a run's directory, a checkpoint (folder, .safetensors, .pth), or the name of a model: timm's, local-dir:PATH,
    hf-hub:ID, torchvision:NAME, hf:PATH_OR_ID."""
    _: KW_ONLY
    architecture: Annotated[str | None, arg(name="model")] = None
    """the model's name, for checkpoint files that neither say it nor show it."""

    # the images
    data: str | None = None
    """labelled images: digits, a folder, a list of files, torch/cifar10 ...; the run's own data if not given."""
    data_dir: Path | None = None
    """where the data set lives."""
    split: str = "val"
    """train or val."""
    images: int | None = None
    """a fixed, class-balanced subset of this many."""

    # as the model was trained, unless given
    img_size: int | tuple[int, int] | None = None
    """one side, or rows and columns; the position table is resized."""
    crop_pct: float | None = None
    """share of the resized image that the centre crop keeps."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    """how images are resized."""
    mean: tuple[float, ...] | None = None
    """subtracted from pixels in [0, 1], per channel."""
    std: tuple[float, ...] | None = None
    """divided into them, per channel."""

    # how it is computed
    amp: Literal["bf16"] | None = None
    """forward passes under bfloat16 autocast."""
    batch_size: int = 64
    """images per forward pass."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    workers: int = 0
    """processes that decode images."""

    # what is measured
    per_class: bool = False
    """accuracy of every class, too."""
    knn: bool = False
    """judge features instead of logits: each image of one half by its 20 nearest neighbours in the other half."""
