"""What would a capture of this model hold, and what would it cost? Asked before the work, on two images of noise."""

import math
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from attnprobe.capturing.recorder import SITES
from attnprobe.capturing.recording import Recording
from attnprobe.capturing.selection import Selection
from attnprobe.capturing.stream import capture as capture_maps
from attnprobe.core.errors import CaptureError
from attnprobe.core.images import InputSpec
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.tap import Site
from attnprobe.core.text import visible
from attnprobe.models import input_spec
from attnprobe.models.describe import ModelFacts, resolve_model
from attnprobe.store import MapReader, open_maps
from attnprobe.store.first_batch import decide
from attnprobe.training import pick_device

TRIAL = 2
"""Images of the trial run."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """Layers of one shape and kind.

    Attributes:
        sites: weights alone where one matrix is both.
        routes: how their maps are read, with the number of layers; empty of a file that does not say.
        image_bytes: maps, tokens and values of one image, not compressed, in the file's type.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    heads: int
    queries: int
    keys: int
    rows: int
    cols: int
    prefix: tuple[str, ...]
    sites: str
    routes: Mapping[str, int]
    image_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `attnprobe inspect` shows of a model.

    Attributes:
        stored_bytes: estimated bytes of one image in the file, compressed.
        qk_bytes: the same of queries and keys in place of the maps; None where maps cannot be made of them.
        seconds: per image, of the forward pass and the capture on this machine.
        command: what to run.
    """

    facts: ModelFacts
    spec: InputSpec
    stages: tuple[StageFacts, ...]
    output_equal: bool
    stored_bytes: int
    qk_bytes: int | None
    seconds: float
    device: str
    n_images: int
    command: str


def inspect_model(
    model: str | Path,
    *,
    architecture: str | None = None,
    img_size: int | None = None,
    data: str | None = None,
    images: int = 256,
    what: Sequence[str] = ("weights", "effective", "tokens"),
    selection: Selection | None = None,
    store_as: Literal["maps", "qk"] = "maps",
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    device: str = "auto",
) -> Inspection:
    """Capture two images of noise from a model, with initial weights if it is a name, and extrapolate.

    Args:
        model, architecture, img_size, data, what, selection, store_as, dtype, device: as for `gather.capture`.
        images: how many the estimates are for.

    Raises:
        CaptureError: its attention cannot be captured; the message says why.
    """
    loaded, facts = resolve_model(model, architecture, img_size=img_size, initial=True)
    spec, chosen = input_spec(loaded), pick_device(device)
    pixels = torch.randn(TRIAL, 3, *spec.size, generator=torch.Generator().manual_seed(0))
    sites: tuple[Site, ...] = tuple(site for site in SITES if site in what)
    qk = store_as == "qk"
    kept = {"tokens": "tokens" in what, "values": "values" in what, "selection": selection}
    capturing = capture_maps(loaded.to(chosen), pixels, sites, factors=qk, batch_size=TRIAL, **kept)
    proof = capturing.certificate
    next(capturing.batches())  # warms up
    begun = time.perf_counter()
    taken = next(capturing.batches())
    seconds = (time.perf_counter() - begun) / TRIAL
    routes = {layer.layer: layer.route for layer in proof.layers}
    file_type = dtype or ("float32" if qk else "bfloat16")
    stored = decide(taken, file_type).image_bytes
    return Inspection(
        facts=facts,
        spec=spec,
        stages=_stages(taken, routes, getattr(torch, file_type).itemsize),
        output_equal=proof.output_equal,
        stored_bytes=stored,
        qk_bytes=stored if qk else _qk_bytes(loaded, pixels[:1].to(chosen), sites, kept),
        seconds=seconds,
        device=chosen.type,
        n_images=images,
        command=_command(model, architecture, img_size, data, images, what, selection, store_as, dtype),
    )


def _qk_bytes(model: nn.Module, pixels: Tensor, sites: Sequence[Site], kept: Mapping[str, Any]) -> int | None:
    """Estimated bytes of one image in a file of queries and keys."""
    try:
        recording = Recording(model, sites, factors=True, **kept)
        recording.run(pixels)
        return decide(recording.recorder.take(), "float32").image_bytes
    except CaptureError:
        return None


def _stages(taken: Sequence[AttentionMaps], routes: Mapping[str, str], item_bytes: int) -> tuple[StageFacts, ...]:
    by_name: dict[str, list[AttentionMaps]] = {}
    for maps in taken:
        by_name.setdefault(maps.stage, []).append(maps)
    return tuple(_stage(name, sites, routes, item_bytes) for name, sites in by_name.items())


def _stage(name: str, sites: list[AttentionMaps], routes: Mapping[str, str], item_bytes: int) -> StageFacts:
    first = sites[0]
    heads, queries, keys = first.values.shape[2:]
    stored = [maps.values for maps in sites if maps.site != "weights" or maps.factors is None]
    stored += [beside for beside in (first.tokens, first.value_vectors, *(first.factors or ())) if beside is not None]
    return StageFacts(
        name=name,
        kind=first.kind,
        layers=first.layers,
        heads=heads,
        queries=queries,
        keys=keys,
        rows=first.grid.rows,
        cols=first.grid.cols,
        prefix=first.grid.prefix if first.grid.rows else (),
        sites=", ".join(maps.site for maps in sites),
        routes=Counter(routes[layer] for layer in first.layers if layer in routes),
        image_bytes=item_bytes * sum(values[0].numel() for values in stored),
    )


def _command(
    model: str | Path,
    architecture: str | None,
    img_size: int | None,
    data: str | None,
    images: int,
    what: Sequence[str],
    selection: Selection | None,
    store_as: str,
    dtype: str | None,
) -> str:
    parts = ["attnprobe", "capture", str(model)]
    parts += ["--model", architecture] if architecture else []
    parts += ["--img-size", str(img_size)] if img_size else []
    parts += ["--data", data or "FOLDER", "--images", str(images)]
    parts += ["--what", *what] if set(what) != {"weights", "effective", "tokens"} else []
    parts += selection.arguments if selection is not None else []
    parts += ["--store", store_as] if store_as != "maps" else []
    parts += ["--dtype", dtype] if dtype else []
    return shlex.join(parts)


def inspect_maps(path: Path) -> tuple[MapReader, tuple[StageFacts, ...]]:
    """What is in a maps file, read off its first image.

    Raises:
        MapsFileError: see `open_maps`.
    """
    reader = open_maps(path, allow_partial=True)
    proved = reader.attrs["certificate"].get("layers", ())
    routes = {layer["layer"]: layer["route"] for layer in proved}
    taken = [reader.maps(stage, site, images=slice(0, 1)) for stage in reader.stages for site in reader.sites(stage)]
    return reader, _stages(taken, routes, getattr(torch, reader.attrs["dtype"]).itemsize)


def print_inspection(found: Inspection, console: Console) -> None:
    """Everything about a model within 80 columns."""
    facts, rows = found.facts, " x ".join(str(side) for side in found.spec.size)
    equal = "equals" if found.output_equal else "is within rounding of"
    told = f": {facts.variant}, {facts.parameters:,} parameters, {rows} px"
    console.print(Text.assemble((visible(facts.model), "bold"), told))
    _print_stages(found.stages, console)
    total = sum(stage.image_bytes for stage in found.stages)
    n = found.n_images
    for line in (
        f"proved on {TRIAL} images: A V is what each layer passes on, and the output {equal} the plain one",
        f"one image: {size(total)} of maps and tokens, about {size(found.stored_bytes)} in the file",
        f"{n} images: about {size(n * found.stored_bytes)} on the disk (twice while shards become one file), "
        f"{duration(n * found.seconds)} on {found.device} besides reading the images",
    ):
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    if found.qk_bytes is not None and found.qk_bytes < found.stored_bytes:
        told = f"with --store qk about {size(found.qk_bytes)}: queries and keys, of which reading makes the maps again"
        console.print(Padding(Text(told), (0, 0, 0, 2)))
    console.print(Text.assemble("\n$ ", (found.command, "bold")), soft_wrap=True)


def print_maps(reader: MapReader, stages: Sequence[StageFacts], console: Console) -> None:
    """Everything about a maps file within 80 columns."""
    attrs = reader.attrs
    whole = "complete" if reader.complete else "unfinished"
    told = f": {len(reader)} images of {visible(attrs['data'])}, {whole}"
    console.print(Text.assemble((visible(str(reader.path)), "bold"), told))
    console.print(Text(f"{visible(attrs['model'])}, {attrs['dtype']}, {attrs['created'][:19]}"))
    _print_stages(stages, console)


def _print_stages(stages: Sequence[StageFacts], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for title in ("stage", "kind", "L x H", "Q x K", "tokens", "maps", "route", "size"):
        table.add_column(
            title, no_wrap=title != "maps", justify="right" if title in ("L x H", "Q x K", "size") else "left"
        )
    for stage in stages:
        grid = f"{stage.rows}x{stage.cols}" if stage.rows else "-"
        table.add_row(
            Text(visible(stage.name)),
            stage.kind,
            f"{len(stage.layers)}x{stage.heads}",
            f"{stage.queries}x{stage.keys}",
            f"{len(stage.prefix)}+{grid}" if stage.prefix else grid,
            stage.sites,
            ", ".join(stage.routes) or "-",
            size(stage.image_bytes),
        )
    console.print(table)
    for prefix in dict.fromkeys(stage.prefix for stage in stages if stage.prefix):
        console.print(Padding(Text(f"{len(prefix)}+: before the patches stand {_shortened(prefix)}"), (0, 0, 0, 2)))
    if any("weights" in stage.sites and "effective" not in stage.sites for stage in stages):
        console.print(Padding(Text("maps are weights alone where those are what multiplies V"), (0, 0, 0, 2)))


def _shortened(prefix: Sequence[str]) -> str:
    """cls, 4 reg."""
    registers = sum(name.startswith("reg") for name in prefix)
    named = [name for name in prefix if not name.startswith("reg")]
    return ", ".join([*named, *([f"{registers} reg"] if registers else [])]) or "-"


def size(n_bytes: float) -> str:
    """12 kB, 3.4 MB, 1.2 TB."""
    exponent = min(4, int(math.log(max(n_bytes, 1), 1000)))
    value = n_bytes / 1000**exponent
    return f"{value:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[exponent]}"


def duration(seconds: float) -> str:
    """12 s, 3 min, 5.2 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
