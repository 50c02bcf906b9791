"""The verdict: kinds of collapse found, from which block on, in words that claim no more than the numbers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Evidence
from attnprobe.core.examined import Examined
from attnprobe.core.grid import TokenGrid
from attnprobe.core.measurement import Measurement, Measurements
from attnprobe.core.sites import SITES
from attnprobe.core.text import blocks_text, table
from attnprobe.reports.caveats import about_stages, caveats, near_chance
from attnprobe.reports.finding import NOT_MEASURED, Finding
from attnprobe.reports.findings import findings
from attnprobe.reports.kinds import EXTENT, OTHER_BARS
from attnprobe.reports.numbers import ci_text, is_counted
from attnprobe.reports.removal import (
    ALL_PARTS,
    advice,
    cost_text,
    parts_options,
    verify_command,
)

PROGRAM = "attnprobe "
"""Beginning of a command in an advice."""

COMPARED = {
    "previous": "the previous block",
    "next": "the next block",
    "neighbors": "the mean of the blocks nearby",
    "neighbors-max": "the block nearby that is most alike",
    "any": "the block most alike",
}

Status = Literal["found", "none found", "cannot say"]


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """The first lines of a report.

    Attributes:
        status: whether a kind of collapse was found in more than single blocks; "cannot say" where none could be
            judged, for missing data.
        headline: the kinds found, the worst first, or that none of so many was; then what could not be judged.
        settings: which maps and how many images the numbers are of; accompanies the headline everywhere.
        warnings: sentences that a reader must weigh; a report shows them with the headline.
        advice: what to do next, a command at its end; "" for nothing.
        findings: every kind, found or not, with its numbers.
    """

    status: Status
    headline: str
    settings: str
    warnings: tuple[str, ...]
    advice: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def next_step(self) -> tuple[str, str]:
        """The advice as a sentence and the command at its end; empty where there is none."""
        words, _, command = self.advice.partition(f": {PROGRAM}")
        return (f"{words}:", f"{PROGRAM}{command}") if command else (words, "")

    def __str__(self) -> str:
        """The headline, then a line for each kind of collapse, and what a reader must weigh."""
        kinds, beware = (
            (f"- {finding.line}" for finding in self.findings),
            (f"! {warning}" for warning in self.warnings),
        )
        return "\n".join((self.headline, *kinds, *beware))

    def __repr__(self) -> str:
        return f"<Verdict: {self.headline}>"

    def _repr_html_(self) -> str:
        weighed = [("beware", warning) for warning in self.warnings]
        advice = [("next", self.advice)] if self.advice else []
        head = ("kind of collapse", "found", "number (95 % interval)", "untrained", "bar")
        return table(self.headline, [*(finding.row for finding in self.findings), *weighed, *advice], head)


def verdict(e: Examined | Mapping[str, Measurement]) -> Verdict:
    """Judge one model by each kind of collapse in `KINDS`; from its measurements, or as `ap.examine` gives it.

    The worst is the kind in most of the blocks; of equals the one nearest to the classifier; one of single blocks is
    named in a last clause and is no collapse of the network. The untrained network is shown with each number and
    decides nothing. What one kind explains is not named a second time: near-uniform maps repeat one another, whatever
    they attend to, and heads that are near uniform are alike.

    Raises:
        InputError: something else, such as maps or a path.
    """
    if isinstance(e, Mapping):
        measured = Measurements(e, refusals=getattr(e, "refusals", {}))
        e = Examined("", measured, getattr(e, "facts", {}), (), TokenGrid(0, 0))
    if not isinstance(e, Examined):
        raise InputError(
            f"verdict takes measurements, as ap.measure(maps) gives them, or ap.examine(path), got {type(e).__name__}."
        )
    found = findings(e)
    everywhere = sorted((f for f in found if f.found == "yes"), key=lambda f: -f.share)
    named, single = ([f for f in everywhere if f.single is few] for few in (False, True))
    unknown = [f for f in found if f.found == "cannot say"]
    n_judged = len(found) - len(unknown)
    parts = [f.phrase for f in named]
    if not named and n_judged:
        where = f" in {EXTENT:.0%} of the blocks or more" if single else ""
        parts = [f"none of {n_judged} kinds of collapse found{where}"]
    if single:
        where = (f"{f.words} ({f.among})" for f in single)
        parts.append(f"in single blocks: {', '.join(where)}")
    if silent := _not_judged(found, named):
        parts.append(f"{blocks_text(sorted(silent))} without a finite value")
    if unknown:
        parts.append(_unknown(unknown, n_judged))
    if near_chance(e):
        parts.append("the model is near chance")
    if e.evidence is not None:
        parts.extend(_needed(e.evidence))
    status: Status = "found" if named else "none found" if n_judged else "cannot say"
    m = e.measurements.prefer("similar_blocks", "effective", "weights")
    return Verdict(status, "; ".join(parts), _settings(e, m), tuple(caveats(e, m, named, single)), _advice(e, m), found)


def _not_judged(findings: Iterable[Finding], named: Iterable[Finding]) -> set[int]:
    """Blocks without a finite value by which a kind is judged; what is named says so itself, and repetition needs one
    of the block before, too."""
    every = {n for f in findings if f.found != "cannot say" and f.kind != "repetition" for n in f.not_finite}
    return every.difference(*(f.not_finite for f in named))


def _unknown(unknown: list[Finding], n_judged: int) -> str:
    """`cannot say of 2 kinds: head redundancy (head_divergence was not measured); ...`, once for each reason."""
    reasons: dict[str, list[str]] = {}
    for f in unknown:
        before, unmeasured, why = f.detail.partition(NOT_MEASURED)
        reasons.setdefault((why.removeprefix(": ") or "not measured") if unmeasured else before, []).append(f.words)
    if not n_judged and len(reasons) == 1:
        return f"cannot say: {next(iter(reasons))}"
    listed = "; ".join(f"{', '.join(words)} ({why})" for why, words in reasons.items())
    return f"cannot say of {len(unknown)} kind{'s' if len(unknown) > 1 else ''}: {listed}"


def _needed(evidence: Evidence) -> Iterator[str]:
    """Clauses on whether similar blocks and redundant heads are needed, from their ablation."""
    for curve, word in (("blocks", "similar blocks"), ("heads", "redundant heads")):
        steps, free = evidence.curves.get(curve, ()), evidence.free(curve)
        if free is not None:
            yield (
                f"{len(free.changes)} of {len(steps)} {word} not needed at a tolerance of {evidence.tolerance:.1%}, "
                f"accuracy without them {cost_text(evidence, free)}"
            )
        elif steps:
            yield f"no {word[:-1]} can be removed safely (cheapest removal: accuracy {cost_text(evidence, steps[0])})"


def _advice(e: Examined, m: Measurement | None) -> str:
    """The next step: measure whether they are needed, or remove them; none without labels, which say what is right."""
    if e.evidence is not None:
        return advice(e.evidence)
    heads = e.measurements.get("head_divergence", site="weights")
    similar, divergence = ([] if one is None else e.measurements.through(one) for one in (m, heads))
    counts = ((sum(its.summary.get("count", 0) for its in similar), "similar block"),
              (sum(its.summary.get("redundant", 0) for its in divergence), "redundant head"))  # fmt: skip
    what = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts if n]
    if e.info.get("accuracy") is None or not what:
        return ""
    path, config = getattr(e.maps, "path", None), getattr(e.maps, "attrs", {}).get("config", {})
    if path is None:
        command = verify_command(None, e.info, parts_options(similar, divergence))
    elif about_stages(e):  # verify-drops does not take what is similar from maps of several stages, or of some layers
        command = verify_command(
            Path(path), config, parts_options(similar, divergence) if len(similar) > 1 else ALL_PARTS
        )
    else:
        command = verify_command(Path(path), config, () if m and heads else parts_options(similar, divergence))
    return f"to measure the accuracy without its {' and '.join(what)} ({OTHER_BARS}): {command}"


def similar_words(m: Measurement) -> str:
    """Definition of "similar" in a count of similar blocks, from its settings."""
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


def _settings(e: Examined, m: Measurement | None) -> str:
    """Maps that were judged and their images, the paper's count of similar blocks, and that of redundant heads."""
    parts = []
    measured = (e.measurements.prefer(metric, "weights", "effective") for metric in ("map_overlap", "row_entropy"))
    if of := next(filter(None, measured), None):
        parts.append(f"Maps are {SITES[of.site]}, {of.n_images} images")
    if m is not None and is_counted(m):
        s = m.summary
        fresh = f", untrained {m.baselines['untrained'].summary['count']}" if "untrained" in m.baselines else ""
        parts.append(
            f"Not judged by, but counted as in the paper: {s['count']} of {s['of']} blocks similar"
            f"{ci_text(s['count_ci'])}{fresh}; {similar_words(m)}; {SITES[m.site]}, {s['n_images']} images"
        )
    heads = e.measurements.get("head_divergence", site="weights")
    if heads is not None and heads.summary:
        fresh = heads.baselines.get("untrained")
        reference = f", untrained {fresh.summary['redundant']}" if fresh is not None and fresh.summary else ""
        parts.append(
            f"Likewise counted: {heads.summary['redundant']} of {heads.summary['of']} heads redundant{reference}: "
            f"closer than {heads.summary['cut']} nats to another of their block (Jensen-Shannon, average linkage), all "
            f"but one of each group; {SITES[heads.site]}, {heads.n_images} images"
        )
    return ". ".join(parts) + "." if parts else ""
