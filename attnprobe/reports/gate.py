"""Conditions such as `similar_blocks>3` that fail a build; parsed, never evaluated as code.

    metric[.key][@site] OP number        OP: one of > >= < <= == !=

`key` is a number of the metric's summary (`similar_blocks.collapsed_from`), `KEY.low` or `KEY.high` a bound of its
interval (`similar_blocks.count.low>3`: surely more than 3), or `mean`, `min`, `max` over what the summary table means.
`accuracy` and `parameters` of the model can be named as well, and the kinds of collapse that a verdict knows:
`near_uniform>0` is about the number of blocks that are (`near_uniform.blocks.low`: surely), `oversmoothing.found==1`
about whether it was found, `.from` about the first of the blocks and `.number` about what is compared with the bar.
A number that is not known is an error, not a pass.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from attnprobe.core.errors import GateFailed, InputError, did_you_mean
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Key, Measurement
from attnprobe.core.sites import Site
from attnprobe.reports.finding import Finding
from attnprobe.reports.findings import findings
from attnprobe.reports.kinds import NAMES, kind_named
from attnprobe.reports.numbers import number, telling_cells

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
FACTS = ("accuracy", "parameters")
"""Facts about the model that a condition may name."""

OF_KINDS: dict[str, Callable[[Finding], float | None]] = {
    "blocks": lambda f: len(f.blocks),
    "blocks.low": lambda f: f.surely,
    "blocks.high": lambda f: f.at_most,
    "found": lambda f: f.found == "yes",
    "from": lambda f: f.first_block,
    "number": lambda f: f.number,
    "untrained": lambda f: f.untrained,
}
"""Keys of a kind of collapse; "blocks" if none is given."""

USUAL_KEY = {"similar_blocks": "count", "head_divergence": "redundant", "head_similarity": "redundant"}
"""Key of a metric that is named alone."""

OVER_CELLS: dict[str, Callable[[np.ndarray], np.floating]] = {"mean": np.mean, "min": np.min, "max": np.max}

_CONDITION = re.compile(
    r"\s*(?P<metric>[A-Za-z_]\w*)(?:\.(?P<key>[A-Za-z_]\w*(?:\.(?:low|high))?))?(?:@(?P<site>\w+))?"
    r"\s*(?P<comparison>>=|<=|==|!=|>|<)\s*(?P<bound>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, as typed and as parsed; `key` and `site` are "" where none was given."""

    text: str
    metric: str
    key: str
    site: Site | Literal[""]
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """`"similar_blocks.count@weights > 3"` -> its parts.

        Raises:
            InputError: it is not of this form, or the site is none.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise InputError(f"--fail-on {text!r} is not METRIC[.KEY][@SITE] OP NUMBER, as in 'similar_blocks>3'.")
        parts: dict[str, Any] = {name: value or "" for name, value in found.groupdict().items()}
        if parts["site"] not in ("", "weights", "effective"):
            raise InputError(f"--fail-on {text!r}: a site is weights or effective, not {parts['site']!r}.")
        if parts["metric"] in FACTS and (parts["key"] or parts["site"]):
            raise InputError(f"--fail-on {text!r}: {parts['metric']} has neither keys nor sites.")
        if parts["metric"] in NAMES and (parts["site"] or parts["key"] not in ("", *OF_KINDS)):
            raise InputError(f"--fail-on {text!r}: a kind of collapse has no sites, and {', '.join(OF_KINDS)}.")
        return cls(**{**parts, "text": text.strip(), "bound": float(parts["bound"])})

    @property
    def needs(self) -> tuple[str, ...]:
        """The metrics that must be measured."""
        if self.metric in FACTS:
            return ()
        if self.metric == "repetition":
            return ("map_overlap", "map_overlap_matched", "content_overlap", "row_entropy")
        return (kind_named(self.metric).metric if self.metric in NAMES else self.metric,)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a condition on one run: the number it names, None if there is none, and whether it holds."""

    run: str
    condition: Condition
    value: float | None
    holds: bool

    def __str__(self) -> str:
        shown = number(self.value) if self.value is not None else "none"
        return f"{'FAIL' if self.holds else 'pass'}  {self.run}: {self.condition.text}  (is {shown})"


