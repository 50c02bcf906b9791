"""Types of heads (local, sink, positional ...), from measured quantities."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from attnprobe.core.errors import InputError
from attnprobe.core.measurement import Key, Measurement
from attnprobe.stats.bootstrap import resampled_means

TYPES = ("dead", "uniform", "class", "sink", "local", "row", "column", "positional", "content", "unknown")

NEEDS = ("row_entropy", "sink_mass", "attention_distance", "own_row_mass", "own_column_mass", "position_share")
"""Metrics that every type rests on; `prefix_mass` and `head_output_norm` count where they were measured."""

REPLICATES = 200
FEW_IMAGES = 16
"""Below this many images, "the same in every image" says little, and heads left to that rule are unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TypeThresholds:
    """The rules, in the order in which they are tried; all ours.

    Attributes:
        dead: `head_output_norm` below this: it adds less than a twentieth of what the mean head of its layer does.
            Needs the value vectors; maps alone cannot show a dead head.
        uniform: exp(`row_entropy`) above this share of the tokens.
        sink: "class": the prefix tokens together get more than this. "sink": one token, whichever, does.
        local: `attention_distance` below this share of that of uniform attention.
        line: "row", "column": more than this stays in the patch's own one.
        positional: `position_share` above this. What is left follows "content".
    """

    dead: float = 0.05
    uniform: float = 0.9
    sink: float = 0.5
    local: float = 0.5
    line: float = 0.5
    positional: float = 0.5


def head_types(measurements: Mapping[str, Measurement], thresholds: TypeThresholds = TypeThresholds()) -> Measurement:
    """Types of the heads of one stage, by their softmax maps.

    Caveat: the first rule that holds decides, so a head that is local and a sink is a sink, and one near a threshold
    changes its type with it.

    Args:
        measurements: as from `measure`, with all of `NEEDS`.
        thresholds: the rules.

    Returns:
        A measurement over (layer, head, type): in how many of the resamples of the images, as a share, the head is of
        that type; 0 or 1 where there is nothing to resample. Its summary holds "types", the type [layer][head] by all
        images, and "counts" of each type.

    Raises:
        InputError: a metric is missing.
    """
    found = {m.metric: m for m in measurements.values() if m.site == "weights"}
    if missing := [name for name in NEEDS if name not in found]:
        raise InputError(f"types of heads need {', '.join(missing)} of the softmax, too: measure all of {NEEDS}.")
    wanted = [found[name] for name in (*NEEDS, "prefix_mass", "head_output_norm") if name in found]
    codes = _types({m.metric: _relative(m, m.mean) for m in wanted}, thresholds, wanted[0].n_images)
    resamples = {m.metric: resampled_means(m, at_most=REPLICATES) for m in wanted}
    known = {name: _relative(found[name], means) for name, means in resamples.items() if means is not None}
    again = _types(known, thresholds, wanted[0].n_images) if len(known) == len(wanted) else codes[None]
    share = np.stack([(again == code).mean(0) for code in range(len(TYPES))], -1)
    names = [[TYPES[code] for code in layer] for layer in codes]
    first, seed = wanted[0], wanted[0].settings["bootstrap_seed"]
    return Measurement(
        metric="head_types",
        site=first.site,
        stage=first.stage,
        is_effective=first.is_effective,
        axes=("layer", "head", "type"),
        value_range=(0.0, 1.0),
        unit="",
        mean=share,
        std=np.full(share.shape, np.nan),
        ci=np.full((2, *share.shape), np.nan),
        n_images=first.n_images,
        n_excluded=max(m.n_excluded for m in wanted),
        settings={**asdict(thresholds), "interval": "none", "bootstrap": len(again), "bootstrap_seed": seed},
        coords={
            **{axis: kept for axis, kept in first.coords.items() if axis in ("layer", "head")},
            "type": list(TYPES),
        },
        summary={
            "types": names,
            "counts": {name: int((codes == code).sum()) for code, name in enumerate(TYPES)},
            "of": int(codes.size),
            "n_images": first.n_images,
        },
        explanation=rules_in_words(),
    )


def rules_in_words() -> str:
    """Definition of `head_types`, and its thresholds."""
    rules = inspect.getdoc(TypeThresholds) or ""
    values = ", ".join(f"{name}={value}" for name, value in asdict(TypeThresholds()).items())
    return f"{inspect.getdoc(head_types)}\n\n{rules}\n{values}"


def atlases(measurements: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """`head_types` of every stage that has all it needs, by the names that `measure` would give them."""
    found = {}
    for stage in dict.fromkeys(m.stage for m in measurements.values()):
        of = {key: m for key, m in measurements.items() if m.stage == stage}
        if set(NEEDS) <= {m.metric for m in of.values() if m.site == "weights"}:
            found[str(Key("head_types", stage))] = head_types(of)
    return found


def _relative(m: Measurement, means: np.ndarray) -> np.ndarray:
    """[..., layer, head]: in units of uniform attention where the rule says so."""
    if m.metric == "prefix_mass":
        return means.sum(-1)
    if m.metric == "row_entropy":
        return np.exp(means - m.baselines["uniform"].mean)
    return means / m.baselines["uniform"].mean if m.metric == "attention_distance" else means


def _types(of: Mapping[str, np.ndarray], t: TypeThresholds, n_images: int) -> np.ndarray:
    """[..., layer, head]: index in `TYPES`; the last rule first, so that an earlier one overrides it."""
    rules: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
        ("positional", "position_share", lambda x: x > t.positional),
        ("column", "own_column_mass", lambda x: x > t.line),
        ("row", "own_row_mass", lambda x: x > t.line),
        ("local", "attention_distance", lambda x: x < t.local),
        ("sink", "sink_mass", lambda x: x > t.sink),
        ("class", "prefix_mass", lambda x: x > t.sink),
        ("uniform", "row_entropy", lambda x: x > t.uniform),
        ("dead", "head_output_norm", lambda x: x < t.dead),
    ]
    codes = np.full(of["row_entropy"].shape, TYPES.index("content"))
    for name, metric, holds in rules:
        if metric not in of:
            continue
        value = of[metric] if metric != "position_share" or n_images >= FEW_IMAGES else np.full(codes.shape, np.nan)
        codes = np.where(holds(value), TYPES.index(name), codes)
        codes = np.where(np.isnan(value), TYPES.index("unknown"), codes)
    return codes
