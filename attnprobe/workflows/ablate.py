"""Ablation: the accuracy without the blocks and heads that a report calls similar or redundant."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.evidence import TOLERANCE, Change, Evidence, Tried
from attnprobe.core.measurement import Measurement, Measurements
from attnprobe.io import fs
from attnprobe.io.progress import progress
from attnprobe.io.run import Run
from attnprobe.metrics import attention_update, head_ablation, head_importance, measure
from attnprobe.models.ablate import Ablatable
from attnprobe.models.attention_update import attention_updates
from attnprobe.models.parts import Removal
from attnprobe.models.prune import smaller_model
from attnprobe.reports.json_report import evidence_document, measurement_document, plain
from attnprobe.store import open_maps
from attnprobe.workflows.trial import Trial, logits_of, open_trial

METRICS = ("similar_blocks", "head_divergence")
"""Metrics by which a report calls blocks similar and heads redundant."""

OPTIONS = {
    "architecture": "--model", "data": "--data", "data_dir": "--data-dir", "split": "--split", "images": "--images",
}  # fmt: skip
"""Options of `open_trial` by their names on the command line, for the command that is advised."""

MOST_TRIED = 12
"""Up to so many candidates each step of a curve tries all that are left; beyond, they are removed in the order of their
single costs, since the number of tries grows with the square."""

Blocks = Sequence[int]
Heads = Sequence[tuple[int, int]]
Drop = Literal["block", "attention"]


def verify_drops(
    ref: Path | str | nn.Module,
    *,
    maps: Path | None = None,
    blocks: Blocks | str | None = None,
    heads: Heads | str | None = None,
    metrics: Sequence[str] = (),
    what: Drop = "block",
    tolerance: float = TOLERANCE,
    **where: Any,
) -> Evidence:
    """Ablate every block and head the report calls similar or redundant, singly and cumulatively; measure accuracy.

    The order and the advice are chosen on some images, and every number is of others: see `open_trial`.

    Similar blocks are those of `similar_blocks` on effective attention; redundant heads all but the first of each group
    of `head_divergence`, as in the report. Where a variant mixes heads after the softmax, a head is its softmax map.

    Args:
        ref: a run, a checkpoint, the name of a model, or a model.
        maps: the maps file that says what is similar; the run's own if None.
        blocks: other candidates than the report's, from 1, such as blocks that are not similar, for comparison, or
            "all"; then no maps are needed.
        heads: the same of heads, as (block, head). With all heads the evidence has `head_ablation`, too.
        metrics: settings of the two metrics, as for `examine`.
        what: whether whole blocks are dropped cumulatively and advised, or their attention alone, which leaves the
            MLPs. Both are tried singly.
        tolerance: accuracy loss, as a fraction, that the advice accepts; a larger one must be excluded by the 95 %
            interval.
        where: images and device, options of `open_trial`: architecture (name of the model of a checkpoint file), data,
            data_dir, split ("val" or "train"), images (a class-balanced subset of so many), device, batch_size.

    Raises:
        InputError: no maps, maps of another checkpoint, a model of no family that can lose parts, no labelled images,
            or labels of other classes.
    """
    check_choice("--what", what, ("block", "attention"))
    if blocks is None and heads is None:
        if isinstance(ref, nn.Module) and maps is None:
            raise InputError("a model alone has no maps that say what is similar: name maps, blocks or heads.")
        path = maps or _maps_of_run(str(ref))
        if not path.exists():
            raise InputError(f"no maps at {path} that say what is similar: capture them, or name --blocks and --heads.")
        named = {metric.partition(":")[0] for metric in metrics}
        if odd := named - {*METRICS}:
            raise InputError(
                f"{odd.pop()!r} does not say what could be removed; --metric takes {' and '.join(METRICS)}."
            )
        wanted = [*metrics, *(m for m in METRICS if m not in named)]
        reader = open_maps(path)
        sha = reader.attrs.get("checkpoint_sha256", "")
        found = measure(reader, wanted, bootstrap=0)
        return evidence_of(ref, found, sha256=sha, what=what, tolerance=tolerance, **where)
    asked = _Candidates(blocks or (), heads or (), "blocks and heads as asked for", what)
    return _evidence(ref, asked, tolerance, **where)


def _maps_of_run(ref: str) -> Path:
    """The maps file of a run, made or not.

    Raises:
        InputError: `ref` is maps without a model, or a model that is no run and has none.
    """
    run, beside = Run.of(ref), Run(Path(ref).parent)
    if Path(ref).suffix in (".h5", ".parts"):
        whole = beside.path if beside.config.exists() else f"MODEL --maps {ref}"
        raise InputError(f"{ref} holds maps, not a model: attnprobe verify-drops {whole}.")
    if not run.config.exists():
        raise InputError(f"{ref} is no run, so nothing says what is similar: name --maps, or --blocks and --heads.")
    return run.maps


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Parts to ablate, their origin in words, and whether a report called them so; refused heads are left out."""

    blocks: Blocks | str
    heads: Heads | str
    words: str
    what: Drop = "block"
    reported: bool = False


