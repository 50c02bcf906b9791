"""Ablation: the accuracy without the blocks and heads that a report calls similar or redundant."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.evidence import TOLERANCE, Change, Evidence, Tried
from attnprobe.core.measurement import Measurement
from attnprobe.core.spec import ImageOptions
from attnprobe.io import fs
from attnprobe.io.progress import progress
from attnprobe.metrics import attention_update, head_ablation, head_importance
from attnprobe.models.ablate import Ablatable
from attnprobe.models.attention_update import attention_updates
from attnprobe.models.parts import Removal
from attnprobe.models.prune import smaller_model
from attnprobe.reports.json_report import evidence_document, measurement_document, plain
from attnprobe.workflows.candidates import (
    Blocks,
    Candidates,
    Drop,
    Heads,
    reported_candidates,
    reported_measurements,
)
from attnprobe.workflows.trial import Trial, logits_of, open_trial

MOST_TRIED = 12
"""Up to so many candidates each step of a curve tries all that are left; beyond, they are removed in the order of their
single costs, since the number of tries grows with the square."""


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
        where: images and device, options of `open_trial`, such as data and images.

    Raises:
        InputError: no maps, maps of another checkpoint, a model of no family that can lose parts, no labelled images,
            or labels of other classes.
    """
    check_choice("what", what, ("block", "attention"))
    if blocks is None and heads is None:
        found, sha256 = reported_measurements(ref, maps, metrics)
        return evidence_of(ref, found, sha256=sha256, what=what, tolerance=tolerance, **where)
    asked = Candidates(blocks or (), heads or (), "blocks and heads as asked for", what)
    return _evidence(ref, asked, tolerance, **where)


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
    seen = next((m.image_ids for m in measurements.values() if m.image_ids and not m.settings.get("group")), ())
    return _evidence(ref, reported_candidates(measurements, what), tolerance, sha256, seen, **where)


def _evidence(
    ref: Path | str | nn.Module,
    candidates: Candidates,
    tolerance: float,
    sha256: str = "",
    seen: Sequence[str] = (),
    **where: Any,
) -> Evidence:
    """The evidence on candidates; `seen`: the images of the maps that named them, if any did."""
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance {tolerance} must be a share of the images, from 0 to 1; 0.02 is two percent.")
    trial = open_trial(ref, **where)
    if sha256 and trial.facts.sha256 and sha256 != trial.facts.sha256:
        raise InputError(f"the maps are of another checkpoint than {ref}: capture {ref} again.")
    few = range(min(4, len(trial.images)))
    pixels = next(iter(trial.images.batches(4, device=trial.device, order=few))).pixels
    ablatable = Ablatable(trial.model.to(trial.device), pixels)
    singles = candidates.singles(ablatable)
    kinds = {"blocks" if candidates.what == "block" else "attention": {candidates.what}, "heads": {"head", "softmax"}}
    tries = [_tries(sum(changes[0].kind in of_curve for changes in singles)) for of_curve in kinds.values()]
    steps = 4 + len(singles) + sum(tries)
    with progress(f"verify {trial.facts.model}", steps) as advance:
        whole = Tried((), *trial.answers(ablatable.module))
        advance(1)

        def ablated(changes: Sequence[Change]) -> Tried:
            outcome = Tried(tuple(changes), *trial.answers(ablatable.module, ablatable.without(changes)))
            advance(1)
            return outcome

        single = tuple(ablated(changes) for changes in singles)
        options = ImageOptions(**where).words  # for the command that is advised
        classes = len(trial.images.class_names)
        name = type(ref).__name__ if isinstance(ref, nn.Module) else str(ref)
        words, about = candidates.words + _of_others(seen, trial), {"options": options, "measure": trial.measure}
        evidence = Evidence(name, words, whole, single, {}, trial.chooses, tolerance, classes, **about)
        for curve, of_curve in kinds.items():
            if alone := [tried for tried in single if tried.changes[0].kind in of_curve]:
                evidence = replace(evidence, curves={**evidence.curves, curve: _curve(alone, evidence, ablated)})
        evidence = _with_advice(evidence, trial, ablatable)
        advance(1)
        updates = [attention_updates(ablatable, pixels).cpu() for pixels, _ in trial.labelled()]
        found = {"attention_update": attention_update(torch.cat(updates).numpy(), trial.ids)}
        advance(1)
        if trial.has_head:  # neighbours have no gradient
            found["head_importance"] = head_importance(_gate_gradients(trial, ablatable), trial.ids)
        advance(1)
    if candidates.heads == "all":
        found["head_ablation"] = head_ablation(_losses_gained(evidence, ablatable), trial.ids)
    return replace(evidence, importance=found)


def _of_others(seen: Sequence[str], trial: Trial) -> str:
    """Clause if what is similar was seen on other images than these; else empty."""
    missing = set(seen) - set(trial.ids)
    if not missing:
        return ""
    if len(missing) == len(set(seen)):
        return f", on other images than these: {min(seen)} and others, here {min(trial.ids)} and others"
    return (
        f", on {len(set(seen))} images, {len(missing)} of which {'is' if len(missing) == 1 else 'are'} not among these"
    )


def _curve(
    alone: Sequence[Tried], evidence: Evidence, ablated: Callable[[Sequence[Change]], Tried]
) -> tuple[Tried, ...]:
    """The candidates removed cumulatively, cheapest first on the images that choose; see `MOST_TRIED`."""
    cost = evidence.cost_choosing
    first, *rest = sorted(alone, key=cost)
    curve, left = [first], [tried.changes for tried in rest]
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
        kept: dict[int, list[int]] = {}
        for block, head in tried.heads:
            kept.setdefault(block, []).append(head)
        removal = Removal(tried.blocks, tried.attention, kept)
        try:  # `prune` would do the same
            smaller_model(trial.model, removal, trial.facts.model, trial.facts.options)
        except InputError as error:
            refusal = refusal or str(error)
        else:
            return replace(evidence, advised=tried, refusal=refusal)
    return replace(evidence, refusal=refusal)


def _gate_gradients(trial: Trial, ablatable: Ablatable) -> np.ndarray:
    """[image, block, head]: dL/dg of a gate g = 1 on each head's output; NaN beyond a block's heads."""
    found = []
    for pixels, labels in trial.labelled():
        gates = [torch.ones(len(labels), n, device=trial.device, requires_grad=True) for n in ablatable.heads]
        with ablatable.gated(gates):
            logits = logits_of(ablatable.module, pixels, len(trial.images.class_names))
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
    texts = {"drops.csv": to_csv(evidence.table()), "drops.json": json.dumps(document, indent=1) + "\n"}
    with fs.as_work_error(f"writing what dropping costs into {out}"):
        fs.make_folder(out)
        for name, text in texts.items():
            fs.write_file(out / name, text.encode(), overwrite=True)
    return [out / name for name in texts]
