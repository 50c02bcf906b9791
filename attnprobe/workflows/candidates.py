"""Candidates for ablation: blocks and heads that a report calls similar or redundant, or that the user names."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from attnprobe.core.errors import InputError, option
from attnprobe.core.evidence import Change
from attnprobe.core.measurement import Measurement, Measurements
from attnprobe.io.run import Run
from attnprobe.metrics import measure
from attnprobe.models.ablate import Ablatable
from attnprobe.reports.kinds import OTHER_BARS
from attnprobe.reports.removal import ALL_PARTS, redundant_heads, verify_command
from attnprobe.store import MapReader, open_maps

METRICS = ("similar_blocks", "head_divergence")
"""Metrics by which a report calls blocks similar and heads redundant."""

Blocks = Sequence[int]
Heads = Sequence[tuple[int, int]]
Drop = Literal["block", "attention"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Parts to ablate, counted from 1.

    Attributes:
        blocks, heads: numbers, and (block, head), or "all".
        words: their origin.
        what: what is dropped cumulatively, whole blocks or their attention.
        reported: a report named them, so those that cannot be ablated are left out; else they are an error.
    """

    blocks: Blocks | str
    heads: Heads | str
    words: str
    what: Drop = "block"
    reported: bool = False

    def singles(self, ablatable: Ablatable) -> list[tuple[Change, ...]]:
        """Ablations to try alone; without "map" for a block that cannot use the previous block's map, as the first.

        Raises:
            InputError: a part named by number cannot be ablated.
        """
        blocks = range(1, len(ablatable.heads) + 1) if self.blocks == "all" else _numbers(self.blocks)
        if self.blocks == "all":
            blocks = [block for block in blocks if not ablatable.refusal(Change("block", block))]
        partnerless = self.blocks == "all" or self.reported or self.what == "attention"  # these need no partner
        ends = {group[-1]: group for group in ablatable.units(blocks, every=partnerless)}
        singles: list[tuple[Change, ...]] = []
        for block in blocks:
            alone = (Change("map", block), Change("attention", block))
            singles += [(change,) for change in alone if not ablatable.refusal(change)]
            if block in ends:
                singles.append(tuple(Change("block", dropped) for dropped in ends[block]))
        every = ((block, head) for block, n in enumerate(ablatable.heads, 1) for head in range(1, n + 1))
        for number in every if self.heads == "all" else _numbers(self.heads):
            change = ablatable.head(*number)
            if not ((self.heads == "all" or self.reported) and ablatable.refusal(change)):
                singles.append((change,))
        for changes in singles:
            for change in changes:
                ablatable.check(change)
        return singles


def _numbers(named: Any) -> list[Any]:
    """Blocks or heads named by number, each once."""
    if isinstance(named, str):
        raise InputError(f"{named!r} must be 'all', or numbers counted from 1.")
    return list(dict.fromkeys(named))


def reported_measurements(
    ref: Path | str | nn.Module, maps: Path | None, metrics: Sequence[str]
) -> tuple[Measurements, str]:
    """`METRICS` on the maps that say what is similar, with the settings given, and the hash of their checkpoint.

    Args:
        maps: the maps file; the run's own if None.
        metrics: settings of the two metrics, as for `examine`.

    Raises:
        InputError: no maps, or another metric.
    """
    if isinstance(ref, nn.Module) and maps is None:
        raise InputError("a model alone has no maps that say what is similar: name maps, blocks or heads.")
    path = maps or _maps_of_run(str(ref))
    if not path.exists():
        raise InputError(f"no maps at {path} that say what is similar: {_make_some(ref, path)}.")
    named = {metric.partition(":")[0] for metric in metrics}
    if odd := named - {*METRICS}:
        takes = f"{option('metric', python='metrics')} takes {' and '.join(METRICS)}"
        raise InputError(f"{odd.pop()!r} does not say what could be removed; {takes}.")
    reader = open_maps(path)
    if _kept_in_part(reader):
        raise InputError(
            f"{path} holds some of the layers or heads alone, so it does not say which parts of the network are "
            f"similar: name {option('blocks')} and {option('heads')}, or all."
        )
    found = measure(reader, [*metrics, *(m for m in METRICS if m not in named)], bootstrap=0)
    return found, reader.attrs.get("checkpoint_sha256", "")


def _make_some(ref: Path | str | nn.Module, path: Path | str) -> str:
    """How maps that say what is similar are made and named, and what does without them."""
    words = "attnprobe capture MODEL" if isinstance(ref, nn.Module) else shlex.join(["attnprobe", "capture", str(ref)])
    data = "" if isinstance(ref, nn.Module) or Run.of(ref).config.exists() else " --data FOLDER"
    named = (
        f"{option('maps', path)} and labelled images with {option('data', 'FOLDER')}" if data else option("maps", path)
    )
    every = option("blocks", "all")
    return f"make some with `{words}{data} -o {path}` and name {named}, or try {every}, which needs no maps"


def _kept_in_part(reader: MapReader) -> bool:
    """True if not all layers and heads were kept."""
    part = reader.maps(site=reader.sites()[0], images=slice(0, 1)).part
    return part.layers is not None or part.heads is not None


def command_of_maps(path: Path) -> str:
    """The command that measures the accuracy without what a maps file calls similar; of parts of a network without
    anything that it could."""
    if not path.exists():
        return verify_command(path, {})
    reader = open_maps(path)
    parts = ALL_PARTS if _kept_in_part(reader) or len(reader.stages) > 1 else ()
    return verify_command(path, reader.attrs.get("config", {}), parts)


def _maps_of_run(ref: str) -> Path:
    """The maps file of a run, made or not.

    Raises:
        InputError: `ref` is maps without a model, or a model that is no run and has none.
    """
    run = Run.of(ref)
    if Path(ref).suffix in (".h5", ".parts"):
        raise InputError(f"{ref} holds maps, not a model: {command_of_maps(Path(ref))}.")
    if not run.config.exists():
        raise InputError(f"{ref} is no run, so no maps say what is similar: {_make_some(ref, 'maps.h5')}.")
    return run.maps


def reported_candidates(measurements: Mapping[str, Measurement], what: Drop) -> Candidates:
    """The blocks and heads that these measurements call similar and redundant.

    Raises:
        InputError: they are of several stages, or neither of the two metrics was measured.
    """
    measurements = Measurements(measurements)
    if len(stages := {m.stage for m in measurements.values() if m.metric in METRICS}) > 1:
        raise InputError(
            f"blocks differ in heads or tokens, so they were measured as {len(stages)} stages ({', '.join(stages)}), "
            f"and not all are compared with the previous one: name {option('blocks')} and {option('heads')}, or all."
        )
    similar = measurements.get("similar_blocks", site="effective")
    divergence = measurements.get("head_divergence", site="weights")
    if similar is None and divergence is None:
        raise InputError("nothing says what could be removed: measure similar_blocks or head_divergence of the maps.")
    blocks = [] if similar is None else [n for n in similar.summary["similar"] if n > 1]  # the first has no predecessor
    heads = [] if divergence is None else list(redundant_heads(divergence))
    n_blocks, n_heads = (
        f"{len(found)} {word}{'s' if len(found) != 1 else ''}" for found, word in ((blocks, "block"), (heads, "head"))
    )
    return Candidates(
        blocks, heads, f"the report calls {n_blocks} similar and {n_heads} redundant, {OTHER_BARS}", what, True
    )