def evidence_of(
    ref: Path | str | nn.Module,
    measurements: Mapping[str, Measurement],
    *,
    sha256: str = "",
    what: Drop = "block",
    tolerance: float = TOLERANCE,
    **where: Any,
) -> Evidence:
    """`verify_drops` for the blocks and heads that these measurements of the model `ref` call similar and redundant.

    Args:
        sha256: hash of the checkpoint that was measured; "" if it is not known.
        where: as for `verify_drops`.
    """
    measurements = Measurements(measurements)
    if len(stages := {m.stage for m in measurements.values() if m.metric in METRICS}) > 1:
        raise InputError(
            f"blocks differ in heads or tokens, so they were measured as {len(stages)} stages ({', '.join(stages)}), "
            "and not all are compared with the previous one: name --blocks and --heads, or all."
        )
    similar = measurements.get("similar_blocks", site="effective")
    divergence = measurements.get("head_divergence", site="weights")
    if similar is None and divergence is None:
        raise InputError("nothing says what could be removed: measure similar_blocks or head_divergence of the maps.")
    blocks = [] if similar is None else [n for n in similar.summary["similar"] if n > 1]  # the first has no predecessor
    heads = [] if divergence is None else list(_redundant(divergence))
    counted = [
        f"{len(found)} {word}{'s' if len(found) != 1 else ''}" for found, word in ((blocks, "block"), (heads, "head"))
    ]
    candidates = f"the report calls {counted[0]} similar and {counted[1]} redundant"
    return _evidence(ref, _Candidates(blocks, heads, candidates, what, True), tolerance, sha256, **where)


def _redundant(m: Measurement) -> Iterator[tuple[int, int]]:
    """All but the first head of each group."""
    layers = m.coords.get("layer", range(1, len(m.mean) + 1))
    for layer, groups in zip(layers, m.summary.get("clusters", ()), strict=False):
        yield from ((layer, head) for group in groups for head in sorted(group)[1:])


