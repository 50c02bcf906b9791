"""Differences between two methods of several runs each, all measured on the same images."""

from collections.abc import Sequence

import numpy as np

from attnprobe.core.errors import InputError
from attnprobe.core.measurement import Measurement
from attnprobe.stats.bootstrap import BLOCK_BYTES, finite_mean, n_finite, values_of_function
from attnprobe.stats.interval import within_differences
from attnprobe.stats.over_runs import Estimate, Runs, estimate, scatter_of_mean
from attnprobe.stats.paired import Difference, aligned, corrected

RESAMPLES = 1000
"""Resamples of the images, for numbers that are not means over them."""


def difference_of_methods(
    first: Sequence[Measurement], second: Sequence[Measurement], *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Mean over runs of the second method minus that of the first, cell by cell; see `stats.over_runs`.

    p-values are of Student's t, corrected by Holm's method over the cells; effects are in units of the standard
    deviation of runs of one method.

    Raises:
        InputError: fewer than two runs of a method, or what `paired_difference` refuses of any two of them.
        ShapeError: other numbers of blocks or heads.
    """
    if min(len(first), len(second)) < 2:
        raise InputError("a method needs two runs or more: one run says nothing about others.")
    m = first[0]
    values = [[aligned(m, other)[1] for other in runs] for runs in (first, second)]
    if m.from_mean is not None:
        sides = [_of_function(m, np.stack(runs), resamples, seed) for runs in values]
        found = estimate(sides[1], sides[0])
    else:
        found = _by_cells(*(np.stack(runs) for runs in values))
    p_holm, n_tests = corrected(found.p, m.axes)
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = np.where(found.run_std > 0, found.mean / found.run_std, np.nan)
    return Difference(
        metric=m.metric,
        axes=m.axes,
        unit=m.unit,
        mean=np.asarray(found.mean),
        ci=within_differences(found.ci, [*first, *second]),
        p=found.p,
        p_holm=p_holm,
        n_images=len(m.image_ids),
        n_tests=n_tests,
        smallest=0.0,
        settings={**m.metric_settings, "interval": "t over runs and images", "seed": seed},
        n_runs=(len(first), len(second)),
        effect=effect,
    )


def _of_function(m: Measurement, per_image: np.ndarray, resamples: int, seed: int) -> Runs:
    """[run, image, *any] -> a function of each run's mean over images; all runs draw the same images."""
    assert m.from_mean is not None
    n_images = per_image.shape[1]
    value, scatter = [], []
    for run in per_image:
        value.append(m.from_mean(finite_mean(run), n_finite(run)))
        drawn = values_of_function(m.from_mean, run, resamples, seed)
        scatter.append((drawn - drawn.mean(0)) / np.sqrt(resamples - 1))
    return Runs(np.stack(value), np.stack(scatter), n_images)


def _by_cells(first: np.ndarray, second: np.ndarray) -> Estimate:
    """[run, image, *cells] of both methods -> their difference, as many cells at a time as fit in memory."""
    shape = first.shape[2:]
    flat = [values.reshape(*values.shape[:2], -1) for values in (first, second)]
    width = max(1, BLOCK_BYTES // 8 // (first.shape[1] * (len(first) + len(second))))
    parts = []
    for start in range(0, flat[0].shape[-1], width):
        both = np.concatenate([values[..., start : start + width] for values in flat])
        mean, scatter = scatter_of_mean(both)
        n, images = len(first), first.shape[1]
        parts.append(estimate(Runs(mean[n:], scatter[n:], images), Runs(mean[:n], scatter[:n], images)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts], -1) for name in ("mean", "ci", "p", "run_std")
    }
    return Estimate(**{name: x.reshape((*x.shape[:-1], *shape)) for name, x in joined.items()})
