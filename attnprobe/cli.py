"""The command line: one subcommand per pipeline function, no logic; torch loads only when a command runs.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 fine, 1 the work failed (disk full, memory),
2 usage or bad input, 3 a condition of --fail-on holds, 75 stopped and resumable, 130 Ctrl-C.
"""

import importlib
import os
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable
from importlib.metadata import version
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from attnprobe.cli_act import compare, prune, verify_drops
from attnprobe.cli_capture import capture, inspect
from attnprobe.cli_figure import plot
from attnprobe.core.errors import AttnprobeError, InputError, Stopped, did_you_mean, stop_now
from attnprobe.core.visible import visible

Format = Literal["html", "json", "csv", "md"]
Positional = tyro.conf.Positional
Repeated = tyro.conf.UseAppendAction
Short = tyro.conf.arg

DESCRIPTION = """Has my vision transformer's attention collapsed, and from which block on?

Start with

  $ attnprobe demo --fast
  $ attnprobe capture RUN|CHECKPOINT|NAME --data FOLDER -o maps.h5
  $ attnprobe report maps.h5
"""


def demo(
    out: Annotated[Path, Short(aliases=["-o"])] = Path("attnprobe-demo"),
    fast: bool = False,
) -> None:
    """Digits -> train ViT-16 and DeepViT-16 -> capture both -> a report of the two side by side. Needs no network.

    Run again, it goes on where it was stopped.

    For example:

    $ attnprobe demo
    $ attnprobe demo --fast -o /tmp/demo

    Args:
        out: folder for the two runs and the report.
        fast: train for a few epochs only; the report says so.
    """
    from attnprobe import pipeline

    show(*pipeline.demo(out, fast=fast))


def train(
    recipe: Positional[Annotated[str, Short(metavar="RECIPE")]],
    out: Annotated[Path, Short(aliases=["-o"])],
    seeds: Annotated[str, Short(metavar="0-4|0,3,7")] = "",
    data_dir: Path | None = None,
    set: Annotated[Repeated[tuple[str, ...]], Short(metavar="NAME=VALUE")] = (),
    auto_batch: bool = False,
    ignore_unknown: bool = False,
) -> None:
    """Train a model; the same command goes on where a stopped run ended.

    For example:

    $ attnprobe train digits_vit_16 -o runs/vit
    $ attnprobe train digits_deepvit_16 -o runs/deep --set epochs=10 --set lr=1e-3
    $ attnprobe train digits_vit_16 --seeds 0-4 -o runs/vit
    $ attnprobe train args.yaml -o runs/mine --data-dir ~/images
    $ torchrun --nproc-per-node 4 -m attnprobe train deepvit_32 --data-dir ~/imagenet -o runs/deepvit_32

    Args:
        recipe: name of a shipped recipe (`attnprobe list recipes`), or a YAML file of ours or for timm's train.py.
        out: the run's directory; with --seeds what their names begin with: runs/vit_s0, runs/vit_s1 ...
        seeds: of several runs that differ in nothing else, one after the other; then compare "vit=runs/vit_s*".
        data_dir: where the data set lives.
        set: an option that replaces the recipe's, named as in timm's train.py; repeat for several.
        auto_batch: work on parts of a batch that does not fit into memory; the recipe stays the same.
        ignore_unknown: leave out options of the file that nobody knows.
    """
    from attnprobe import pipeline
    from attnprobe.core.config import parse_settings

    settings = parse_settings(set) | ({"data_dir": str(data_dir)} if data_dir else {})
    settings |= {"auto_batch": True} if auto_batch else {}
    if seeds:
        from attnprobe.experiment import seeds_of, train_seeds

        results = train_seeds(recipe, out, seeds_of(seeds), settings=settings, ignore_unknown=ignore_unknown)
    else:
        results = [pipeline.train(recipe, out, settings=settings, ignore_unknown=ignore_unknown)]
    for result in results:
        if os.environ.get("RANK", "0") == "0":
            print(f"{result.run.path}: top-1 {result.top1:.2%} after {len(result.log)} epochs, "
                  f"best {result.best:.2%} at epoch {result.best_epoch}", flush=True)  # fmt: skip
            for warning in result.warnings:
                print(f"{result.run.path}: {warning}")


