"""Has the attention collapsed, and from which block on? In plain words, and no surer than the numbers are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnprobe.core.evidence import Evidence
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.showing import table
from attnprobe.core.wording import blocks_text
from attnprobe.plots.style import SITES
from attnprobe.reports.caveats import caveats, near_uniform, no_more_than_untrained
from attnprobe.reports.numbers import ci_text
from attnprobe.reports.sites import at_sites, at_softmax

COMPARED = {
    "previous": "the block before",
    "next": "the block after",
    "neighbors": "the mean of the blocks nearby",
    "neighbors-max": "the block nearby that is most alike",
    "any": "the block most alike",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a report says first.

    Attributes:
        status: the answer in one or two words.
        headline: the answer with its numbers.
        settings: what "similar" and "redundant" mean here; travels with the headline.
        warnings: sentences that a reader must weigh; a report shows them beside the headline.
        advice: what to do next; "" for nothing.
    """

    status: Literal["collapsed", "partly collapsed", "redundant", "healthy", "cannot say"]
    headline: str
    settings: str
    warnings: tuple[str, ...]
    advice: str = ""

    def _repr_html_(self) -> str:
        weighed = {f"beware {k}": warning for k, warning in enumerate(self.warnings, 1)}
        return table(
            self.headline, {"where": self.settings, **weighed, **({"next": self.advice} if self.advice else {})}
        )


def verdict(e: Examined) -> Verdict:
    """Judge one model by its similar blocks, at the maps that multiply V.

    Near-uniform maps, which are what a network starts with, have a raw cosine near 1 whatever they look at, so a count
    is an upper bound unless it is beyond the untrained network's: with as many untrained, a collapse of the last blocks
    cannot be told, and single similar blocks are "at most partly collapsed". A model without similar blocks is
    "redundant" if most of its heads are (`Examined.rules`), else "healthy": by these two measures, not in every way.
    """
    m = next(iter(at_sites(e, "similar_blocks")), None)
    if m is None:
        return Verdict("cannot say", "cannot say: similar_blocks was not measured", "", tuple(caveats(e, None)))
    if missing := _missing(m):
        return Verdict("cannot say", f"cannot say: {missing}", _settings(e, m, None), tuple(caveats(e, m)))
    s = m.summary
    untrained = m.baselines["untrained"].summary["count"] if "untrained" in m.baselines else None
    count = f"{s['count']} of {s['of']} blocks similar{ci_text(s['count_ci'])}"
    heads = at_softmax(e, "head_divergence")
    parts = []
    if s["count"] == 0:
        status = "redundant" if _redundant_share(heads) > e.rules.redundant else "healthy"
        parts.append(f"{status}: {count}")
    elif untrained is None and near_uniform(e, "measured"):
        status = "cannot say"
        parts.append(f"cannot say: {count}, but near-uniform maps are, and no untrained network was measured")
    elif s["collapsed_from"] is None:
        status = "partly collapsed"
        surely = "at most partly" if no_more_than_untrained(m) else "partly"
        parts.append(f"{surely} collapsed: {blocks_text(s['similar'])} of {s['of']} similar{ci_text(s['count_ci'])}")
    elif no_more_than_untrained(m):
        status = "cannot say"
        parts.append(f"cannot say: {count}, but untrained {untrained} are as well")
    elif _tail(m) < e.rules.collapsed:
        status = "partly collapsed"
        parts.append(f"partly collapsed, from block {s['collapsed_from']} on: {count}")
    else:
        status = "collapsed"
        before = [block for block in s["similar"] if block < s["collapsed_from"]]
        also = f", {blocks_text(before)} included" if before else ""
        parts.append(f"collapsed from block {s['collapsed_from']}: {count}{also}")
    if untrained is not None and status != "cannot say":
        parts.append(f"untrained baseline {untrained}")
    if heads is not None and heads.summary:
        fresh = heads.baselines.get("untrained")
        beside = f" (untrained {fresh.summary['redundant']})" if fresh is not None and fresh.summary else ""
        parts.append(f"{heads.summary['redundant']} of {heads.summary['of']} heads redundant{beside}")
    if e.evidence is not None:
        parts.extend(_needed(e.evidence))
    return Verdict(status, "; ".join(parts), _settings(e, m, heads), tuple(caveats(e, m)), _advice(e, m, heads))


