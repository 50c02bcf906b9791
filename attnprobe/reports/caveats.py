"""Caveats of a verdict: every reason to doubt it that the data themselves give, the weightiest first."""

from collections.abc import Iterator, Sequence

from scipy.special import bdtrc

from attnprobe.core.accuracy import accuracy_interval
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.sites import SITES
from attnprobe.core.text import blocks_text
from attnprobe.reports.finding import Finding
from attnprobe.reports.kinds import kind_named
from attnprobe.reports.numbers import ci_text, number

FEW_IMAGES = 32
"""Below this many images intervals of skewed values, such as shares near 0 or 1, cover less than 95 %."""


def caveats(
    e: Examined, m: Measurement | None, findings: Sequence[Finding] = (), single: Sequence[Finding] = ()
) -> Iterator[str]:
    """Sentences to show beside the verdict on `e`, with its similar blocks `m` and the kinds that it names.

    Args:
        findings: of the kinds that are found; `single`: in single blocks alone.
    """
    yield from e.notes
    if e.history is not None and e.history.alarms:
        first, *others = e.history.alarms
        more = f"; {len(others)} more alarm{'s' if len(others) > 1 else ''} later" if others else ""
        yield f"while it trained, from epoch {first.epoch}: {first.text}{more}."
    if e.measurements and not any("untrained" in other.baselines for other in e.measurements.values()):
        yield "no untrained network was measured, so the numbers have no reference."
    yield from filter(None, map(_from_start, findings))
    if "cls" in e.grid.prefix and not _apart(e):  # with other stages behind, a stage's last block is not the network's
        yield from filter(None, map(_last_block, (*findings, *single)))
    if e.measurements.change_after_softmax:
        yield _two_matrices(e)
    if stages := about_stages(e):
        yield f"{stages}."
    ratios = () if m is None else zip(m.block_numbers, m.summary["ratio"], strict=True)
    if unknown := [block for block, ratio in ratios if ratio is None]:
        yield f"{blocks_text(unknown)} without a finite value in any image."
    if excluded := max((other.n_excluded for other in e.measurements.values()), default=0):
        named = next((m.not_finite for m in e.measurements.values() if m.not_finite), ())
        first = f" The first maps: {'; '.join(named)}." if named else ""
        yield (
            f"values that are not finite, in up to {excluded} images, were left out; see the settings of each metric."
            f"{first}"
        )
    judged = [m] if m is not None else e.measurements.values()
    n_images = min((other.n_finite for other in judged), default=0)
    if n_images < FEW_IMAGES:
        whole = "" if m is None or m.n_finite == m.n_images else " with finite values"
        yield f"only {n_images} image{'s' if n_images != 1 else ''}{whole}: {FEW_IMAGES} or more for intervals to hold."
    if chance := near_chance(e):
        yield chance
    if e.layers and not e.certificate:  # measurements alone do not say what they are of
        yield "no certificate: that the captured maps are what the model computed was not proved."


def _from_start(f: Finding) -> str:
    """Sentence if the untrained network shows the kind in most of its blocks: training has not brought it."""
    there, n = len(f.from_start), len(f.blocks)
    if 2 * there <= n:
        return ""
    every = {1: "this block", 2: "both of these blocks"}.get(n, f"all {n} of these blocks")
    blocks = every if there == n else f"{there} of these {n} blocks"
    same = f"{number(f.untrained)} there, {number(f.number)} here in block {f.block}"
    return (
        f"{f.words} is in the untrained network, too, in {blocks} ({same}): training did not bring it and has not "
        "removed it, or these are initial weights."
    )


def _last_block(f: Finding) -> str:
    """Sentence if maps show the kind in the last block alone, most of whose rows need not reach the output."""
    is_part = f.levels is not None and f.levels.numbers[-1] != f.depth  # of some blocks alone nobody knows the last
    if not kind_named(f.kind).of_maps or f.blocks != (f.depth,) or is_part:
        return ""
    return (
        f"{f.words} is in the last block alone, over all rows of its maps: where the classifier reads the class token, "
        "only that token's row of this block reaches it."
    )


