"""The demonstration: a network whose attention collapses and one that does not, trained on digits, captured, reported.

Question: which pair? Choice: 24 blocks, one recipe, and only the model differs: a plain ViT, whose maps stay near
uniform in all blocks, and structured initial weights. That is so for every seed and number of threads that was tried
(`examples/benchmarks/demo_words.py`). At a learning rate of 2e-3, 25 epochs and width 96 a plain ViT of 24 blocks
leaves the uniform map in all blocks but one (one seed): it is the small learning rate that keeps it there.
"""

from pathlib import Path

from attnprobe.core.examined import Examined
from attnprobe.core.spec import CaptureSpec, ReportSpec
from attnprobe.io.run import Run, untrained_maps
from attnprobe.models import read_checkpoint
from attnprobe.store import open_maps
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.report import report
from attnprobe.workflows.train import train

PAIR = ("digits_vit_24", "digits_structured_24")

FAST_EPOCHS, FAST_IMAGES = 6, 120
"""Epochs and images of `demo --fast`, instead of the recipes' epochs and all validation images."""


def demo(out: Path, *, fast: bool = False) -> tuple[list[Examined], list[Path]]:
    """Train the two networks of `PAIR` on digits, capture both, and write the report of the two side by side.

    Run again, it resumes where it was stopped. `fast` trains for `FAST_EPOCHS` epochs, and the report says so.
    """
    runs, notes = [], []
    for recipe in PAIR:
        run = Run(Path(out) / recipe.removeprefix("digits_"))
        train(recipe, run.path, settings={"epochs": FAST_EPOCHS} if fast else None)
        if not _is_current(run):
            capture_file(CaptureSpec(run.path, overwrite=True, batch_size=60, images=FAST_IMAGES if fast else None))
        runs.append(run.path)
    if fast:
        notes = [f"--fast: trained for {FAST_EPOCHS} epochs only, so these are not converged networks"]
    return report(ReportSpec(tuple(runs), Path(out), notes=tuple(notes)))


def _is_current(run: Run) -> bool:
    """True if the run's maps are complete and of its newest checkpoint."""
    if not (run.maps.exists() and untrained_maps(run.maps).exists()):
        return False
    return open_maps(run.maps).attrs["checkpoint_sha256"] == read_checkpoint(run.path).sha256
