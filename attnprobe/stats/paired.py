"""Paired differences between two models on the same images, with interval and permutation test.

Both saw the same images, so each image is compared with itself: differences between images, which are larger
than those between models, drop out. The interval resamples images; the test exchanges the two models' values of an
image at random, which changes nothing if they do not differ, and asks how often the mean difference is then as large.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.measurement import FromMean, Measurement
from attnprobe.stats.bootstrap import BLOCK_BYTES, centred, draws, percentile_interval

LEVEL = 0.05
"""Family-wise error rate: chance that any cell is called different although none of its metric is."""

MOST_SUMS = 2 * 10**11
"""Most additions for the exchanges of a metric, some ten seconds; beyond, there are fewer exchanges than its cells
need."""


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Second minus first, cell by cell, on the same images.

    Attributes:
        metric, axes, unit: as in `Measurement`.
        mean: [*axes]; NaN where no image has a finite value of both.
        ci: [2, *axes], the 95 % interval, by resampling images.
        p: [*axes], two-sided, of no difference in this cell.
        p_holm: [*axes], the same for all cells together; see `holm`.
        n_images: images compared.
        n_tests: cells compared: of a symmetric matrix one half without the diagonal.
        smallest: the smallest p_holm that so many images and exchanges can give; above 0.05 nothing could be found.
        settings: of the metric and of the test.
        n_runs: of the first and of the second; of several each, the difference is that of their means.
        effect: [*axes], the mean difference in units of the standard deviation of runs; None of one run each.
    """

    metric: str
    axes: tuple[str, ...]
    unit: str
    mean: np.ndarray
    ci: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray
    n_images: int
    n_tests: int
    smallest: float
    settings: Mapping[str, Any]
    n_runs: tuple[int, int] = (1, 1)
    effect: np.ndarray | None = None


