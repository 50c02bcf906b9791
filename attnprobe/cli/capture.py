"""The commands that make maps files, and say what would be in one: capture, import and inspect."""

import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro import MISSING

from attnprobe.cli.options import NEWEST, Positional, Repeated, Short, Which, say_next, say_what_shows, show
from attnprobe.core.spec import FIRST, KEEP_VALUES, CaptureSpec, ImportOptions

Spec = Annotated[CaptureSpec, Short(name="", prefix_name=False)]
"""Its options stand among those of the command."""

INSPECTED = CaptureSpec(MISSING)
AS_THEY_ARE = ImportOptions()


def capture(
    spec: Spec,
    stats_only: Annotated[bool, FIRST] = False,
    metric: Repeated[Annotated[tuple[str, ...], Short(metavar="NAME")]] = (),
    group: Annotated[str | None, Short(metavar="REGEX")] = None,
    keep_values: int = KEEP_VALUES,
    out: Annotated[Path | None, FIRST, Short(aliases=["-o"], metavar="FILE")] = None,
    checkpoint: Which = NEWEST,
    engine: Literal["alone", "ray"] = "alone",
) -> None:
    """Store a model's attention maps in one HDF5 file; run again, it resumes.

    For example:

    $ attnprobe capture runs/vit -o maps.h5
    $ attnprobe capture old.pth --model deepvit_16 --data fractals --images 99
    $ attnprobe capture hf:facebook/dinov2-small --data photos/ --layers 1,6,12
    $ attnprobe capture runs/vit --stats-only -o report
    $ torchrun --nproc-per-node 4 -m attnprobe capture runs/vit --data photos/

    Args:
        spec: what to capture.
        stats_only: store no maps; measure and report, into -o.
        metric: metric of --stats-only; repeat for several. `attnprobe list metrics` lists all.
        group: for --stats-only, as for report. Images that count once together.
        keep_values: most images whose values --stats-only keeps. Of more, sums over all of them and over resamples are
            kept, and the values of so many.
        out: the file; else maps.h5 in the run, or MODEL.h5 here.
        engine: alone in this process, or over Ray. Alone may be several processes, of torchrun; Ray is the cluster of
            RAY_ADDRESS, or the cores of this machine.
    """
    if engine == "ray":
        from attnprobe.workflows.over_ray import capture_over_ray as capture_file
        from attnprobe.workflows.over_ray import measure_over_ray as measure_live
    else:
        from attnprobe.workflows.capture import capture_file, measure_live
    from attnprobe.workflows.capture import maps_file

    chosen = replace(spec, model=checkpoint.of(str(spec.model)))
    if stats_only:
        folder = out or Path(f"{Path(spec.model).stem}-stats")
        how: dict[str, Any] = {"metrics": metric or None, "group": group, "keep_values": keep_values}
        examined, files = measure_live(chosen, out=folder, **how)
        show(examined, files)
        say_what_shows(files)
    else:
        before = maps_file(chosen, out)
        was_there = before.exists() and not chosen.overwrite
        made = capture_file(chosen, out=out)
        if was_there and made == before:
            warnings.warn(f"{made} holds this capture already; nothing was computed.", stacklevel=2)
        print(made)
        say_next(shlex.join(["attnprobe", "report", str(made)]))


def inspect(spec: Spec = INSPECTED, checkpoint: Which = NEWEST) -> None:
    """Show what a capture would hold and cost, or what a file holds.

    It takes the options of capture. The weights of a model given by name do not matter here and are not downloaded.

    For example:

    $ attnprobe inspect swin_tiny_patch4_window7_224
    $ attnprobe inspect torchvision:vit_b_16 --images 50000 --layers 1,6,12 --queries cls
    $ attnprobe inspect maps.h5
    """
    from rich.console import Console

    from attnprobe.workflows import inspect as inspection

    model = Path(spec.model)
    if model.suffix in (".h5", ".parts"):
        inspection.print_maps(*inspection.inspect_maps(model), Console())
    else:
        chosen = replace(spec, model=checkpoint.of(str(spec.model)))
        inspection.print_inspection(inspection.inspect_model(chosen), Console())


def import_(
    file: Positional[Annotated[Path, Short(metavar="FILE")]],
    out: Annotated[Path, Short(aliases=["-o"], metavar="FILE")],
    options: tyro.conf.OmitArgPrefixes[ImportOptions] = AS_THEY_ARE,
    overwrite: bool = False,
) -> None:
    """Turn maps that another program saved into a maps file.

    Nothing in the file is run.

    For example:

    $ attnprobe import attention.npz -o maps.h5
    $ attnprobe import attention.npy --axes LIHQK --grid 14x14 -o maps.h5
    $ attnprobe import mixed.pkl --site effective -o maps.h5

    Args:
        file: .npy, .npz, .pt, .safetensors, or a pickle of nested lists of arrays.
        out: the maps file.
        overwrite: replace an existing file.
    """
    from attnprobe.workflows.import_maps import import_maps

    made = import_maps(file, out, options, overwrite=overwrite)
    print(made)
    say_next(shlex.join(["attnprobe", "report", str(made)]))