def report(
    maps: Positional[Annotated[tuple[Path, ...], Short(metavar="MAPS|RUN")]],
    out: Annotated[Path, Short(aliases=["-o"])] = Path("attnprobe-report"),
    formats: tuple[Format, ...] = ("html", "json", "csv", "md"),
    metric: Repeated[tuple[str, ...]] = (),
    fail_on: Annotated[Repeated[tuple[str, ...]], Short(metavar="CONDITION")] = (),
    verify_drops: bool = False,
    tolerance: float = 0.02,
    bar: Annotated[Repeated[tuple[str, ...]], Short(metavar="KIND=NUMBER")] = (),
    data: str | None = None,
    data_dir: Path | None = None,
    group: Annotated[str | None, Short(metavar="REGEX")] = None,
) -> None:
    """Measure maps files or runs and report on all of them side by side.

    For example:

    $ attnprobe report runs/vit
    $ attnprobe report runs/vit runs/deepvit -o comparison
    $ attnprobe report maps.h5 --metric similar_blocks --metric row_entropy --formats json
    $ attnprobe report maps.h5 --metric all --metric similar_blocks:center=mean
    $ attnprobe report runs/vit --verify-drops
    $ attnprobe report runs/vit --fail-on "repetition>3" --fail-on "accuracy<0.9"

    Args:
        maps: maps files, or runs that have one.
        out: folder for report.html, measurements.json, measurements.csv and report.md.
        formats: which of them to write.
        metric: name of a metric (`attnprobe explain`), with settings as in similar_blocks:tau=0.8,compare=any; "all"
            but the slow ones; "default". Repeat for several.
        fail_on: end with exit code 3 where METRIC[.KEY][@SITE] OP NUMBER holds, such as similar_blocks.count.low>3 or
            row_entropy.min<0.5, or a kind of collapse, such as near_uniform>0 (blocks) or oversmoothing.found==1.
            Repeat for several.
        verify_drops: measure the accuracy of each run without what is similar or redundant, as the command does.
        tolerance: with --verify-drops, as there.
        bar: from where on the verdict finds a kind of collapse, such as near_uniform=0.8. Repeat for several.
        data: the images the maps are of, to show them, where they are not digits, fractals, or inside the run's folder.
        data_dir: where that data set lives.
        group: images that count once together: a regular expression whose part in brackets, searched in their ids
            (paths in a folder), names the group, as in '^(.+)_' for photo7_0.png and photo7_1.png; their mean is one
            observation.
    """
    from attnprobe import pipeline
    from attnprobe.core.config import parse_settings
    from attnprobe.core.reference import UserImages
    from attnprobe.reports.gate import insist

    examined, files = pipeline.report(
        maps,
        out=out,
        formats=formats,
        metrics=metric or None,
        fail_on=fail_on,
        verify=verify_drops,
        tolerance=tolerance,
        bars=parse_settings(bar),
        user=UserImages(data, data_dir),
        group=group,
    )
    show(examined, files)
    outcomes = pipeline.gate(examined, fail_on)
    for outcome in outcomes:
        print(outcome)
    insist(outcomes)


def view(
    maps: Positional[Annotated[tuple[Path, ...], Short(metavar="MAPS|RUN")]],
    port: int = 0,
    no_browser: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
) -> None:
    """Look at the maps of a file of any size in a browser; served from this machine alone, until Ctrl-C.

    Started in the background, as from a script, it does not see Ctrl-C: stop it with `kill PID` (SIGTERM). Exit code
    130 after Ctrl-C, 75 after SIGTERM.

    For example:

    $ attnprobe view maps.h5
    $ attnprobe view runs/vit runs/deepvit --no-browser

    Args:
        maps: maps files or runs; several are shown beside one another.
        port: any that is free if not given.
        no_browser: only print the address.
        data: the images the maps are of, where they are not digits, fractals, or inside the run's folder.
        data_dir: where that data set lives.
    """
    from attnprobe import viewing
    from attnprobe.core.reference import UserImages

    viewing.view(maps, port=port, browser=not no_browser, user=UserImages(data, data_dir))


