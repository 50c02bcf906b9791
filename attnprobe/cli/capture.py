"""The commands that run a model once over images: capture and inspect."""

from pathlib import Path
from typing import Annotated, Literal

from attnprobe.cli.options import NEWEST, Positional, Repeated, Short, Which, show

What = tuple[Literal["weights", "effective", "scores", "tokens", "values"], ...]
Site = Literal["weights", "effective", "scores"]
EVERYTHING: What = ("weights", "effective", "tokens")


def capture(
    model: Positional[Annotated[str, Short(metavar="MODEL")]],
    architecture: Annotated[str | None, Short(name="model")] = None,
    img_size: int | None = None,
    initial: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
    split: str = "val",
    images: int | None = None,
    what: What = EVERYTHING,
    site: Site | None = None,
    layers: str | None = None,
    heads: str | None = None,
    queries: str = "all",
    stats_only: bool = False,
    metric: Repeated[tuple[str, ...]] = (),
    group: Annotated[str | None, Short(metavar="REGEX")] = None,
    out: Annotated[Path | None, Short(aliases=["-o"])] = None,
    store: Literal["maps", "qk"] = "maps",
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    batch_size: int = 16,
    untrained: int = 64,
    device: str = "auto",
    bad_images: Literal["refuse", "skip"] = "refuse",
    workers: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    keep_shards: bool = False,
    allow_nonfinite: bool = False,
    checkpoint: Which = NEWEST,
) -> None:
    """Store a model's attention maps in one HDF5 file; the same command goes on where a stopped one ended.

    For example:

    $ attnprobe capture runs/vit
    $ attnprobe capture vit_small_patch16_224 --data path/to/images --images 256 -o maps.h5
    $ attnprobe capture old.pth --model deepvit_16 --data fractals:10
    $ attnprobe capture hf:facebook/dinov2-small --data path/to/images --layers 1,6,12 --queries cls
    $ attnprobe capture runs/vit --stats-only -o report
    $ torchrun --nproc-per-node 4 -m attnprobe capture runs/vit --data path/to/images

    Args:
        model: a run's directory, a checkpoint (folder, .safetensors, .pth), or the name of a model: timm's,
            local-dir:PATH, hf-hub:ID, torchvision:NAME, hf:PATH_OR_ID.
        architecture: the model's name, for checkpoint files that neither say it nor show it.
        img_size: another resolution than the model's own; the position table is resized.
        initial: initial weights, also where the name has trained ones.
        data: digits, fractals, a folder, a list of files, torch/cifar10 ...; the run's own data if not given.
        data_dir: where the data set lives.
        split: train or val.
        images: a fixed, class-balanced subset of this many.
        what: softmax maps, maps that multiply V (stored only where they differ), block outputs; on request also scores,
            what the softmax is taken of, and values, the V of maps of the whole picture, which the metrics of what
            heads put out need.
        site: one kind of maps only.
        layers: attention layers to keep, counted from 1 in the order they run, such as 1-4,12.
        heads: heads to keep, counted from 1.
        queries: all, cls (the class token's row), or a slice of the queries such as 0:5.
        stats_only: keep no maps; measure and report, into the folder -o.
        metric: with --stats-only, what to measure (`attnprobe list metrics`); repeat for several.
        group: with --stats-only, as for report: images that count once together.
        out: the file; maps.h5 in the run, or MODEL.h5 here, if not given.
        store: maps, or qk: queries and keys, from which maps are made again exactly when they are read; smaller where
            tokens are more than twice the width of a head. Only of layers whose map is the softmax of their product.
        dtype: how maps are stored; bfloat16, and float32 of queries and keys, if not given.
        batch_size: most images per forward pass; halved where memory does not suffice.
        untrained: images of the untrained baseline, stored beside in NAME.untrained.h5; 0 for none.
        device: cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.
        bad_images: what to do about unreadable files.
        workers: processes that decode images.
        seed: of initial weights.
        overwrite: replace an existing file.
        keep_shards: leave the parts beside the file.
        allow_nonfinite: accept NaN and infinite weights.
    """
    from attnprobe.capturing.selection import Selection
    from attnprobe.workflows import capture as workflow

    shared = {
        "architecture": architecture,
        "img_size": img_size,
        "initial": initial,
        "data": data,
        "data_dir": data_dir,
        "split": split,
        "images": images,
        "what": _chosen(what, site),
        "selection": Selection.parse(layers, heads, queries),
        "batch_size": batch_size,
        "untrained": untrained,
        "device": device,
        "bad_images": bad_images,
        "workers": workers,
        "seed": seed,
        "allow_nonfinite": allow_nonfinite,
    }
    if stats_only:
        folder = out or Path(f"{Path(model).stem}-stats")
        show(*workflow.measure_live(checkpoint.of(model), out=folder, metrics=metric or None, group=group, **shared))
        return
    made = workflow.capture_file(
        checkpoint.of(model),
        out=out,
        store_as=store,
        dtype=dtype,
        overwrite=overwrite,
        keep_shards=keep_shards,
        **shared,
    )
    print(made)


def inspect(
    model: Positional[Annotated[str, Short(metavar="MODEL")]],
    architecture: Annotated[str | None, Short(name="model")] = None,
    img_size: int | None = None,
    data: str | None = None,
    images: int = 256,
    what: What = EVERYTHING,
    site: Site | None = None,
    layers: str | None = None,
    heads: str | None = None,
    queries: str = "all",
    store: Literal["maps", "qk"] = "maps",
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    device: str = "auto",
    checkpoint: Which = NEWEST,
) -> None:
    """Show what a capture of a model would hold and cost, and the command to run; or what is in a maps file.

    For example:

    $ attnprobe inspect swin_tiny_patch4_window7_224
    $ attnprobe inspect torchvision:vit_b_16 --images 50000 --layers 1,6,12 --queries cls
    $ attnprobe inspect maps.h5

    Args:
        model: as for capture (of a name, weights do not matter here and are not fetched); or a maps file.
        architecture: the model's name, for checkpoint files that neither say it nor show it.
        img_size: another resolution than the model's own.
        data: for the command.
        images: how many the estimates are for.
        what, site, layers, heads, queries, store, dtype: what to keep and how, as for capture.
        device: where to try it.
    """
    from rich.console import Console

    from attnprobe.capturing.selection import Selection
    from attnprobe.workflows import inspect as inspection

    if Path(model).suffix in (".h5", ".parts"):
        inspection.print_maps(*inspection.inspect_maps(Path(model)), Console())
        return
    found = inspection.inspect_model(
        checkpoint.of(model),
        architecture=architecture,
        img_size=img_size,
        data=data,
        images=images,
        what=_chosen(what, site),
        selection=Selection.parse(layers, heads, queries),
        store_as=store,
        dtype=dtype,
        device=device,
    )
    inspection.print_inspection(found, Console())


def _chosen(what: What, site: Site | None) -> What:
    """`--what`, with the maps of one site only if one was named."""
    return what if site is None else (site, *(kind for kind in what if kind in ("tokens", "values")))
