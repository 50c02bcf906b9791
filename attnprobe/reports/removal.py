"""Evidence in a report: what removing blocks and heads costs, in sentences, a table and curves, and what to do."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from attnprobe.core.errors import option
from attnprobe.core.evidence import Change, Evidence, Tried
from attnprobe.core.measurement import Measurement
from attnprobe.core.spec import PREPARATION, ImageOptions
from attnprobe.core.text import blocks_text, visible
from attnprobe.io.run import Run
from attnprobe.plots import removal_curve
from attnprobe.reports.drawing import Drawing, as_svg, canvas
from attnprobe.reports.numbers import number

ALL_PARTS = ("--blocks", "all", "--heads", "all")
"""Options that try every part, where maps do not say of the whole network what is similar."""


def verify_command(path: Path | None, config: Mapping[str, Any], parts: Sequence[str] = ()) -> str:
    """The command that measures the accuracy without what these maps call similar: with the model's name and images.

    Args:
        path: of the maps file; None where nothing but measurements was kept.
        config: its description of the capture.
        parts: options that name blocks and heads instead, as `parts_options` does; empty for those the maps tell.
    """
    named, images, prepared = (
        part if isinstance(part := config.get(name), Mapping) else {} for name in ("named", "images", "preparation")
    )
    options: dict[str, Any] = {name: prepared.get(name) for name in PREPARATION}
    if path is not None and Run(path.parent).config.exists():  # a run knows its model and images
        model, maps = str(path.parent), []
    else:
        model, maps = named.get("model") or "MODEL", [] if parts or path is None else ["--maps", str(path)]
        options |= {"architecture": named.get("architecture") or None, "data": images.get("data") or "DATA"}
        options |= {"data_dir": images.get("data_dir") or None}
    words = ["attnprobe", "verify-drops", model, *maps, *parts, *ImageOptions(**options).words]
    return shlex.join(visible(str(word)) for word in words)


MOST_NAMED = 24
"""Heads that a command names; of more it tries all."""


def parts_options(similar: Sequence[Measurement], divergence: Sequence[Measurement]) -> list[str]:
    """Options that name the similar blocks and redundant heads of all stages, by their numbers in the network."""
    blocks = sorted(n for m in similar for n in m.summary.get("similar", ()) if n > 1)
    heads = [f"{block}:{head}" for block, head in sorted(pair for m in divergence for pair in redundant_heads(m))]
    words = ["--blocks", ",".join(map(str, blocks))] if blocks else []
    return words + (["--heads", ",".join(heads) if len(heads) <= MOST_NAMED else "all"] if heads else [])


def redundant_heads(m: Measurement) -> Iterator[tuple[int, int]]:
    """All but the first head of each group of a measured `head_divergence`, as (block, head)."""
    kept = m.coords.get("head", range(1, m.mean.shape[-1] + 1))
    for layer, groups in zip(m.block_numbers, m.summary.get("clusters", ()), strict=False):
        yield from ((layer, kept[head - 1]) for group in groups for head in sorted(group)[1:])


def evidence_text(evidence: Evidence) -> str:
    """Everything that was measured, a line per ablation, and the advice; for a terminal."""
    lines = [evidence.candidates, accuracy_text(evidence), *_update_lines(evidence)]
    if evidence.single:
        lines.append("each alone, blocks then heads: accuracy, and what it changes by (95 % intervals):")
    single = ((_words(tried.changes), _cells(evidence, tried)) for tried in evidence.single)
    for cells, alike in groupby(single, key=lambda words_and_cells: words_and_cells[1]):
        lines.append(f"  {'; '.join(words for words, _ in alike)}: {cells}")  # of few images many cost the same
    if better := [tried for tried in evidence.single if evidence.gained(tried)[1] > 0]:
        words = "; ".join(_words(tried.changes) for tried in better)
        n = len(evidence.single)
        chance = f"of {n} tried, {max(1, round(0.025 * n))} would seem so by chance"
        lines.append(f"the model is better when changed so: {words} (each alone, by more than its interval; {chance})")
    for name, curve in evidence.curves.items():
        lines.append(f"{name} removed cumulatively, the cheapest first:")
        ends = [0, *(len(tried.changes) for tried in curve)]
        steps = (
            (n, tried.changes[before:], _cells(evidence, tried))
            for before, n, tried in zip(ends[:-1], ends[1:], curve, strict=True)
        )
        for cells, alike in groupby(steps, key=lambda step: step[2]):
            together = [(n, _words(changes)) for n, changes, _ in alike]
            (first, _), (last, _) = together[0], together[-1]
            count = f"{first}–{last}" if last > first else f"{first}"
            lines.append(f"  {count}: {'; '.join(words for _, words in together)}: {cells}")
    return "\n".join([*lines, f"advice: {advice(evidence)}"])


def _update_lines(evidence: Evidence) -> list[str]:
    """By how much the attention of each block turns the tokens, the smallest first; for comparison with the tries."""
    m = evidence.importance.get("attention_update")
    if m is None or not np.isfinite(m.mean).any():
        return []
    order = [int(i) for i in np.argsort(m.mean) if np.isfinite(m.mean[i])]
    listed = ", ".join(f"block {i + 1} {number(float(m.mean[i]))}" for i in order)
    return [f"1 - cos(x, x + attention(x)), the smallest first: {listed}"]


def accuracy_text(evidence: Evidence) -> str:
    """`whole model: top-1 95.00% (92.29%–96.79%, 400 images that judge; 400 others chose)`."""
    row = evidence.row(evidence.whole)
    return (
        f"whole model: {measure_text(evidence.measure)} {row['accuracy']:.2%} ({row['low']:.2%}–{row['high']:.2%}, "
        f"{evidence.n_judging} images that judge; {evidence.n_choosing} others chose)"
    )


def measure_text(measure: str) -> str:
    """`top-1`; or what the accuracy is of a model that has no head."""
    return measure if measure == "top-1" else f"k-NN accuracy of features ({measure} among the images that choose)"


def cost_text(evidence: Evidence, tried: Tried) -> str:
    """`-0.28% (-1.50% to +0.95%)`: the accuracy gained."""
    gained, low, high = evidence.gained(tried)
    return f"{gained:+.2%} ({low:+.2%} to {high:+.2%})"


def parts_text(tried: Tried) -> str:
    """`blocks 5–7 and 2 heads`."""
    parts = [blocks_text(tried.blocks)] if tried.blocks else []
    parts += [f"the attention of {blocks_text(tried.attention)}"] if tried.attention else []
    parts += [_heads_text(tried.heads)] if tried.heads else []
    return " and ".join(parts)


def advice(evidence: Evidence) -> str:
    """Sentence on what to remove, with the command that does it."""
    advised = evidence.advised
    if advised is None:
        return _no_advice(evidence)
    words = ["attnprobe", "prune", evidence.ref, *evidence.options]
    words += ["--blocks", ",".join(map(str, advised.blocks))] if advised.blocks else []
    words += ["--attention", ",".join(map(str, advised.attention))] if advised.attention else []
    words += ["--heads", ",".join(f"{block}:{head}" for block, head in advised.heads)] if advised.heads else []
    command = shlex.join([*words, "-o", f"{_folder_of(evidence.ref)}-smaller"])
    unconfirmed = f", which do not exclude a loss of more than {evidence.tolerance:.1%}"
    measured = (
        f"chosen on {evidence.n_choosing} images, measured on {evidence.n_judging} others"
        f"{'' if evidence.confirmed(advised) else unconfirmed}"
    )
    left = f"; {evidence.refusal}" if evidence.refusal else ""
    return f"without {parts_text(advised)} accuracy {cost_text(evidence, advised)}, {measured}{left}: {command}"


def _no_advice(evidence: Evidence) -> str:
    n, right = evidence.n_choosing, int(evidence.whole.right[evidence.chooses].sum())
    if not evidence.single:
        return "nothing was tried"
    if evidence.near_chance:
        return f"cannot say: the whole model is right on {right} of {n} images, which may be chance"
    if evidence.refusal:
        return f"nothing can be removed: {evidence.refusal}"
    drop = "attention" if "attention" in evidence.curves else "block"
    removed = [tried for tried in evidence.single if tried.changes[0].kind in (drop, "head", "softmax")]
    if any(evidence.gained_choosing(tried)[2] >= -evidence.tolerance for tried in removed):
        return (
            f"cannot say: the {n} images that choose cannot exclude a loss of more than {evidence.tolerance:.1%} for "
            f"any of them; try more images, or allow more with {option('tolerance')}"
        )
    return f"nothing can be removed at a tolerance of {evidence.tolerance:.1%}: each part costs more"


def _cells(evidence: Evidence, tried: Tried) -> str:
    """Accuracy without these parts, and what it changes by."""
    row = evidence.row(tried)
    sure = "" if row["gained_low"] <= 0 <= row["gained_high"] else ", not by chance"
    accuracy = f"{row['accuracy']:.2%} ({row['low']:.2%}–{row['high']:.2%})"
    return f"{accuracy}, {cost_text(evidence, tried)}{sure}"


def _words(changes: Sequence[Change]) -> str:
    """Ablations made at once: `without block 3, without block 4`."""
    return ", ".join(map(str, changes))


def _folder_of(ref: str) -> str:
    """The folder beside which a smaller model is written: the run, also of its checkpoints; B of a name hf:A/B."""
    path = Path(ref)
    path = path.parent.parent if path.parent.name == "checkpoints" else path
    return path.name.rpartition(":")[2] if ":" in ref else str(path)


def _heads_text(heads: Sequence[tuple[int, int]]) -> str:
    if len(heads) > 3:
        return f"{len(heads)} heads"
    listed = ", ".join(f"{block}:{head}" for block, head in heads)
    return f"head{'s' if len(heads) > 1 else ''} {listed}"


# --- on the page ---------------------------------------------------------------------------------------------------


def removal_drawings(name: str, evidence: Evidence, width: float) -> Iterator[Drawing]:
    """Curves of the accuracy while blocks, then heads, are removed."""
    for curve, steps in evidence.curves.items():
        title = f"{name}: accuracy against {curve} removed"
        alt = f"{title}. {accuracy_text(evidence)}; without all {len(steps)} {curve} {cost_text(evidence, steps[-1])}."
        with canvas(width, 3.2) as figure:
            removal_curve(evidence, figure.add_subplot(), curve=curve)
            images = f"{evidence.n_choosing} images chose the order, {evidence.n_judging} others judge"
            yield as_svg(figure, alt, title, f"{evidence.candidates}; {images}.")


def removal_sentences(name: str, evidence: Evidence) -> Iterator[str]:
    """Accuracy of the whole model, what was removed, and what may go."""
    yield f"{name}, {accuracy_text(evidence)}; {evidence.candidates}."
    yield f"{name}, advice: {advice(evidence)}"


def removal_rows(evidence: Evidence) -> list[tuple[str, str, str, str]]:
    """(part removed alone, accuracy, accuracy gained, loss gained) of each single ablation."""
    rows = [(_words(tried.changes), evidence.row(tried), cost_text(evidence, tried)) for tried in evidence.single]
    return [(words, f"{row['accuracy']:.2%}", cost, f"{row['loss_gained']:+.3f}") for words, row, cost in rows]
