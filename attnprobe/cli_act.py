"""The commands that come after a report. As in `cli`: no logic, and torch loads only when one runs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from attnprobe.cli_checkpoint import NEWEST, WhichCheckpoint

Positional = tyro.conf.Positional
Repeated = tyro.conf.UseAppendAction
Short = tyro.conf.arg
Which = tyro.conf.OmitArgPrefixes[WhichCheckpoint]


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """What models are tried on."""

    architecture: Annotated[str | None, Short(name="model")] = None
    """the model's name, for checkpoint files that neither say it nor show it."""
    data: str | None = None
    """labelled images; the run's own if not given."""
    data_dir: Path | None = None
    """where the data set lives."""
    split: str = "val"
    """val: one half of these images chooses, the other judges; train: training images choose, those of val judge."""
    images: int | None = None
    """a fixed, class-balanced subset of this many, of each split."""
    batch_size: int = 64
    """images per forward pass, also where it is timed."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU if there is one."""


def compare(
    maps: Positional[Annotated[tuple[str, ...], Short(metavar="MAPS|RUN|NAME=RUNS")]],
    out: Annotated[Path, Short(aliases=["-o"])] = Path("attnprobe-comparison"),
    table: Literal["papers", "summary"] = "papers",
    metric: Repeated[tuple[str, ...]] = (),
    match_heads: bool = False,
    group: Annotated[str | None, Short(metavar="REGEX")] = None,
) -> None:
    """Runs, or methods of several runs, in one table for a paper, and where each differs from the first.

    Single runs are compared on the images both saw, which says nothing of other seeds. NAME=PATTERN names the runs of a
    method, two or more: intervals and tests are then over runs and images. Runs of other depth are compared at equal
    relative depth. Prints the table as Markdown.

    For example:

    $ attnprobe compare "vit=runs/vit_s*" "deepvit=runs/deepvit_s*" -o comparison
    $ attnprobe compare runs/vit runs/deepvit runs/refiner -o comparison
    $ attnprobe compare a.h5 b.h5 --table summary --metric row_entropy --match-heads
    $ attnprobe capture runs/vit/checkpoints/epoch-0005 --data digits -o epoch5.h5
    $ attnprobe compare epoch5.h5 runs/vit -o since-epoch-5

    Args:
        maps: maps files, or runs that have one, or a name and a pattern of several; the first is what the others are
            compared with. A name may be there again, with more runs.
        out: folder for comparison.md, comparison.csv, comparison.tex (booktabs) and differences.csv (every cell); of
            methods also depth.png.
        table: parameters, accuracy and similar blocks, as the papers have it; or the summary of a report.
        metric: as for report. Repeat for several.
        match_heads: pair the heads of each block by their maps first; for models of equal depth and heads.
        group: as for report: images that count once together.
    """
    from attnprobe import comparison

    how = {"table": table, "metrics": metric or None, "match_heads": match_heads, "group": group}
    _, files = comparison.compare(maps, out=out, **how)
    print(files[0].read_text(encoding="utf-8"), end="")
    for path in files:
        print(path)


def verify_drops(
    model: Positional[Annotated[str, Short(metavar="MODEL")]],
    maps: Path | None = None,
    blocks: Annotated[str | None, Short(metavar="B,B")] = None,
    heads: Annotated[str | None, Short(metavar="B:H,B:H")] = None,
    metric: Repeated[tuple[str, ...]] = (),
    tolerance: float = 0.02,
    out: Annotated[Path | None, Short(aliases=["-o"])] = None,
    trial: tyro.conf.OmitArgPrefixes[TrialOptions] = TrialOptions(),
    checkpoint: Which = NEWEST,
) -> None:
    """Is what a report calls similar or redundant not needed? Accuracy without it, alone and one after the other.

    Each similar block uses the map of the block before, adds no attention, or is dropped; each redundant head is 0
    (where heads are mixed after the softmax, its softmax map). Ends with what can go at that tolerance, and the command
    that takes it out. One half of the images, or with --split train the training images, chooses what goes; all numbers
    are of the others.

    For example:

    $ attnprobe verify-drops runs/vit
    $ attnprobe verify-drops runs/vit --metric similar_blocks:tau=0.8 --tolerance 0.05 -o evidence
    $ attnprobe verify-drops runs/vit --blocks 2,3,4 --heads 9:3,9:5
    $ attnprobe verify-drops runs/vit --blocks all --heads all --split train

    Args:
        model: a run, a checkpoint, or the name of a model.
        maps: the maps file that says what is similar; the run's own if not given.
        blocks: others to try, counted from 1, instead of the report's; or all.
        heads: others to try, as BLOCK:HEAD, instead of the report's; or all.
        metric: similar_blocks or head_divergence with settings, as for report; repeat for both.
        tolerance: how much accuracy the advice may cost; a larger loss must be excluded by the 95 % interval. 0.02 is
            two percent.
        out: folder for drops.csv and drops.json; nothing is written if not given.
    """
    from attnprobe import ablation
    from attnprobe.pruning import numbers_of, pairs_of

    evidence, files = ablation.verify_drops(
        checkpoint.of(model),
        maps=maps,
        blocks=blocks if blocks in (None, "all") else numbers_of(blocks),
        heads=heads if heads in (None, "all") else pairs_of(heads),
        metrics=metric,
        tolerance=tolerance,
        out=out,
        **asdict(trial),
    )
    print(evidence)
    for path in files:
        print(path)


def prune(
    model: Positional[Annotated[str, Short(metavar="MODEL")]],
    out: Annotated[Path, Short(aliases=["-o"])],
    blocks: Annotated[str, Short(metavar="B,B")] = "",
    heads: Annotated[str, Short(metavar="B:H,B:H")] = "",
    finetune_epochs: int = 0,
    set: Annotated[Repeated[tuple[str, ...]], Short(metavar="NAME=VALUE")] = (),
    trial: tyro.conf.OmitArgPrefixes[TrialOptions] = TrialOptions(),
    checkpoint: Which = NEWEST,
) -> None:
    """A smaller checkpoint without some blocks and heads, which timm opens; prints what that costs and saves.

    Measured on the images that did not choose what goes; the others choose the epoch of fine-tuning. Heads are
    removed from blocks whose heads do not see each other; where a variant mixes them, it says so.

    For example:

    $ attnprobe prune runs/vit --blocks 12,14 -o runs/vit-smaller
    $ attnprobe prune runs/vit --heads 9:3,9:5 --finetune-epochs 5 -o runs/vit-tuned
    $ attnprobe prune vit_small_patch16_224 --blocks 11 --data path/to/images -o small

    Args:
        model: a run, a checkpoint, or the name of a model.
        out: a new folder with model.safetensors and config.json; timm.create_model("local-dir:OUT") opens it, after
            `import attnprobe.models` if the architecture is one of ours.
        blocks: those to drop, counted from 1 as in reports.
        heads: those to remove, as BLOCK:HEAD, both counted from 1 in the whole model.
        finetune_epochs: train on by the run's recipe, with a tenth of its learning rate.
        set: options of the fine-tuning that replace the recipe's; repeat for several.
    """
    from attnprobe import pruning
    from attnprobe.core.config import parse_settings

    done = pruning.prune(
        checkpoint.of(model),
        out,
        blocks=pruning.numbers_of(blocks),
        heads=pruning.heads_of(heads),
        finetune_epochs=finetune_epochs,
        settings=parse_settings(set),
        **asdict(trial),
    )
    print(done)
    print(done.path)
