"""The commands that try a model without parts of it: verify-drops and prune."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from attnprobe.cli.options import EVERY_IMAGE, NEWEST, Positional, Repeated, Short, Trial, Which, say_next
from attnprobe.core.spec import FIRST, CaptureSpec


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates that verify-drops ablates."""

    maps: Annotated[Path | None, Short(metavar="MAPS")] = None
    """file to find similar blocks and redundant heads in. The run's own if not given."""
    blocks: Annotated[str | None, FIRST, Short(metavar="B,B|all")] = None
    """blocks to ablate instead of the report's, counted from 1."""
    heads: Annotated[str | None, FIRST, Short(metavar="B:H,B:H|all")] = None
    """heads to ablate instead of the report's, as BLOCK:HEAD."""
    metric: Annotated[Repeated[tuple[str, ...]], Short(metavar="NAME")] = ()
    """similar_blocks or head_divergence with settings. As for report; repeat for both."""
    what: Literal["block", "attention"] = "block"
    """removed cumulatively and advised. Whole blocks, or their attention alone, which leaves the MLPs."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Parts that prune removes."""

    blocks: Annotated[str, FIRST, Short(metavar="B,B")] = ""
    """blocks to drop, counted from 1 as in reports. Swin loses pairs of neighbours."""
    attention: Annotated[str, FIRST, Short(metavar="B,B")] = ""
    """blocks that lose their attention and keep their MLP."""
    heads: Annotated[str, FIRST, Short(metavar="B:H,B:H")] = ""
    """heads to remove, as BLOCK:HEAD, both counted from 1 in the whole model."""


REPORTED, NOTHING = Candidates(), Removed()
Flat = tyro.conf.OmitArgPrefixes


def verify_drops(
    model: Positional[Annotated[str, Short(metavar="MODEL")]],
    candidates: Flat[Candidates] = REPORTED,
    tolerance: Annotated[float, FIRST] = 0.02,
    out: Annotated[Path | None, FIRST, Short(aliases=["-o"], metavar="FOLDER")] = None,
    trial: Trial = EVERY_IMAGE,
    checkpoint: Which = NEWEST,
) -> None:
    """Measure accuracy without each similar block and redundant head.

    Each that a report finds is ablated singly, then all cumulatively. A similar block uses the previous block's map,
    adds no attention, or is dropped; the output of a redundant head is set to 0 (or its softmax map, where heads are
    mixed after the softmax). The last line says what can be removed at the tolerance, and the command that removes it.
    One half of the images, or with --split train the training images, chooses what to remove; all numbers are measured
    on the others. A model without a head, or of other classes than the images', is judged by its features: the
    accuracy is then that of their nearest neighbours among the images that choose.

    For example:

    $ attnprobe verify-drops runs/vit
    $ attnprobe verify-drops runs/vit --metric similar_blocks:tau=0.8 -o evidence
    $ attnprobe verify-drops runs/vit --blocks 2,3,4 --heads 9:3,9:5
    $ attnprobe verify-drops runs/vit --blocks all --what attention
    $ attnprobe verify-drops hf:facebook/dinov2-small --blocks all --data photos/

    Args:
        model: a run, a checkpoint, or the name of a model.
        candidates: what to ablate.
        tolerance: largest loss of accuracy that it advises, a fraction. The 95 % interval must exclude a larger one.
        out: folder for drops.csv and drops.json; nothing is written if not given.
    """
    from attnprobe.reports.removal import evidence_text
    from attnprobe.workflows import ablate as ablation
    from attnprobe.workflows.prune import numbers_of, pairs_of

    blocks, heads = candidates.blocks, candidates.heads
    evidence = ablation.verify_drops(
        checkpoint.of(model),
        maps=candidates.maps,
        blocks=blocks if blocks in (None, "all") else numbers_of(blocks),
        heads=heads if heads in (None, "all") else pairs_of(heads),
        metrics=candidates.metric,
        what=candidates.what,
        tolerance=tolerance,
        **asdict(trial),
    )
    files = [] if out is None else ablation.write_evidence(evidence, out)
    print(evidence_text(evidence))
    for path in files:
        print(path)


def prune(
    model: Positional[Annotated[str, Short(metavar="MODEL")]],
    out: Annotated[Path, Short(aliases=["-o"], metavar="FOLDER")],
    removed: Flat[Removed] = NOTHING,
    finetune_epochs: int = 0,
    set: Annotated[Repeated[tuple[str, ...]], Short(metavar="NAME=VALUE")] = (),
    trial: Trial = EVERY_IMAGE,
    checkpoint: Which = NEWEST,
) -> None:
    """Write a checkpoint without some blocks, attention or heads.

    Its accuracy and speed-up are printed. timm opens it, or transformers a model of theirs. Accuracy is measured on
    images that had no part in choosing what to remove; the others choose the epoch of fine-tuning. Heads can be removed
    from blocks whose heads are independent of one another; where a variant mixes them, or a library cannot write what
    is left, the command says so.

    For example:

    $ attnprobe prune runs/vit --blocks 12,14 -o runs/vit-smaller
    $ attnprobe prune runs/vit --heads 9:3,9:5 --finetune-epochs 5 -o runs/tuned
    $ attnprobe prune local-dir:vit --attention 10,11 --data photos/ -o small

    Args:
        model: a run, a checkpoint, or the name of a model.
        out: a new folder with model.safetensors and config.json. timm.create_model("local-dir:OUT") opens it, after
            `import attnprobe.models` if the architecture is one of ours; of a model of transformers, AutoModel does.
        removed: what to remove.
        finetune_epochs: epochs of fine-tuning. By the run's recipe, at a tenth of its learning rate.
        set: options of the fine-tuning that replace the recipe's; repeat for several.
    """
    from attnprobe.io.config import parse_settings
    from attnprobe.workflows import prune as pruning

    done = pruning.prune(
        checkpoint.of(model),
        out,
        blocks=pruning.numbers_of(removed.blocks),
        attention=pruning.numbers_of(removed.attention),
        heads=pruning.heads_of(removed.heads),
        finetune_epochs=finetune_epochs,
        settings=parse_settings(set),
        **asdict(trial),
    )
    print(done)
    print(done.path)
    say_next(CaptureSpec(done.path, data=done.data, data_dir=done.data_dir).command)