def check(runs: Sequence[Examined], conditions: Sequence[Condition]) -> list[Outcome]:
    """Outcomes of every condition on every run; in a model of several stages the first stage that meets it, else the
    last.

    Raises:
        InputError: a metric was not measured, has no such key, or its number is not known.
    """
    return [_outcome(e, condition) for condition in conditions for e in runs]


def insist(outcomes: Sequence[Outcome]) -> None:
    """Raises GateFailed if a condition holds anywhere."""
    if held := [outcome for outcome in outcomes if outcome.holds]:
        listed = "; ".join(f"{o.run}: {o.condition.text} (is {number(o.value)})" for o in held)
        raise GateFailed(f"{len(held)} of {len(outcomes)} conditions of --fail-on met: {listed}")


def _outcome(e: Examined, condition: Condition) -> Outcome:
    if condition.metric in FACTS:
        known = e.info.get(condition.metric)
        if known is None or not math.isfinite(known):
            raise InputError(f"--fail-on {condition.text!r}: the {condition.metric} of {e.name} is not known.")
        values: list[float | None] = [float(known)]
    elif condition.metric in NAMES:
        values = [_of_kind(e, condition)]
    else:
        values = [_number(e, m, condition) for m in _measurements(e, condition)]
    for value in values:
        if value is not None and COMPARISONS[condition.comparison](value, condition.bound):
            return Outcome(e.name, condition, value, True)
    return Outcome(e.name, condition, values[-1], False)


def _of_kind(e: Examined, condition: Condition) -> float | None:
    finding = next(f for f in findings(e) if f.kind == condition.metric)
    if finding.found == "cannot say":
        raise InputError(f"--fail-on {condition.text!r}: it is not known for {e.name}: {finding.detail}.")
    value = OF_KINDS[condition.key or "blocks"](finding)
    return None if value is None else float(value)


def _measurements(e: Examined, condition: Condition) -> list[Measurement]:
    """The metric in each stage, at the site: without one, on effective attention if it was measured there."""
    if not e.measurements.select(condition.metric):
        known = {m.metric for m in e.measurements.values()} | {*FACTS, *NAMES}
        raise InputError(
            f"--fail-on {condition.text!r}: {condition.metric!r} was not measured on {e.name}."
            f"{did_you_mean(condition.metric, known, 'attnprobe list kinds, attnprobe list metrics')}"
        )
    if condition.site:
        chosen = e.measurements.select(condition.metric, site=condition.site)
    else:
        keys = map(Key.parse, e.measurements)
        chosen = [e.measurements[str(key)] for key in keys if key.metric == condition.metric and not key.site]
    if not chosen:
        raise InputError(f"--fail-on {condition.text!r}: not measured on {e.name} at site {condition.site!r}.")
    return chosen


def _number(e: Examined, m: Measurement, condition: Condition) -> float | None:
    """The number that a condition names; None where the summary has none, such as no first collapsed block."""
    key, _, bound = (condition.key or USUAL_KEY.get(m.metric, "")).partition(".")
    where = f"--fail-on {condition.text!r}: {m.metric} of {e.name}"
    if None in m.summary.get("ratio", ()):
        raise InputError(f"{where} has blocks without a finite value, so it is not known.")
    if m.metric == "similar_blocks" and m.summary["of"] < 2:
        raise InputError(f"{where} is of one block, which has no other to be compared with; it is not known.")
    if key in OVER_CELLS and not bound and key not in m.summary:
        values = m.mean[telling_cells(m)]
        values = values[np.isfinite(values)]
        if not values.size:
            raise InputError(f"{where} has no finite value, so it is not known.")
        return float(OVER_CELLS[key](values))
    if bound:
        interval = m.summary.get(f"{key}_ci") or ()
        if len(interval) != 2 or not all(isinstance(v, int | float) for v in interval):
            raise InputError(f"{where} has no interval of {key!r}: one image, or not a number that has one.")
        return interval[("low", "high").index(bound)]
    if not key:
        named = ", ".join(f"{m.metric}.{name}" for name in sorted(_keys(m)))
        raise InputError(f"{where} is not one number; name one, as in --fail-on {m.metric}.mean>1: {named}.")
    if key in m.summary and m.summary[key] is None:
        return None
    value = m.summary.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} has no number {key!r}.{did_you_mean(key, _keys(m))}")
    return value


def _keys(m: Measurement) -> set[str]:
    return {key for key, v in m.summary.items() if v is None or isinstance(v, int | float)} | set(OVER_CELLS)
