"""Descriptions of a capture, an import, an evaluation and a report, from which their command lines are made."""

import shlex
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, Suppress, UseAppendAction, arg

from attnprobe.core.sites import MAPS, Site

What = Literal["weights", "effective", "scores", "tokens", "values"]
Dtype = Literal["bfloat16", "float16", "float32"]
Format = Literal["html", "json", "csv", "md"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """The images that a model is run on, and where; shared by all commands that run one."""

    architecture: Annotated[str | None, arg(name="model")] = None
    """the model's name, for checkpoint files that neither say it nor show it."""
    data: str | None = None
    """digits, fractals, a folder, a list of files, torch/cifar10 ...; the run's own data if not given."""
    data_dir: Path | None = None
    """where the data set lives."""
    split: str = "val"
    """train or val."""
    images: int | None = None
    """a fixed, class-balanced subset of this many."""
    batch_size: int = 64
    """images per forward pass."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""


@dataclass(frozen=True, slots=True)
class ModelOptions(ImageOptions):
    """A model, the images that it is run on, and how these are read."""

    model: Positional[Annotated[str | Path, arg(metavar="MODEL")]]
    """a run's directory, a checkpoint (folder, .safetensors, .pth), or the name of a model: timm's, local-dir:PATH,
    hf-hub:ID, torchvision:NAME, hf:PATH_OR_ID, onnx:FILE."""
    _: KW_ONLY
    img_size: int | tuple[int, int] | None = None
    """another resolution than the model's own: one side, or rows and columns; the position table is resized."""
    workers: int = 0
    """processes that decode images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSpec(ModelOptions):
    """One capture: which model, on which images, what is stored of it, and how that is computed."""

    initial: bool = False
    """build the named model with initial weights even if pretrained ones exist."""

    # what is stored
    what: tuple[What, ...] = (*MAPS, "tokens")
    """weights (after the softmax), effective (multiplied with V; stored only where it differs), tokens (block outputs);
    on request scores (the logits of the softmax) and values (V of global attention, for the head_output metrics)."""
    site: Literal["weights", "effective", "scores"] | None = None
    """one kind of maps only."""
    layers: str | None = None
    """attention layers to keep, counted from 1 in the order they run, such as 1-4,12."""
    heads: str | None = None
    """heads to keep, counted from 1."""
    queries: str = "all"
    """all, cls (the class token's row), or a slice of the queries such as 0:5."""
    store: Literal["maps", "qk"] = "maps"
    """maps, or qk: queries and keys, from which maps are computed when they are read; smaller where tokens are more
    than twice the width of a head. Only for layers whose map is the softmax of their product."""
    dtype: Dtype | None = None
    """how maps are stored; bfloat16, and float32 for queries and keys, if not given."""

    # how it is computed
    batch_size: int = 16
    """most images per forward pass; fewer where memory does not suffice."""
    untrained: int = 64
    """images of the untrained baseline, stored beside in NAME.untrained.h5; 0 for none."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """what to do about unreadable files."""
    seed: int = 0
    """of initial weights."""
    overwrite: bool = False
    """replace an existing file."""
    keep_shards: bool = False
    """leave the parts beside the file."""
    allow_missing: bool = False
    """go on where blocks show no attention map although their siblings do."""
    allow_nonfinite: bool = False
    """accept NaN and infinite weights."""

    @property
    def kept(self) -> tuple[What, ...]:
        """`what`, with the maps of one site only if one was named."""
        if self.site is None:
            return tuple(self.what)
        return (self.site, *(kind for kind in self.what if kind in ("tokens", "values")))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The maps among `kept`, in the order in which they are stored."""
        every: tuple[Site, ...] = (*MAPS, "scores")
        return tuple(site for site in every if site in self.kept)

    @property
    def stored_dtype(self) -> Dtype:
        """The type in the file."""
        return self.dtype or ("float32" if self.store == "qk" else "bfloat16")

    @property
    def command(self) -> str:
        """The command line of this capture."""
        words = ["attnprobe", "capture", str(self.model)]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "model" and value != field.default:
                words.append("--" + ("model" if field.name == "architecture" else field.name.replace("_", "-")))
                words += () if value is True else map(str, value if isinstance(value, tuple) else (value,))
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Axes, positions and site of arrays that another program saved, as the user gives them."""

    axes: str = ""
    """axes of each array, of image, layer, head, query, key, or their first letters, such as IHQK; missing axes count
    as one. If not given: 5 axes are all of these in this order, 4 axes one layer each."""
    grid: str = ""
    """rows and columns of patches, such as 14x14; no positions are claimed if not given."""
    patch: int = 16
    """height and width of a patch in pixels, with --grid."""
    prefix: str = "cls"
    """names of the tokens before the patches, separated by commas, with --grid; none for no such token."""
    site: Site | None = None
    """weights (after the softmax), effective or scores; by the sums of rows if not given."""
    name: str = ""
    """name of the model; the file's if not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec(ModelOptions):
    """One evaluation: which model, on which labelled images, prepared how; names are those of timm's validate.py."""

    # as the model was trained, unless given
    crop_pct: float | None = None
    """share of the resized image that the centre crop keeps."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    """how images are resized."""
    mean: tuple[float, ...] | None = None
    """subtracted from pixels in [0, 1], per channel."""
    std: tuple[float, ...] | None = None
    """divided into them, per channel."""
    amp: Literal["bf16"] | None = None
    """forward passes under bfloat16 autocast."""

    # what is measured
    per_class: bool = False
    """accuracy of every class, too."""
    knn: bool = False
    """judge features instead of logits: each image of one half by its 20 nearest neighbours in the other half."""


@dataclass(frozen=True, slots=True)
class ReportSpec:
    """One report: the maps, what to measure and to write, and what makes it fail a build."""

    maps: Annotated[Positional[tuple[Path, ...]], arg(metavar="MAPS|RUN")]
    """maps files, or runs that have one."""

    out: Annotated[Path, arg(aliases=["-o"])] = Path("attnprobe-report")
    """folder for report.html, measurements.json, measurements.csv and report.md."""

    formats: tuple[Format, ...] = ("html", "json", "csv", "md")
    """which of them to write."""

    metrics: Annotated[UseAppendAction[tuple[str, ...]], arg(name="metric")] = ()
    """name of a metric (`attnprobe explain`), with settings as in similar_blocks:tau=0.8,compare=any; "all" but the
    slow ones; "default". What the verdict and the types of heads need, if not given."""

    fail_on: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="CONDITION")] = ()
    """end with exit code 3 where METRIC[.KEY][@SITE] OP NUMBER holds, such as similar_blocks.count.low>3 or
    row_entropy.min<0.5, or a kind of collapse, such as near_uniform>0 (blocks) or oversmoothing.found==1."""

    verify_drops: bool = False
    """measure the accuracy of each run without its similar blocks and redundant heads, as `attnprobe verify-drops`."""

    tolerance: float = 0.02
    """with --verify-drops: accuracy loss, as a fraction, that its advice accepts."""

    bars: Annotated[UseAppendAction[tuple[str, ...]], arg(name="bar", metavar="KIND=NUMBER")] = ()
    """bar from which on the verdict finds a kind of collapse, such as near_uniform=0.8."""

    data: str | None = None
    """the images the maps are of, to show them, where they are not digits, fractals, or inside the run's folder."""

    data_dir: Path | None = None
    """where that data set lives."""

    group: Annotated[str | None, arg(metavar="REGEX")] = None
    """images that count once together: a regular expression whose part in brackets, searched in their ids (paths in a
    folder), names the group, as in '^(.+)_' for photo7_0.png and photo7_1.png; their mean is one observation."""

    notes: Suppress[tuple[str, ...]] = ()
    """sentences that must stand beside the numbers."""
