"""Metrics from names with settings, as they are typed on the command line."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, get_args

from attnprobe.core.errors import InputError
from attnprobe.core.metric import Metric
from attnprobe.io.config import parse_settings


def choose(wanted: Sequence[Metric | str] | str | None) -> tuple[tuple[Metric, ...], frozenset[str]]:
    """The metrics to measure, and the names of those that must be defined on the maps.

    Args:
        wanted: metrics, or one; names, with settings as in "similar_blocks:tau=0.8,compare=any"; or sets of names:
            "default", "all" but the slow ones, "atlas" (what `head_types` needs); there a metric may have the cheaper
            settings of `IN_SETS`. A metric asked for by itself replaces that of a set. None for "default".

    Raises:
        InputError: an unknown name or setting, or two metrics of one name.
    """
    from attnprobe import metrics  # late: the table imports the metrics, and they measure

    every = tuple(name for name in metrics.METRICS if name not in metrics.SLOW)
    sets = {"default": metrics.DEFAULT, "all": every, "atlas": metrics.ATLAS}
    wanted = ("default",) if wanted is None else (wanted,) if isinstance(wanted, str) else wanted
    named = [name for one in wanted if isinstance(one, str) and one in sets for name in sets[one]]
    chosen = {name: metrics.METRICS[name].with_settings(**metrics.IN_SETS.get(name, {})) for name in named}
    alone = [_metric(one, metrics.METRICS) for one in wanted if not (isinstance(one, str) and one in sets)]
    names = [metric.name for metric in alone]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(
            f"two metrics are named {min(twice)!r}; rename one: dataclasses.replace(metric, name='another')."
        )
    return tuple({**chosen, **dict(zip(names, alone, strict=True))}.values()), frozenset(names)


def _metric(wanted: Metric | str, table: Any) -> Metric:
    """One metric, from itself or from "name:setting=value,setting=value"."""
    if isinstance(wanted, Metric):
        return wanted
    if not isinstance(wanted, str):
        raise InputError(
            f"a metric is its name or a Metric, got {type(wanted).__name__}; maps of a model are measured as in "
            "ap.measure(ap.capture(model, images))."
        )
    name, _, settings = wanted.partition(":")
    metric: Metric = table[name]
    values = parse_settings(settings.split(",")) if settings else {}
    return metric.with_settings(**{key: _typed(metric, key, value) for key, value in values.items()})


def _typed(metric: Metric, setting: str, value: Any) -> Any:
    """The value, if it is of the kind that the setting has; YAML reads 1e-3 as text."""
    if setting not in metric.parameters:
        return value  # `with_settings` refuses it, or knows it
    default, annotation = metric.parameters[setting].default, metric.parameters[setting].annotation
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (type(default),)
    if float in kinds and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"metric {metric.name!r}: {setting}={value!r} must be {wanted}, as {default!r} is.")
    return value
