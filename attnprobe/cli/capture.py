"""The commands that run a model once over images: capture and inspect."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from tyro import MISSING

from attnprobe.cli.options import NEWEST, Repeated, Short, Which, show
from attnprobe.core.spec import CaptureSpec

Spec = Annotated[CaptureSpec, Short(name="", prefix_name=False)]
"""Its options stand among those of the command."""

INSPECTED = CaptureSpec(MISSING, images=256)


def capture(
    spec: Spec,
    stats_only: bool = False,
    metric: Repeated[tuple[str, ...]] = (),
    group: Annotated[str | None, Short(metavar="REGEX")] = None,
    out: Annotated[Path | None, Short(aliases=["-o"])] = None,
    checkpoint: Which = NEWEST,
) -> None:
    """Store a model's attention maps in one HDF5 file; the same command resumes one that was stopped.

    For example:

    $ attnprobe capture runs/vit
    $ attnprobe capture vit_small_patch16_224 --data path/to/images --images 256 -o maps.h5
    $ attnprobe capture old.pth --model deepvit_16 --data fractals:10
    $ attnprobe capture hf:facebook/dinov2-small --data path/to/images --layers 1,6,12 --queries cls
    $ attnprobe capture runs/vit --stats-only -o report
    $ torchrun --nproc-per-node 4 -m attnprobe capture runs/vit --data path/to/images

    Args:
        spec: what to capture.
        stats_only: store no maps; measure and report, into the folder -o.
        metric: with --stats-only, what to measure (`attnprobe list metrics`); repeat for several.
        group: with --stats-only, as for report: images that count once together.
        out: the file; maps.h5 in the run, or MODEL.h5 here, if not given.
    """
    from attnprobe.workflows import capture as workflow

    chosen = replace(spec, model=checkpoint.of(str(spec.model)))
    if stats_only:
        folder = out or Path(f"{Path(spec.model).stem}-stats")
        show(*workflow.measure_live(chosen, out=folder, metrics=metric or None, group=group))
    else:
        print(workflow.capture_file(chosen, out=out))


def inspect(spec: Spec = INSPECTED, checkpoint: Which = NEWEST) -> None:
    """Show what a capture of a model would hold and cost, and the command to run; or what is in a maps file.

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