def _missing(m: Measurement) -> str:
    """Why similar blocks `m` are no answer: nothing to compare, blocks that are not known, one image."""
    s = m.summary
    if s["of"] < 2:
        return "one block has no other to be compared with"
    unknown = [block for block, ratio in enumerate(s["ratio"], 1) if ratio is None]
    if unknown:
        found = f"{s['count']} of the others similar" if s["count"] else "no other is similar"
        return f"{blocks_text(unknown)} of {s['of']} without a finite value in any image, and {found}"
    if m.n_images < 2:
        return f"{s['count']} of {s['of']} blocks similar, but one image says nothing about others"
    return ""


def _tail(m: Measurement) -> float:
    """Which share of the blocks that are compared with another the last similar ones in a row are."""
    s = m.summary
    alone = s["compare"] in ("previous", "next")
    return sum(block >= s["collapsed_from"] for block in s["similar"]) / (s["of"] - alone)


def _redundant_share(heads: Measurement | None) -> float:
    return heads.summary["redundant"] / heads.summary["of"] if heads is not None and heads.summary else 0.0


def _needed(evidence: Evidence) -> Iterator[str]:
    """What taking them away said of their being similar or redundant."""
    for curve, word in (("blocks", "similar blocks"), ("heads", "redundant heads")):
        steps, free = evidence.curves.get(curve, ()), evidence.free(curve)
        if free is not None:
            yield (
                f"{len(free.changes)} of {len(steps)} {word} not needed at a tolerance of {evidence.tolerance:.1%}, "
                f"accuracy without them {evidence.cost(free)}"
            )
        elif steps:
            yield f"none of {len(steps)} {word} surely not needed, without the cheapest {evidence.cost(steps[0])}"


def _advice(e: Examined, m: Measurement, heads: Measurement | None) -> str:
    """The next step: try whether they are needed, or take them out."""
    if e.evidence is not None:
        return e.evidence.advice()
    if m.summary["count"] or (heads is not None and heads.summary and heads.summary["redundant"]):
        return (
            "are they needed? attnprobe verify-drops RUN, or report RUN --verify-drops, measures the accuracy without"
        )
    return ""


def similar_words(m: Measurement) -> str:
    """What "similar" means in a count of similar blocks."""
    s, chosen = m.summary, m.settings
    vectors = "columns (key vectors)" if chosen["axis"] == "key" else "rows (query vectors)"
    near = f", k={chosen['k']}" if s["compare"].startswith("neighbors") or s["tau"] == "nbr-mean" else ""
    bar = "the mean cosine of the blocks nearby" if s["tau"] == "nbr-mean" else s["tau"]
    details = ["each head on its own" if chosen["pool"] == "head" else "after the mean over heads"]
    if chosen["center"] != "none":
        details.append(f"centred ({chosen['center']})")
    if chosen["head_match"] != "index":
        details.append("heads matched")
    if chosen["exclude_prefix"]:
        details.append(f"without the first {chosen['exclude_prefix']} tokens")
    return (
        f"similar: more than {100 * s['rho']:g}% of the attention {vectors} have a cosine above {bar} with "
        f"{COMPARED[s['compare']]} (rho={s['rho']}, tau={s['tau']}, compare={s['compare']}{near}), {', '.join(details)}"
    )


def _settings(e: Examined, m: Measurement, heads: Measurement | None) -> str:
    """What the words of the headline mean."""
    text = f"{similar_words(m)}; {SITES[m.site]}, {m.summary['n_images']} images."
    if heads is not None and heads.summary:
        text += (
            f" Redundant: heads of one block closer than {heads.summary['cut']} nats (Jensen-Shannon, average "
            f"linkage), all but one of each group; {SITES[heads.site]}, {heads.n_images} images."
        )
    return (
        f"{text} Collapsed: the last {e.rules.collapsed:.0%} of the blocks or more are similar; redundant: more than "
        f"{e.rules.redundant:.0%} of the heads are, and no block is similar."
    )
