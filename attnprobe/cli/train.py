"""The commands that train and evaluate: demo, train and evaluate."""

import os
import shlex
from pathlib import Path
from typing import Annotated

from attnprobe.cli.options import NEWEST, Positional, Repeated, Short, Which, say_next, say_what_shows, show
from attnprobe.core.spec import FIRST, CaptureSpec, EvaluateSpec
from attnprobe.core.text import numbers

Spec = Annotated[EvaluateSpec, Short(name="", prefix_name=False)]
"""Its options stand among those of the command."""


def demo(
    out: Annotated[Path, Short(aliases=["-o"], metavar="FOLDER")] = Path("attnprobe-demo"), fast: bool = False
) -> None:
    """Train two networks, of which one collapses, and report on both.

    They are trained on digits; no internet is needed. Run again, it resumes where it was stopped.

    For example:

    $ attnprobe demo
    $ attnprobe demo --fast -o /tmp/demo

    Args:
        out: folder for the two runs and the report.
        fast: train for a few epochs only; the report says so.
    """
    from attnprobe.workflows import demo as workflow

    examined, files = workflow.demo(out, fast=fast)
    show(examined, files)
    say_what_shows(files)


def train(
    recipe: Positional[Annotated[str, Short(metavar="RECIPE")]],
    out: Annotated[Path, Short(aliases=["-o"], metavar="FOLDER")],
    seeds: Annotated[str, Short(metavar="0-4|0,3,7")] = "",
    data_dir: Annotated[Path | None, Short(metavar="FOLDER")] = None,
    set: Annotated[Repeated[tuple[str, ...]], Short(metavar="NAME=VALUE")] = (),
    auto_batch: bool = False,
    ignore_unknown: bool = False,
) -> None:
    """Train a model by a recipe, or resume a stopped run.

    On a GPU it trains in bfloat16 (float16 where the device has none; --set amp=false for float32), and is not compiled
    unless --set torchcompile=true says so, which pays off from some minutes of training on. After some steps, a line
    says how long all of it will take, and how much of the GPU's memory; with several GPUs, torchrun starts a process
    on each. More epochs than before may be set for a stopped or finished run if its schedule is step or multistep.

    For example:

    $ attnprobe train digits_vit_16 -o runs/vit
    $ attnprobe train digits_deepvit_16 --set epochs=10 --set lr=1e-3 -o runs/deep
    $ attnprobe train digits_vit_16 --seeds 0-4 -o runs/vit
    $ attnprobe train args.yaml --data-dir ~/images -o runs/mine
    $ torchrun --nproc-per-node 4 -m attnprobe train deepvit_32 -o runs/deepvit

    Args:
        recipe: name of a shipped recipe (`attnprobe list recipes`), or a YAML file of ours or for timm's train.py.
        out: the run's directory. With --seeds the prefix of several: runs/vit gives runs/vit_s0, runs/vit_s1.
        seeds: train several runs that differ in their seed alone. Then compare "vit=runs/vit_s*".
        data_dir: folder of the data set.
        set: an option that replaces the recipe's; repeat for several. Names are those of timm's train.py.
        auto_batch: split a batch that does not fit into memory. The recipe stays the same.
        ignore_unknown: ignore options of the file that are not known.
    """
    from attnprobe.io.config import parse_settings

    settings = parse_settings(set) | ({"data_dir": str(data_dir)} if data_dir else {})
    settings |= {"auto_batch": True} if auto_batch else {}
    if seeds:
        from attnprobe.workflows.train import train_seeds

        chosen = numbers("--seeds", seeds, least=0)
        results = train_seeds(recipe, out, chosen, settings=settings, ignore_unknown=ignore_unknown)
    else:
        from attnprobe.workflows import train as workflow

        results = [workflow.train(recipe, out, settings=settings, ignore_unknown=ignore_unknown)]
    paths = []
    for result in results:  # one after the other, as they are trained
        paths.append(result.run.path)
        if os.environ.get("RANK", "0") == "0":
            print(f"{result.run.path}: top-1 {result.top1:.2%} after {len(result.log)} epochs, "
                  f"best {result.best:.2%} at epoch {result.best_epoch}", flush=True)  # fmt: skip
            for warning in result.warnings:
                print(f"{result.run.path}: {warning}")
    capture = shlex.join(["attnprobe", "capture", str(paths[0])])
    compare = shlex.join(["attnprobe", "compare", f"{out.name}={out}_s*"])
    say_next(capture if len(paths) == 1 else f"{capture}, and so each run, then {compare}")


def evaluate(
    spec: Spec,
    json: Annotated[Path | None, FIRST, Short(metavar="FILE")] = None,
    checkpoint: Which = NEWEST,
) -> None:
    """Measure a model's accuracy on labelled images, with intervals.

    Top-1, top-5 and loss, or the nearest-neighbour accuracy of a model without a head. Pixels are resized, cropped and
    normalised as the model's files say; where they say nothing, as timm does for the named model. Options set others.

    For example:

    $ attnprobe evaluate runs/vit
    $ attnprobe evaluate vit_small_patch16_224 --data photos/ --json result.json
    $ attnprobe evaluate hf:facebook/dinov2-small --data photos/ --knn --per-class
    $ torchrun --nproc-per-node 4 -m attnprobe evaluate runs/vit --data photos/

    Args:
        spec: what to evaluate.
        json: file for all numbers.
    """
    from dataclasses import replace

    from attnprobe.workflows import evaluate as workflow

    done = workflow.evaluate(replace(spec, model=checkpoint.of(str(spec.model))))
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    print(done.text(per_class=spec.per_class))
    if json is not None:
        workflow.write_json(done, json)
        print(json)
    where = {name: getattr(spec, name) for name in ("architecture", "data", "data_dir")}
    say_next(CaptureSpec(spec.model, **where).command)