def _evidence(
    ref: Path | str | nn.Module, candidates: _Candidates, tolerance: float, sha256: str = "", **where: Any
) -> Evidence:
    if not 0 <= tolerance < 1:
        raise InputError(f"--tolerance {tolerance} must be a share of the images, from 0 to 1; 0.02 is two percent.")
    trial = open_trial(ref, **where)
    if sha256 and trial.facts.sha256 and sha256 != trial.facts.sha256:
        raise InputError(f"the maps are of another checkpoint than {ref}: capture {ref} again.")
    few = range(min(4, len(trial.images)))
    pixels = next(iter(trial.images.batches(4, device=trial.device, order=few))).pixels
    ablatable = Ablatable(trial.model.to(trial.device), pixels)
    blocks, heads = candidates.blocks, candidates.heads
    some = blocks == "all" or candidates.reported or candidates.what == "attention"  # not all need a partner
    if blocks == "all":
        numbers = range(1, len(ablatable.heads) + 1)
        blocks = [number for number in numbers if not ablatable.refusal(Change("block", number))]
    blocks, every = _listed(blocks), heads == "all"
    groups = ablatable.units(blocks, every=some)
    heads = [(b, h) for b, n in enumerate(ablatable.heads, 1) for h in range(1, n + 1)] if every else _listed(heads)
    if every or candidates.reported:  # heads named by number are refused with a reason, below
        heads = [(b, h) for b, h in heads if not ablatable.refusal(ablatable.head(b, h))]
    singles = list(_singles(ablatable, blocks, groups, heads))
    for change in chain.from_iterable(singles):
        ablatable.check(change)
    dropped = sum(changes[0].kind == candidates.what for changes in singles)
    steps = 4 + len(singles) + _tries(dropped) + _tries(len(heads))
    with progress(f"verify {trial.facts.model}", steps) as advance:
        whole = Tried((), *trial.answers(ablatable.module))
        advance(1)

        def ablated(changes: Sequence[Change]) -> Tried:
            outcome = Tried(tuple(changes), *trial.answers(ablatable.module, ablatable.without(changes)))
            advance(1)
            return outcome

        single = tuple(ablated(changes) for changes in singles)
        named = {**where, "split": where.get("split") if where.get("split") != "val" else None}
        options = tuple(
            word for name, option in OPTIONS.items() if named.get(name) for word in (option, str(named[name]))
        )
        classes = len(trial.images.class_names)
        name = type(ref).__name__ if isinstance(ref, nn.Module) else str(ref)
        evidence = Evidence(
            name, candidates.words, whole, single, {}, trial.chooses, tolerance, classes, options, measure=trial.measure
        )
        drop = {"block": ("blocks", ("block",)), "attention": ("attention", ("attention",))}[candidates.what]
        curves = {
            name: _curve([tried for tried in single if tried.changes[0].kind in kinds], evidence, ablated)
            for name, kinds in (drop, ("heads", ("head", "softmax")))
        }
        evidence = replace(evidence, curves={name: curve for name, curve in curves.items() if curve})
        evidence = _with_advice(evidence, trial, ablatable)
        advance(1)
        updates = [attention_updates(ablatable, pixels).cpu() for pixels, _ in trial.labelled()]
        found = {"attention_update": attention_update(torch.cat(updates).numpy(), trial.ids)}
        advance(1)
        if trial.has_head:  # neighbours have no gradient
            found["head_importance"] = head_importance(_gate_gradients(trial, ablatable), trial.ids)
        advance(1)
    if every:
        found["head_ablation"] = head_ablation(_losses_gained(evidence, ablatable), trial.ids)
    return replace(evidence, importance=found)


def _listed(asked: Any) -> list[Any]:
    if isinstance(asked, str):
        raise InputError(f"{asked!r} must be 'all', or numbers counted from 1.")
    return list(dict.fromkeys(asked))


def _singles(
    ablatable: Ablatable, blocks: Blocks, groups: Sequence[Blocks], heads: Heads
) -> Iterator[tuple[Change, ...]]:
    """Ablations tried alone; without "map" for a block that cannot use the previous block's map, as the first.

    Args:
        groups: blocks that are dropped together.
    """
    ends = {group[-1]: group for group in groups}
    for block in blocks:
        alone = (Change("map", block), Change("attention", block))
        yield from ((change,) for change in alone if not ablatable.refusal(change))
        if block in ends:
            yield tuple(Change("block", dropped) for dropped in ends[block])
    yield from ((ablatable.head(block, head),) for block, head in heads)


def _curve(
    alone: Sequence[Tried], evidence: Evidence, ablated: Callable[[Sequence[Change]], Tried]
) -> tuple[Tried, ...]:
    """The candidates removed cumulatively, cheapest first on the images that choose; see `MOST_TRIED`."""
    cost = evidence.cost_choosing
    left = [tried.changes for tried in sorted(alone, key=cost)]
    if not left:
        return ()
    curve = [min(alone, key=cost)]
    left.remove(curve[0].changes)
    while left:
        tried = left if len(alone) <= MOST_TRIED else left[:1]
        before = curve[-1].changes
        best = min((ablated([*before, *changes]) for changes in tried), key=cost)
        curve.append(best)
        left.remove(best.changes[len(before) :])
    return tuple(curve)