def list_(what: Positional[Literal["variants", "models", "recipes", "data", "metrics", "plots"]]) -> None:
    """Show what there is: variants, models, recipes, data sets, metrics or plots.

    Args:
        what: which table.
    """
    import attnprobe

    if what == "variants":
        from attnprobe.models.describe import variant_table

        rows = variant_table()
    else:
        tables = {"models": "MODELS", "recipes": "RECIPES", "data": "DATASETS", "metrics": "METRICS", "plots": "PLOTS"}
        table = getattr(attnprobe, tables[what])
        more = importlib.import_module("attnprobe.metrics").DERIVED if what == "metrics" else {}
        rows = [(name, _summary(thing)) for name, thing in (*table.items(), *more.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _summary(thing: Any) -> str:
    """What a table's entry says of itself in one line."""
    return getattr(thing, "summary", None) or (getattr(thing, "function", thing).__doc__ or "").partition("\n")[0]


def explain(metric: Positional[Annotated[str | None, Short(metavar="METRIC")]] = None) -> None:
    """What a metric or a kind of collapse is: definition, source, bar, caveats. Without a name: all metrics.

    For example:

    $ attnprobe explain
    $ attnprobe explain similar_blocks
    $ attnprobe explain near_uniform

    Args:
        metric: its name, or that of a kind of collapse.
    """
    import inspect

    from attnprobe.core.explanation import explanation
    from attnprobe.metrics import DERIVED, METRICS
    from attnprobe.metrics.head_types import rules_in_words
    from attnprobe.reports.kinds import NAMES, kind_named

    if metric is None:
        list_("metrics")
    elif metric in NAMES:
        print(kind_named(metric).explanation)
    elif metric in DERIVED:
        print(rules_in_words() if metric == "head_types" else inspect.getdoc(DERIVED[metric]))
    else:
        print(explanation(METRICS[metric]))


def schema() -> None:
    """Print the JSON Schema of a report's measurements.json."""
    from attnprobe.reports.json_report import SCHEMA

    print(SCHEMA.read_text(), end="")


def verify(maps: Positional[Annotated[Path, Short(metavar="MAPS")]]) -> None:
    """Check every byte of a maps file against its checksum.

    Args:
        maps: a maps file or a folder of shards.
    """
    from attnprobe.store import open_maps

    reader = open_maps(maps)
    reader.verify()
    print(f"{maps}: {len(reader)} images, every checksum right")


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "inspect": inspect,
    "capture": capture,
    "report": report,
    "compare": compare,
    "verify-drops": verify_drops,
    "prune": prune,
    "plot": plot,
    "view": view,
    "list": list_,
    "explain": explain,
    "verify": verify,
    "schema": schema,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, stop_now)
    if not sys.warnoptions:  # a user reads what we say, not what libraries tell developers
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"attnprobe\b")
        warnings.showwarning = _warn
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
            return
        if arguments[0] == "--version":
            print(f"attnprobe {version('attnprobe')}")
            return
        name = arguments[0]
        if name not in COMMANDS:
            raise InputError(f"no command {name!r}.{did_you_mean(name, COMMANDS)}")
        tyro.cli(
            COMMANDS[name],
            prog=f"attnprobe {name}",
            description=_description(COMMANDS[name]),
            args=arguments[1:],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (AttnprobeError, Stopped) as error:
        _end(error, error.exit_code)
    except KeyboardInterrupt:
        _end("stopped; run the same command again to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads us any more, as in `| head`
        sys.exit(0)
    except (MemoryError, OSError) as error:
        _end(f"{type(error).__name__}: {error}; free some space or memory and run the same command again", 1)
    except Exception as error:
        if os.environ.get("ATTNPROBE_DEBUG"):
            raise
        _end(f"bug: {type(error).__name__}: {error} (ATTNPROBE_DEBUG=1 shows where; please report it)", 1)


def show(examined: Any, files: list[Path]) -> None:
    """What was examined, on the terminal, and the names of the files written."""
    from rich.console import Console

    from attnprobe.reports import print_report

    print_report(examined, Console())
    for path in files:
        print(path)


def _overview() -> str:
    """What there is: the three commands to start with, then all, a line each."""
    width = max(map(len, COMMANDS)) + 4
    lines = [
        textwrap.fill(
            _paragraphs(command)[0], 80, initial_indent=f"  {name:{width - 2}}", subsequent_indent=" " * width
        )
        for name, command in COMMANDS.items()
    ]
    return "\n".join([DESCRIPTION, "All commands (attnprobe COMMAND --help says more):", "", *lines])


def _description(command: Callable[..., Any]) -> str:
    """What its help begins with, in lines for a terminal. Lines that begin with a letter tyro would join."""
    lines: list[str] = []
    for part in _paragraphs(command):
        if part[0] == "$":
            for example in part.splitlines():
                lines.append("  " + " \\\n      ".join(textwrap.wrap(example, 74, break_on_hyphens=False)))
        else:
            lines += ["", textwrap.fill(part, 80, subsequent_indent="  ")]
    return "\n".join(lines[1:])


def _paragraphs(command: Callable[..., Any]) -> list[str]:
    """The docstring up to the arguments."""
    text, _, _ = (getdoc(command) or "?").partition("\nArgs:")
    return [part if part[0] == "$" else " ".join(part.split()) for part in text.strip().split("\n\n")]


def _warn(message: object, *_where: object, **_more: object) -> None:
    print(f"attnprobe: {_one_line(message)}", file=sys.stderr)


def _end(message: object, code: int) -> None:
    print(f"attnprobe: {_one_line(message)}", file=sys.stderr)
    sys.exit(code)


def _one_line(message: object) -> str:
    """A message as one line; a control character from a file's content is spelt out, or it would move the cursor."""
    return visible(" ".join(str(message).split()))


if __name__ == "__main__":
    main()
