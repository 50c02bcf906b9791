"""The commands that look something up: list, explain, schema and verify."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from attnprobe.cli.options import Positional, Short
from attnprobe.core.errors import InputError, check_choice, did_you_mean


def list_(what: Positional[Annotated[str | None, Short(metavar="TABLE")]] = None) -> None:
    """List the variants, models, recipes, data sets, metrics, kinds of collapse or plots.

    For example:

    $ attnprobe list
    $ attnprobe list variants

    Args:
        what: variants, models, recipes, data, metrics, kinds or plots; without one, these are listed.
    """
    if what is None:
        rows = [(name, summary) for name, (summary, _) in TABLES.items()]
    else:
        check_choice("table", what, [*TABLES])
        rows = TABLES[what][1]()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _variants() -> list[tuple[str, ...]]:
    from attnprobe.models.describe import variant_table

    return variant_table()


def _kinds() -> list[tuple[str, ...]]:
    from attnprobe.reports.kinds import KINDS

    return [(kind.name, kind.meaning) for kind in KINDS]


def _metrics() -> list[tuple[str, ...]]:
    from attnprobe.metrics import DERIVED, METRICS

    return [(name, _summary(metric)) for name, metric in (*METRICS.items(), *DERIVED.items())]


def _registered(table: str) -> list[tuple[str, ...]]:
    """Rows of one of attnprobe's registries, by the name that the package has it by."""
    import attnprobe

    return [(name, _summary(thing)) for name, thing in getattr(attnprobe, table).items()]


TABLES: dict[str, tuple[str, Callable[[], list[tuple[str, ...]]]]] = {
    "variants": ("kinds of networks that can be trained and compared", _variants),
    "models": ("networks of the variants, ready to be built by name", partial(_registered, "MODELS")),
    "recipes": ("settings of training, for `attnprobe train`", partial(_registered, "RECIPES")),
    "data": ("data sets, for --data", partial(_registered, "DATASETS")),
    "metrics": ("numbers that are measured, for --metric", _metrics),
    "kinds": ("kinds of collapse that a verdict knows", _kinds),
    "plots": ("figures, for `attnprobe plot --figure`", partial(_registered, "PLOTS")),
}
"""What each table is, and what makes its rows; the modules of a table are imported when it is asked for."""


def _summary(thing: Any) -> str:
    """The first line of an entry's docstring, or its summary, with settings that its name stands for."""
    line = getattr(thing, "summary", None) or (getattr(thing, "function", thing).__doc__ or "").partition("\n")[0]
    settings = ", ".join(f"{name}={value}" for name, value in getattr(thing, "settings", {}).items())
    return f"{line} ({settings})" if settings else line


def explain(metric: Positional[Annotated[str | None, Short(metavar="METRIC")]] = None) -> None:
    """Explain a metric or a kind of collapse, with its source.

    For example:

    $ attnprobe explain
    $ attnprobe explain similar_blocks
    $ attnprobe explain near_uniform

    Args:
        metric: name of a metric or of a kind of collapse; without one, all metrics are listed.
    """
    import inspect

    from attnprobe.metrics import DERIVED, METRICS
    from attnprobe.metrics.head_types import rules_in_words
    from attnprobe.reports.kinds import NAMES, kind_named

    metric = metric and metric.replace("-", "_")
    if metric is None:
        list_("metrics")
    elif metric in NAMES:
        print(kind_named(metric).explanation)
    elif metric in DERIVED:
        print(rules_in_words() if metric == "head_types" else inspect.getdoc(DERIVED[metric]))
    elif metric in METRICS:
        print(METRICS[metric].explanation)
    else:
        hint = did_you_mean(metric, [*METRICS, *DERIVED, *NAMES], "attnprobe list metrics, attnprobe list kinds")
        raise InputError(f"no metric and no kind of collapse is named {metric!r}.{hint}")


def schema() -> None:
    """Print the JSON Schema of a report's measurements.json.

    For example:

    $ attnprobe schema > measurements.schema.json
    """
    from attnprobe.reports.json_report import SCHEMA

    print(SCHEMA.read_text(), end="")


def verify(maps: Positional[Annotated[Path, Short(metavar="MAPS")]]) -> None:
    """Check every byte of a maps file against its checksum.

    For example:

    $ attnprobe verify maps.h5

    Args:
        maps: a maps file or a folder of shards.
    """
    from attnprobe.store import open_maps

    reader = open_maps(maps)
    reader.verify()
    print(f"{reader.path}: {len(reader)} images, every checksum right")
