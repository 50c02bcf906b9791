"""Descriptions of a capture, an import, an evaluation and a report, from which their command lines are made."""

import shlex
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, UseAppendAction, arg

from attnprobe.core.sites import MAPS, Site

What = Literal["weights", "effective", "scores", "tokens", "values"]
Dtype = Literal["bfloat16", "float16", "float32"]
Format = Literal["html", "json", "csv", "md"]

KEEP_VALUES = 16_384
"""Images up to which the values of each are kept when no maps are, and number of them that are kept beyond."""

PREPARATION = ("crop_pct", "interpolation", "mean", "std")
"""Options that set how images are prepared."""

FIRST = "first"
"""Mark of an option that people use first, which the help of a command lists before the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """The images that a model is run on, how they are prepared, and where; shared by all commands that run one."""

    architecture: Annotated[str | None, FIRST, arg(name="model", metavar="NAME")] = None
    """the model's name, for files that do not show it. With its options where it has other sizes than the named model,
    as in vit_tiny_patch16_224:embed_dim=256,num_heads=4."""
    data: Annotated[str | None, FIRST, arg(metavar="DATA")] = None
    """images: digits, fractals, a folder, a list of files, torch/cifar10; those of the run if not given."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """folder of the data set."""
    split: Annotated[str, arg(metavar="train|val")] = "val"
    """part of the data set."""
    images: Annotated[int | None, FIRST] = None
    """a fixed, class-balanced subset of this many."""
    batch_size: int = 64
    """images per forward pass."""
    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """cpu, cuda, cuda:1, mps, or auto. A GPU is taken if there is one, unless given."""

    bad_images: Literal["refuse", "skip"] = "refuse"
    """what to do about unreadable files."""

    # names are those of timm's validate.py
    crop_pct: float | None = None
    """share of the resized image that the crop keeps. As the model was trained, unless given."""
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None, arg(metavar="HOW")
    ] = None
    """nearest, bilinear, bicubic, lanczos, box or hamming. As the model was trained, unless given."""
    mean: Annotated[tuple[float, ...] | None, arg(metavar="R G B")] = None
    """subtracted from pixels in [0, 1], per channel. As the model was trained, unless given."""
    std: Annotated[tuple[float, ...] | None, arg(metavar="R G B")] = None
    """divided into them, per channel. As the model was trained, unless given."""

    @property
    def preparation(self) -> dict[str, Any]:
        """The options of `PREPARATION` that the user sets; images are prepared as the model was trained otherwise."""
        return {name: value for name in PREPARATION if (value := getattr(self, name)) is not None}

    @property
    def words(self) -> tuple[str, ...]:
        """The options that are not the default, as words of a command line."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "model" and value != field.default:
                words.append("--" + ("model" if field.name == "architecture" else field.name.replace("_", "-")))
                words += () if value is True else map(str, value if isinstance(value, (tuple, list)) else (value,))
        return tuple(words)


