"""Contents and cost of a capture of a model, from a trial on two images of noise."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from attnprobe.core.errors import CaptureError
from attnprobe.core.images import InputSpec
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.sites import Site
from attnprobe.core.spec import CaptureSpec
from attnprobe.core.text import visible
from attnprobe.store import MapReader, open_maps
from attnprobe.store.first_batch import decide

if TYPE_CHECKING:
    from attnprobe.models.describe import ModelFacts

TRIAL = 2
"""Images of the trial run."""

IMAGES = 256
"""Images that the estimates are for, if the capture does not say."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """Layers of one shape and kind.

    Attributes:
        patches: the number of tokens that are patches.
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
    patches: int
    prefix: tuple[str, ...]
    sites: str
    routes: Mapping[str, int]
    image_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts about a model that `attnprobe inspect` shows.

    Attributes:
        stored_bytes: estimated bytes of one image in the file, compressed.
        qk_bytes: the same of queries and keys in place of the maps; None where maps cannot be made of them.
        places: how it is known where the tokens of each layer are.
        passes: forward passes of two images that it took to know this.
        missing: blocks without a map whose siblings have one.
        seconds: per image, of the forward pass and the capture on this machine.
    """

    spec: CaptureSpec
    facts: "ModelFacts"
    pixels: InputSpec
    stages: tuple[StageFacts, ...]
    output_equal: bool | None
    stored_bytes: int
    qk_bytes: int | None
    places: str
    passes: int
    missing: tuple[str, ...]
    seconds: float
    device: str


def inspect_model(spec: CaptureSpec) -> Inspection:
    """Capture two images of noise from a model, with initial weights if it is a name, and extrapolate.

    Args:
        spec: the capture to inspect; the estimates are for `spec.images` images, or for `IMAGES` if it does not say.

    Raises:
        CaptureError: its attention cannot be captured; the message says why.
    """
    # late: a file of maps needs no models, whose libraries take seconds
    from attnprobe.capturing.recording import Recording
    from attnprobe.capturing.selection import Selection
    from attnprobe.capturing.stream import Capture
    from attnprobe.models.describe import resolve_model
    from attnprobe.training import pick_device
    from attnprobe.workflows.trial import prepared_for

    spec = replace(spec, data=spec.data or "FOLDER")
    model, facts = resolve_model(spec.model, spec.architecture, img_size=spec.img_size, initial=True)
    wanted, device = prepared_for(model, spec), pick_device(spec.device)
    pixels = torch.randn(TRIAL, len(wanted.mean), *wanted.size, generator=torch.Generator().manual_seed(0))
    qk, selection = spec.store == "qk", Selection.parse(spec.layers, spec.heads, spec.queries)
    kept: dict[str, Any] = {"selection": selection, "allow_missing": spec.allow_missing}
    kept |= {name: name in spec.kept for name in ("tokens", "values")}
    capturing = Capture(Recording(model.to(device), spec.sites, factors=qk, **kept), pixels, TRIAL)
    proof = capturing.certificate
    next(capturing.batches())  # warms up
    begun = time.perf_counter()
    taken = next(capturing.batches())
    seconds = (time.perf_counter() - begun) / TRIAL
    routes = {layer.layer: layer.route for layer in proof.layers}
    stored = decide(taken, spec.stored_dtype).image_bytes
    return Inspection(
        spec=spec,
        facts=facts,
        pixels=wanted,
        stages=_stages(taken, routes, getattr(torch, spec.stored_dtype).itemsize),
        output_equal=proof.output_equal,
        stored_bytes=stored,
        qk_bytes=stored if qk else _qk_bytes(model, pixels[:1].to(device), spec.sites, kept),
        places=proof.places_in_words(),
        passes=proof.located.passes,
        missing=proof.missing,
        seconds=seconds,
        device=device.type,
    )


def _qk_bytes(model: nn.Module, pixels: Tensor, sites: Sequence[Site], kept: Mapping[str, Any]) -> int | None:
    """Estimated bytes of one image in a file of queries and keys."""
    from attnprobe.capturing.recording import Recording  # late: see `inspect_model`

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
    stored += [extra for extra in (first.tokens, first.value_vectors, *(first.factors or ())) if extra is not None]
    return StageFacts(
        name=name,
        kind=first.kind,
        layers=first.layers,
        heads=heads,
        queries=queries,
        keys=keys,
        rows=first.grid.rows,
        cols=first.grid.cols,
        patches=first.grid.n_patches,
        prefix=first.grid.prefix if first.grid.rows else (),
        sites=", ".join(maps.site for maps in sites),
        routes=Counter(routes[layer] for layer in first.layers if layer in routes),
        image_bytes=item_bytes * sum(values[0].numel() for values in stored),
    )


def inspect_maps(path: Path) -> tuple[MapReader, tuple[StageFacts, ...]]:
    """Contents of a maps file, read off its first image.

    Raises:
        MapsFileError: see `open_maps`.
    """
    reader = open_maps(path, allow_partial=True)
    proved = reader.attrs["certificate"].get("layers", ())
    routes = {layer["layer"]: layer["route"] for layer in proved}
    taken = [reader.maps(stage, site, images=slice(0, 1)) for stage in reader.stages for site in reader.sites(stage)]
    return reader, _stages(taken, routes, getattr(torch, reader.attrs["dtype"]).itemsize)


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Everything about a model within 80 columns."""
    facts, rows = inspection.facts, " x ".join(str(side) for side in inspection.pixels.size)
    words = {True: "equals", False: "is within rounding of", None: "holds no numbers to compare with"}
    equal = words[inspection.output_equal]
    line = f": {facts.variant}, {facts.parameters:,} parameters, {rows} px"
    console.print(Text.assemble((visible(facts.model), "bold"), line))
    _print_stages(inspection.stages, console)
    total = sum(stage.image_bytes for stage in inspection.stages)
    n = inspection.spec.images or IMAGES
    for line in (
        f"proved on {TRIAL} images: A V is what each layer passes on, and the output {equal} the plain one",
        f"places of tokens, by {inspection.passes} passes with one image changed a little: {inspection.places}",
        *((f"without a map: {', '.join(inspection.missing)}",) if inspection.missing else ()),
        f"one image: {size(total)} of maps and tokens, about {size(inspection.stored_bytes)} in the file",
        f"{n} images: about {size(n * inspection.stored_bytes)} on the disk (twice while shards become one file), "
        f"{duration(n * inspection.seconds)} on {inspection.device} besides reading the images",
    ):
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    if inspection.qk_bytes is not None and inspection.qk_bytes < inspection.stored_bytes:
        smaller = size(inspection.qk_bytes)
        line = f"with --store qk about {smaller}: queries and keys, from which maps are computed when they are read"
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    console.print(Text.assemble("\n$ ", (inspection.spec.command, "bold")), soft_wrap=True)


