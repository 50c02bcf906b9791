"""Descriptions of a capture and of an import, from which their command lines are made."""

import shlex
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from attnprobe.core.sites import MAPS, Site

What = Literal["weights", "effective", "scores", "tokens", "values"]
Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """One capture: which model, on which images, what is stored of it, and how that is computed."""

    model: Positional[Annotated[str | Path, arg(metavar="MODEL")]]
    """a run's directory, a checkpoint (folder, .safetensors, .pth), or the name of a model: timm's, local-dir:PATH,
    hf-hub:ID, torchvision:NAME, hf:PATH_OR_ID, onnx:FILE."""
    _: KW_ONLY

    # the model
    architecture: Annotated[str | None, arg(name="model")] = None
    """the model's name, for checkpoint files that neither say it nor show it."""
    img_size: int | tuple[int, int] | None = None
    """another resolution than the model's own: one side, or rows and columns; the position table is resized."""
    initial: bool = False
    """build the named model with initial weights even if pretrained ones exist."""

    # the images
    data: str | None = None
    """digits, fractals, a folder, a list of files, torch/cifar10 ...; the run's own data if not given."""
    data_dir: Path | None = None
    """where the data set lives."""
    split: str = "val"
    """train or val."""
    images: int | None = None
    """a fixed, class-balanced subset of this many."""

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
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """what to do about unreadable files."""
    workers: int = 0
    """processes that decode images."""
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
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
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
