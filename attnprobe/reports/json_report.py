"""The whole report for programs: strict JSON, NaN and infinities as null, names as they are."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from attnprobe.core.evidence import Evidence
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import one_run_each
from attnprobe.reports.removal import advice
from attnprobe.reports.verdict import verdict

SCHEMA_VERSION = 2
"""Rises when a key changes its meaning or goes; new keys do not count. 2: a verdict's "status" has other words, and it
has "findings"."""


SCHEMA = Path(__file__).parent / "templates" / "report.schema.json"
"""JSON Schema of every report; `attnprobe schema` prints it."""


def to_json(runs: Sequence[Examined]) -> str:
    """{"format", "schema_version", "notes", "runs": [{name, verdict, info, layers, measurements, ...}]}.

    Arrays are nested lists over the axes named in "axes"; blocks and heads in words count from 1.
    """
    document = {
        "format": "attnprobe report",
        "schema_version": SCHEMA_VERSION,
        "notes": [one_run_each(len(runs))] if len(runs) > 1 else [],
        "runs": [_run(e) for e in runs],
    }
    return json.dumps(plain(document), allow_nan=False, separators=(",", ":")) + "\n"


def _run(e: Examined) -> dict[str, Any]:
    return {
        "name": e.name,
        "verdict": asdict(verdict(e)),
        "info": e.info,
        "certificate": e.certificate,
        "notes": e.notes,
        "layers": e.layers,
        "grid": asdict(e.grid),
        "measurements": {key: measurement_document(m) for key, m in e.measurements.items()},
        "precision": {key: asdict(p) for key, p in e.precision.items()},
        "evidence": None if e.evidence is None else evidence_document(e.evidence),
        "history": None if e.history is None else asdict(e.history),
    }


def measurement_document(m: Measurement) -> dict[str, Any]:
    """A measurement as a dictionary: its numbers and everything that changes them."""
    about = ("metric", "site", "stage", "is_effective", "axes", "coords", "unit", "value_range", "settings", "summary")
    values = ("n_images", "n_grouped", "copies", "n_excluded", "mean", "std", "ci")
    return {
        **{name: getattr(m, name) for name in (*about, *values)},
        "baselines": {
            name: {"mean": b.mean, "n_images": b.n_images, "summary": b.summary} for name, b in m.baselines.items()
        },
    }


def evidence_document(evidence: Evidence) -> dict[str, Any]:
    """Evidence as a dictionary: what was removed, what that cost, and the advice."""
    advised, cost = evidence.advised, None
    if advised is not None:
        row, names = evidence.row(advised), ("accuracy", "gained", "gained_low", "gained_high", "loss_gained")
        parts = {"blocks": advised.blocks, "attention": advised.attention, "heads": advised.heads}
        cost = {**parts, **{name: row[name] for name in names}}
    return {
        "ref": evidence.ref,
        "candidates": evidence.candidates,
        "measure": evidence.measure,
        "accuracy": evidence.row(evidence.whole)["accuracy"],
        "n_images": evidence.n_judging,
        "n_choosing": evidence.n_choosing,
        "tolerance": evidence.tolerance,
        "advised": cost,
        "advice": advice(evidence),
        "tries": evidence.rows(),
    }


def plain(value: Any) -> Any:
    """A value in JSON's own types; numbers that are not finite become None, unknown objects their text."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    return str(value)