def _tries(n: int) -> int:
    """Number of tries for a curve of `n` candidates, beyond each alone."""
    return n * (n - 1) // 2 if n <= MOST_TRIED else max(n - 1, 0)


def _with_advice(evidence: Evidence, trial: Trial, ablatable: Ablatable) -> Evidence:
    """The evidence with what is harmless together and can be pruned: blocks and heads, or else blocks, or else
    heads."""
    free = [evidence.free("attention" if "attention" in evidence.curves else "blocks"), evidence.free("heads")]
    blocks, heads = ([] if tried is None else list(tried.changes) for tried in free)
    dropped = {change.block for change in blocks}
    mixed = [change.block for change in heads if change.kind == "softmax"]
    heads = [change for change in heads if change.kind == "head" and change.block not in dropped]
    refusal = f"heads of block {mixed[0]} are mixed after the softmax, so none can be removed alone" if mixed else ""
    for changes in filter(None, dict.fromkeys((tuple(blocks + heads), tuple(blocks), tuple(heads)))):
        tried = Tried(changes, *trial.answers(ablatable.module, ablatable.without(changes)))
        if not evidence.harmless(tried):
            continue
        try:
            _check_prunable(trial, tried)
        except InputError as error:
            refusal = refusal or str(error)
        else:
            return replace(evidence, advised=tried, refusal=refusal)
    return replace(evidence, refusal=refusal)


def _check_prunable(trial: Trial, tried: Tried) -> None:
    """Raises InputError if `prune` would."""
    heads: dict[int, list[int]] = {}
    for block, head in tried.heads:
        heads.setdefault(block, []).append(head)
    removal = Removal(tried.blocks, tried.attention, heads)
    smaller_model(trial.model, removal, trial.facts.model, trial.facts.options)


def _gate_gradients(trial: Trial, ablatable: Ablatable) -> np.ndarray:
    """[image, block, head]: dL/dg of a gate g = 1 on each head's output; NaN beyond a block's heads."""
    found = []
    for pixels, labels in trial.labelled():
        gates = [torch.ones(len(labels), n, device=trial.device, requires_grad=True) for n in ablatable.heads]
        with ablatable.gated(gates):
            logits = logits_of(ablatable.module, pixels).float()
            some = [gate for gate in gates if gate.shape[1]]  # of a block without attention there is nothing to derive
            F.cross_entropy(logits, labels, reduction="sum").backward(inputs=some)
        widest = max(ablatable.heads)
        grads = [gate if gate.grad is None else gate.grad for gate in gates]
        padded = [F.pad(grad.detach(), (0, widest - grad.shape[1]), value=torch.nan) for grad in grads]
        found.append(torch.stack(padded, 1).cpu())
    return torch.cat(found).numpy()


def _losses_gained(evidence: Evidence, ablatable: Ablatable) -> np.ndarray:
    """[image, block, head], nats, of heads silenced alone; NaN beyond a block's heads."""
    gained = np.full((len(evidence.whole.loss), len(ablatable.heads), max(ablatable.heads)), np.nan)
    for tried in evidence.single:
        for block, head in tried.heads:
            gained[:, block - 1, head - 1] = tried.loss - evidence.whole.loss
    return gained


def write_evidence(evidence: Evidence, out: Path) -> list[Path]:
    """Write drops.csv and drops.json into a folder, which is made.

    Raises:
        WorkError: they cannot be written.
    """
    from attnprobe.reports.tables import to_csv  # imports pandas, which takes half a second

    importance = {name: measurement_document(m) for name, m in evidence.importance.items()}
    document = plain({"format": "attnprobe drops", **evidence_document(evidence), "importance": importance})
    texts = (
        ("drops.csv", to_csv(evidence.table())),
        ("drops.json", json.dumps(document, indent=1) + "\n"),
    )
    with fs.as_work_error(f"writing what dropping costs into {out}"):
        fs.make_folder(out)
        for name, text in texts:
            fs.write_file(out / name, text.encode(), overwrite=True)
    return [out / name for name, _ in texts]