def _shown(e: Examined) -> Measurement | None:
    """The measurement of the stage that figures and summary are about; None where nothing is measured by block."""
    judged = e.measurements.of_network()
    similar = judged.prefer("similar_blocks", "effective", "weights")
    return similar or max((m for m in judged.values() if m.n_blocks), key=lambda m: m.n_blocks, default=None)


def _apart(e: Examined) -> list[str]:
    """Stages whose blocks are not judged with those that a verdict is about."""
    judged = {m.stage for m in e.measurements.of_network().values() if m.n_blocks}
    return list(dict.fromkeys(m.stage for m in e.measurements.values() if m.n_blocks and m.stage not in judged))


def about_stages(e: Examined) -> str:
    """Clause on what is said of some blocks alone, where not all have equally many heads and tokens; else empty."""
    if (m := _shown(e)) is None:
        return ""
    apart = _apart(e)
    counts = {
        other.stage: f"{other.stage} {other.summary['count']} of {other.summary['of']}"
        for other in e.measurements.select("similar_blocks", site=m.site)
        if other.stage in apart
    }
    clauses = []
    if m.network:
        listed = ", ".join(f"{stage}: {blocks_text(numbers)}" for stage, numbers in m.network.items())
        clauses.append(
            f"blocks are counted through all stages ({listed}) and compared within their own; a number of the summary, "
            "and a figure, is of the stage with the most blocks that has it, where they count from 1"
        )
    elif m.together:
        n_blocks = sum(its.n_blocks for its in e.measurements.through(m))
        clauses.append(
            "not all blocks have equally many heads: repetition, similar blocks, the summary and the figures are of "
            f"{blocks_text(m.block_numbers)} alone, which do; all other kinds are judged in all {n_blocks} blocks"
        )
    if counts:
        clauses.append(f"this is about stage {m.stage}; similar blocks of the others: {', '.join(counts.values())}")
    elif apart:
        clauses.append(f"this is about stage {m.stage}; not judged, for other heads or tokens: {', '.join(apart)}")
    return "; ".join(clauses)


def _two_matrices(e: Examined) -> str:
    """Sentence on the two matrices of a variant that changes its maps, with the count at each."""
    text = (
        "this variant changes its maps after the softmax, so cosines of its effective maps (those multiplied with V, "
        "whose rows need not sum to 1) are not comparable with those of softmax maps"
    )
    counts = [
        f"{m.summary['count']} of {m.summary['of']}{ci_text(m.summary['count_ci'])} at the {SITES[m.site]}"
        + (f", {m.baselines['untrained'].summary['count']} untrained" if "untrained" in m.baselines else "")
        for m in e.measurements.at_sites("similar_blocks")
    ]
    return f"{text}. Similar blocks: {'; '.join(counts)}." if counts else f"{text}."


def near_chance(e: Examined) -> str:
    """A sentence if the accuracy does not differ from guessing and could not be much better; empty otherwise.

    By the one-sided binomial test at 5 %, and the upper end of the 95 % interval (Wilson) below half-way from chance to
    1, so that a few images give no warning.
    """
    accuracy, classes = e.info.get("accuracy"), e.info.get("n_classes")
    n = e.info.get("n_labelled") or e.info.get("n_images")
    if accuracy is None or not n or not classes or classes < 2:
        return ""
    chance = 1 / classes
    right = round(accuracy * n)
    by_chance = bdtrc(right - 1, n, chance) if right else 1.0  # of so many right answers or more
    if by_chance <= 0.05 or accuracy_interval(right, n)[1] >= (1 + chance) / 2:
        return ""
    return f"accuracy {accuracy:.1%} is near chance ({chance:.1%}, {classes} classes): this network has learnt little."