def print_maps(reader: MapReader, stages: Sequence[StageFacts], console: Console) -> None:
    """Everything about a maps file within 80 columns."""
    attrs = reader.attrs
    whole = "complete" if reader.complete else "unfinished"
    images = attrs.get("config", {}).get("images") or {}
    line = f": {len(reader)} images of {visible(str(images.get('data') or attrs['data']))}, {whole}"
    console.print(Text.assemble((visible(str(reader.path)), "bold"), line))
    console.print(Text(f"{visible(attrs['model'])}, {attrs['dtype']}, {visible(attrs['created'])[:19]}"))
    _print_stages(stages, console)


def _print_stages(stages: Sequence[StageFacts], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for title in ("stage", "kind", "L x H", "Q x K", "tokens", "maps", "route", "size"):
        table.add_column(
            title, no_wrap=title != "maps", justify="right" if title in ("L x H", "Q x K", "size") else "left"
        )
    for stage in stages:
        some = f"{stage.patches} of " if stage.patches < stage.rows * stage.cols else ""
        grid = f"{some}{stage.rows}x{stage.cols}" if stage.rows else "-"
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
        first = f"the first {len(prefix)} are" if len(prefix) > 1 else "the first is"
        console.print(Padding(Text(f"tokens {len(prefix)}+: {first} {_shortened(prefix)}"), (0, 0, 0, 2)))
    if any("weights" in stage.sites and "effective" not in stage.sites for stage in stages):
        console.print(
            Padding(Text("maps weights: softmax maps, which the model multiplies with V as they are"), (0, 0, 0, 2))
        )


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
