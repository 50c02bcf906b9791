"""Measurements of several runs under the names that readers know them by, and the settings below a figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import short
from attnprobe.reports.numbers import settings_text


@dataclass(frozen=True, slots=True)
class Series:
    """A measurement under the short name of its run."""

    name: str
    m: Measurement

    @property
    def place(self) -> str:
        return self.m.place


def series_of(runs: Sequence[Examined], metric: str) -> list[Series]:
    """Series of a metric: of every run, at both sites where they differ."""
    return [Series(name, m) for name, e in named(runs) for m in e.measurements.at_sites(metric)]


def named(runs: Sequence[Examined]) -> list[tuple[str, Examined]]:
    """Runs with names that fit a legend; numbered where shortening made them equal."""
    names = [short(e.name) for e in runs]
    return [
        (name if names.count(name) == 1 else f"{i}: {name}", e)
        for i, (name, e) in enumerate(zip(names, runs, strict=True), 1)
    ]


def settings_of(series: Sequence[Series]) -> str:
    """The settings behind a figure, once for all runs that share them."""
    sharing: dict[str, list[str]] = {}
    for s in series:
        twice = [other.name for other in series].count(s.name) > 1
        sharing.setdefault(settings_text(s.m), []).append(f"{s.name} ({s.place})" if twice else s.name)
    if len(sharing) == 1:
        return f"{next(iter(sharing))}."
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in sharing.items()) + "."