def paired_difference(first: Measurement, second: Measurement, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Compare a metric of two runs that were measured on the same images, in any order.

    There are at least as many exchanges as `resamples`, and more where many cells are tested: Holm's correction needs
    them to find anything. They take `MOST_SUMS` at most.

    Raises:
        InputError: other metrics, settings, images or token counts; fewer than two images; per-image values not kept.
        ShapeError: other numbers of blocks or heads.
    """
    a, b = aligned(first, second)
    n_cells = int(one_half(first.axes, first.mean.shape).sum())
    affordable = MOST_SUMS // max(1, a.size)
    exchanges = max(resamples, min(round(2 * n_cells / LEVEL), affordable))
    if first.from_mean is not None:
        mean, ci, p = _compared(a, b, first.from_mean, resamples, exchanges, seed)
    else:  # cell by cell, so that as many as there are fit in memory
        width = max(1, BLOCK_BYTES // 8 // max(resamples, len(a)))
        starts = range(0, _flat(a).shape[1], width)
        parts = [(_flat(a)[:, start : start + width], _flat(b)[:, start : start + width]) for start in starts]
        found = [_compared(x, y, None, resamples, exchanges, seed) for x, y in parts]
        mean, ci, p = (np.concatenate(one, axis=-1) for one in zip(*found, strict=True))
        mean, ci, p = (x.reshape((*x.shape[:-1], *a.shape[1:])) for x in (mean, ci, p))
    p_holm, n_tests = corrected(p, first.axes)
    return Difference(
        metric=first.metric,
        axes=first.axes,
        unit=first.unit,
        mean=mean,
        ci=ci,
        p=p,
        p_holm=p_holm,
        n_images=len(a),
        n_tests=n_tests,
        smallest=min(1.0, n_tests * max(1 / (1 + exchanges), 2.0 ** (1 - len(a)))),
        settings={**first.metric_settings, "resamples": resamples, "exchanges": exchanges, "seed": seed},
    )


def _compared(
    a: np.ndarray, b: np.ndarray, from_mean: FromMean | None, resamples: int, exchanges: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of the means, or of `from_mean` of them, its interval, and its p-value; NaN without a value."""

    def function(means: np.ndarray) -> np.ndarray:
        return means if from_mean is None else from_mean(means, len(a))

    with np.errstate(invalid="ignore"):
        usable = np.isfinite(a) & np.isfinite(b)
        n = usable.sum(0).astype(np.float64)
        sum_a, sum_b = (np.where(usable, x, 0.0).sum(0) for x in (a, b))
        mean = function(sum_b / n) - function(sum_a / n)
        resampled = np.concatenate([function(y) - function(x) for x, y in _resampled(a, b, usable, resamples, seed)])
        as_large, bar = np.zeros(mean.shape), np.abs(mean) * (1 - 1e-9)
        for moved in _exchanged(a, b, usable, exchanges, seed):
            exchanged = function((sum_b - moved) / n) - function((sum_a + moved) / n)
            as_large += (np.abs(exchanged) >= bar).sum(0)
    known = np.isfinite(mean)
    if from_mean is not None:
        resampled = centred(resampled, mean)
    ci = np.where(known, percentile_interval(resampled, len(a)), np.nan)
    return mean, ci, np.where(known, (1 + as_large) / (1 + exchanges), np.nan)


def aligned(first: Measurement, second: Measurement) -> tuple[np.ndarray, np.ndarray]:
    """Values [image, *cells] of both, float64, in the same order of images.

    Raises:
        InputError, ShapeError: they cannot be compared; see `paired_difference`.
    """
    what = [(m.metric, m.metric_settings) for m in (first, second)]
    if what[0] != what[1]:
        raise InputError(
            f"two numbers of one kind can be compared, not {what[0][0]} {what[0][1]} and {what[1][0]} {what[1][1]}; "
            "measure both runs with the same settings."
        )
    if first.site != second.site and not (first.is_effective and second.is_effective):
        raise InputError(
            f"{first.metric} at site {first.site!r} and at {second.site!r} are of different matrices; compare the "
            "same site, or effective attention of both."
        )
    if first.per_image is None or second.per_image is None:
        raise InputError(f"the values of {first.metric} image by image were too large to keep; measure fewer images.")
    if first.axes != second.axes or first.per_image.shape[1:] != second.per_image.shape[1:]:
        shapes = first.per_image.shape[1:], second.per_image.shape[1:]
        raise ShapeError(
            f"{first.metric} over ({', '.join(first.axes)}) has {shapes[0]} values in one run and {shapes[1]} in the "
            "other; cell by cell only models of equal depth and heads can be compared."
        )
    uniform = [m.baselines["uniform"].mean for m in (first, second) if "uniform" in m.baselines]
    if len(uniform) == 2 and not np.allclose(*uniform, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise InputError(
            f"uniform attention has another {first.metric} in the two runs, so they saw other numbers of tokens or "
            "patches; compare a metric that does not depend on them, such as map_overlap."
        )
    if len(first.image_ids) < 2:
        raise InputError("one image says nothing about others: measure two or more, better 32.")
    place = {name: i for i, name in enumerate(second.image_ids)}
    missing = [name for name in first.image_ids if name not in place]
    if missing or len(first.image_ids) != len(second.image_ids) or len(place) != len(second.image_ids):
        what = f"{missing[0]!r} is in one of them only" if missing else "one of them has more, or one twice"
        raise InputError(
            f"the runs were measured on different images ({len(first.image_ids)} and {len(second.image_ids)}; {what}); "
            "capture both with the same data, split and number of images."
        )
    order = [place[name] for name in first.image_ids]
    return first.per_image.astype(np.float64), second.per_image[order].astype(np.float64)


def _resampled(
    a: np.ndarray, b: np.ndarray, usable: np.ndarray, resamples: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Means of both over the same resampled images, [some resamples, *cells] each."""
    weighted = [_flat(np.where(usable, x, 0.0)) for x in (a, b)]
    counted = _flat(usable.astype(np.float64))
    for counts in _rows(draws(len(a), resamples, seed), counted.shape[1]):
        n = counts @ counted if not usable.all() else np.full((len(counts), 1), float(len(a)))
        yield tuple((counts @ x / n).reshape(-1, *a.shape[1:]) for x in weighted)  # type: ignore[misc]


def _exchanged(a: np.ndarray, b: np.ndarray, usable: np.ndarray, exchanges: int, seed: int) -> Iterator[np.ndarray]:
    """Gain of the sum of `a` when a random half of the images exchange their values, [some resamples, *cells]."""
    step = _flat(np.where(usable, b - a, 0.0))
    rng = np.random.default_rng([seed, 1])  # not the stream of the resampling
    rows = max(1, BLOCK_BYTES // 8 // max(step.shape))
    for start in range(0, exchanges, rows):
        chosen = rng.integers(2, size=(min(rows, exchanges - start), len(a))).astype(np.float64)
        yield (chosen @ step).reshape(-1, *a.shape[1:])


def _rows(blocks: Iterator[np.ndarray], n_cells: int) -> Iterator[np.ndarray]:
    """Blocks of resamples, cut so that their means fit in memory."""
    at_once = max(1, BLOCK_BYTES // 8 // n_cells)
    for block in blocks:
        for start in range(0, len(block), at_once):
            yield block[start : start + at_once]


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _halves(axes: tuple[str, ...]) -> int:
    """Number of axes of each side of a symmetric matrix, such as 1 of (layer, head, head); 0 if it is not one."""
    return next((n for n in (2, 1) if len(axes) >= 2 * n and axes[-n:] == axes[-2 * n : -n]), 0)


def one_half(axes: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """[*shape], bool: cells that are tested; of a symmetric matrix those above the diagonal."""
    n = _halves(axes)
    if n == 0:
        return np.ones(shape, bool)
    side = int(np.prod(shape[-n:]))
    return np.broadcast_to(np.triu(np.ones((side, side), bool), 1).reshape(shape[-2 * n :]), shape)


def corrected(p: np.ndarray, axes: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """p-values [*axes] corrected by `holm` over the cells that are tested, and the number of these."""
    known = np.isfinite(p)
    tested = known & one_half(axes, p.shape)
    p_holm = np.where(known, 1.0, np.nan)
    p_holm[tested] = holm(p[tested])
    return mirrored(p_holm, axes), int(tested.sum())


def holm(p: np.ndarray) -> np.ndarray:
    """p-values [any], without NaN, adjusted for the family-wise error rate: the chance of any false alarm is below it.

    Holm 1979, step-down: of m values in rising order the k-th (from 1) is multiplied by m - k + 1, is at least as large
    as the previous one, and at most 1.
    """
    flat = np.asarray(p, dtype=float).ravel()
    order = np.argsort(flat, kind="stable")
    factors = len(flat) - np.arange(len(flat))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * factors), 1)
    return adjusted.reshape(np.shape(p))


def mirrored(values: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
    """A symmetric matrix from its upper half; below the diagonal everything must be 1."""
    n = _halves(axes)
    if n == 0:
        return values
    last = values.ndim
    turned = (*range(last - 2 * n), *range(last - n, last), *range(last - 2 * n, last - n))
    return np.minimum(values, values.transpose(turned))