@dataclass(frozen=True, slots=True)
class ModelOptions(ImageOptions):
    """A model, the images that it is run on, and how these are read."""

    model: Positional[Annotated[str | Path, arg(metavar="MODEL")]]
    """a run, a checkpoint (folder, .safetensors, .pth), or a model by name: timm's, local-dir:PATH, hf-hub:ID,
    torchvision:NAME, hf:PATH_OR_ID, onnx:FILE."""
    _: KW_ONLY
    img_size: Annotated[int | tuple[int, int] | None, arg(metavar="N|ROWS COLS")] = None
    """another resolution than the model's own. The position table is resized."""
    workers: int = 0
    """processes that decode images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSpec(ModelOptions):
    """One capture: which model, on which images, what is stored of it, and how that is computed."""

    initial: bool = False
    """initial weights even where pretrained ones exist."""

    # what is stored
    what: Annotated[tuple[What, ...], arg(metavar="KIND")] = (*MAPS, "tokens")
    """kinds of values to store. weights: after the softmax; effective: multiplied with V, stored only where it differs;
    tokens: block outputs; scores: the logits of the softmax; values: V of global attention, for the head_output
    metrics."""
    site: Annotated[Literal["weights", "effective", "scores"] | None, arg(metavar="KIND")] = None
    """one kind of maps only: weights, effective or scores."""
    layers: Annotated[str | None, FIRST, arg(metavar="L,L-L")] = None
    """attention layers to keep, such as 1-4,12. Counted from 1 in the order they run."""
    heads: Annotated[str | None, arg(metavar="H,H-H")] = None
    """heads to keep, counted from 1."""
    queries: Annotated[str, arg(metavar="all|cls|A:B")] = "all"
    """rows to keep. cls is the class token's row; a slice such as 0:5 counts queries from 0."""
    store: Literal["maps", "qk"] = "maps"
    """maps, or queries and keys. Maps are then computed when they are read; this is smaller where tokens are more than
    twice the width of a head, and possible for layers whose map is the softmax of their product."""
    dtype: Annotated[Dtype | None, arg(metavar="TYPE")] = None
    """how maps are stored: bfloat16, float16 or float32. bfloat16, and float32 for queries and keys, if not given."""

    # how it is computed
    batch_size: int = 16
    """most images per forward pass. Fewer are taken where memory does not suffice."""
    amp: Literal["bf16"] | None = None
    """run the model under bfloat16 autocast. Maps are then of that precision, and the file says so."""
    shard: int = 1
    """processes that hold one copy of the model (FSDP). For models larger than a card, under torchrun."""
    untrained: int = 64
    """images of the untrained baseline, 0 for none. It is stored beside in NAME.untrained.h5."""
    seed: int = 0
    """seed of initial weights."""
    overwrite: bool = False
    """replace an existing file."""
    keep_shards: bool = False
    """leave the parts beside the file."""
    allow_missing: bool = False
    """go on where blocks show no map but their siblings do."""
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
        return shlex.join(["attnprobe", "capture", str(self.model), *self.words])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Axes, positions and site of arrays that another program saved, as the user gives them."""

    axes: Annotated[str, arg(metavar="AXES")] = ""
    """axes of each array: image, layer, head, query, key, or their first letters, such as IHQK. Missing axes count as
    one. If not given: 5 axes are all of these in this order, 4 axes one layer each."""
    grid: Annotated[str, arg(metavar="ROWSxCOLS")] = ""
    """rows and columns of patches, such as 14x14. No positions are claimed if not given."""
    patch: int = 16
    """height and width of a patch in pixels, with --grid."""
    prefix: Annotated[str, arg(metavar="NAMES")] = "cls"
    """tokens before the patches, separated by commas, with --grid; none for no such token."""
    site: Site = "weights"
    """weights (after the softmax, so rows sum to 1), effective (after heads were mixed) or scores (logits)."""
    name: Annotated[str, arg(metavar="NAME")] = ""
    """name of the model; the file's if not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec(ModelOptions):
    """One evaluation: which model, on which labelled images, prepared how."""

    amp: Literal["bf16"] | None = None
    """run the model under bfloat16 autocast."""

    # what is measured
    per_class: Annotated[bool, FIRST] = False
    """accuracy of every class, too."""
    knn: Annotated[bool, FIRST] = False
    """judge features instead of logits: each image of one half by its 20 nearest neighbours in the other half."""


@dataclass(frozen=True, slots=True)
class ReportSpec:
    """One report: the maps, what to measure and to write, and what makes it fail a build."""

    maps: Annotated[Positional[tuple[Path, ...]], arg(metavar="MAPS|RUN")]
    """maps files, or runs that have one."""

    out: Annotated[Path, FIRST, arg(aliases=["-o"], metavar="FOLDER")] = Path("attnprobe-report")
    """folder for report.html, measurements.json, measurements.csv and report.md."""

    formats: tuple[Format, ...] = ("html", "json", "csv", "md")
    """files to write."""

    metrics: Annotated[UseAppendAction[tuple[str, ...]], FIRST, arg(name="metric", metavar="NAME")] = ()
    """metric to measure (`attnprobe list metrics`), or all, or default; repeat for several. What the verdict and the
    types of heads need, if not given. Settings stand after a colon, as in similar_blocks:tau=0.8,compare=any; all
    leaves out the slow ones."""

    fail_on: Annotated[UseAppendAction[tuple[str, ...]], FIRST, arg(metavar="CONDITION")] = ()
    """end with exit code 3 where this holds, such as near_uniform>0 (blocks of a kind of collapse); repeat for several.
    METRIC[.KEY][@SITE] OP NUMBER, such as similar_blocks.count.low>3 or row_entropy.min<0.5, or a kind of collapse,
    such as oversmoothing.found==1."""

    verify_drops: Annotated[bool, FIRST] = False
    """measure each run's accuracy without its similar blocks and redundant heads, as `attnprobe verify-drops`."""

    tolerance: float = 0.02
    """with --verify-drops: largest loss of accuracy that it advises. A fraction."""

    bars: Annotated[UseAppendAction[tuple[str, ...]], arg(name="bar", metavar="KIND=NUMBER")] = ()
    """bar from which on a kind of collapse is found, such as near_uniform=0.8."""

    data: Annotated[str | None, arg(metavar="DATA")] = None
    """the images the maps are of, to show them. Needed unless they are digits, fractals, or inside the run's folder."""

    data_dir: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """folder of that data set."""

    group: Annotated[str | None, arg(metavar="REGEX")] = None
    """images that count once together, such as '^(.+)_' for photo7_0.png and photo7_1.png. A regular expression whose
    part in brackets, searched in their ids (paths in a folder), names the group; their mean is one observation."""

    notes: Suppress[tuple[str, ...]] = ()
    """sentences that must stand beside the numbers."""
