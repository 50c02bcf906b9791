"""Which of a run's measurements is the one to quote, and of which matrix is it?

A plain ViT multiplies V with its softmax: one matrix. DeepViT changes it first, so its metrics come twice.
"""

from collections.abc import Iterable
from dataclasses import replace

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement


def at_effective(e: Examined, metric: str) -> Measurement | None:
    """The metric on what multiplies V, if it was measured there."""
    return _deepest(m for m in e.measurements.values() if m.metric == metric and m.is_effective)


def at_softmax(e: Examined, metric: str) -> Measurement | None:
    """The metric on the softmax, if it was measured there."""
    return _deepest(m for m in e.measurements.values() if m.metric == metric and m.site == "weights")


def _deepest(measurements: Iterable[Measurement]) -> Measurement | None:
    """Of several stages the one with the most blocks, the first of these."""
    found = list(measurements)
    blocks = [m.mean.shape[m.axes.index("layer")] if "layer" in m.axes else 0 for m in found]
    return found[blocks.index(max(blocks))] if found else None


def at_sites(e: Examined, metric: str) -> list[Measurement]:
    """The metric at each of the two, effective first; one measurement where both are the same matrix."""
    found = [m for m in (at_effective(e, metric), at_softmax(e, metric)) if m is not None]
    return found[:1] if len(found) == 2 and found[0] is found[1] else found


def changes_its_maps(e: Examined) -> bool:
    """Whether the variant changes its maps after the softmax."""
    return any(m.site == "weights" and not m.is_effective for m in e.measurements.values())


def untrained(e: Examined) -> Examined | None:
    """The same architecture with initial weights, as a run of its own; None if it was not measured."""
    baselines = {key: m.baselines["untrained"] for key, m in e.measurements.items() if "untrained" in m.baselines}
    if not baselines:
        return None
    return replace(e, name=f"{e.name}, untrained", measurements=baselines, info={}, certificate={}, pictures=())
