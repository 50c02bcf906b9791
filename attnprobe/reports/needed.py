"""What does a report show of blocks and heads that were taken away?"""

from collections.abc import Iterator

from attnprobe.core.evidence import Evidence
from attnprobe.plots import removal_curve
from attnprobe.reports.drawing import Drawing, as_svg, canvas


def removal_drawings(name: str, evidence: Evidence, width: float) -> Iterator[Drawing]:
    """The accuracy kept, against blocks and against heads taken away."""
    for curve, steps in evidence.curves.items():
        title = f"{name}: accuracy against {curve} taken away"
        alt = f"{title}. {evidence.accuracy()}; without all {len(steps)} {curve} {evidence.cost(steps[-1])}."
        with canvas(width, 3.2) as figure:
            removal_curve(evidence, figure.add_subplot(), curve=curve)
            images = f"{evidence.n_choosing} images chose the order, {evidence.n_judging} others judge"
            yield as_svg(figure, alt, title, f"{evidence.candidates}; {images}.")


def told(name: str, evidence: Evidence) -> Iterator[str]:
    """In sentences: how good the whole model is, what was tried, and what can go."""
    yield f"{name}, {evidence.accuracy()}; {evidence.candidates}."
    yield f"{name}, advice: {evidence.advice().rstrip('.')}."


def tries(evidence: Evidence) -> list[tuple[str, str, str, str]]:
    """(what was taken away alone, accuracy, accuracy gained, loss gained) of each try."""
    rows = [(str(tried.changes[0]), evidence.row(tried), evidence.cost(tried)) for tried in evidence.single]
    return [(words, f"{row['accuracy']:.2%}", cost, f"{row['loss_gained']:+.3f}") for words, row, cost in rows]
