"""Paired differences between two models on the same images, with interval and permutation test.

Both saw the same images, so each image is compared with itself: differences between images, which are larger
than those between models, drop out. The interval resamples images; the test exchanges the two models' values of an
image at random, which changes nothing if they do not differ, and asks how often the mean difference is then as large.

Question: must every exchange be made? Choice: none for a cell whose difference no exchange will reach. By Hoeffding
1963 (Theorem 2) the sum of differences d_i with random signs is as large as |sum d_i| with a probability of at most
2 exp(-(sum d_i)^2 / (2 sum d_i^2)). Where that, times exchanges and cells, is below 1e-12, the test would count none,
and is not made: the same p-values, to the bit, but for one comparison in 1e12.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from attnprobe.core.errors import InputError, ShapeError, option
from attnprobe.core.measurement import FromMean, Measurement
from attnprobe.stats.bootstrap import BLOCK_BYTES, centred, draws, one_if_equal, percentile_interval
from attnprobe.stats.interval import within_differences

LEVEL = 0.05
"""Family-wise error rate: chance that any cell is called different although none of its metric is."""

MOST_SUMS = 2 * 10**11
"""Most additions for the exchanges of a metric, some ten seconds; beyond, there are fewer exchanges than its cells
need."""


ENOUGH = 1000
"""Resamples and exchanges that a number which is no mean gets in any case, as in `measure`. An end of its interval then
has a Monte Carlo error of 0.09 standard errors (with 10,000: 0.03)."""

FUNCTION_SUMS = 2 * 10**9
"""Most additions for those beyond `ENOUGH`, a fifth of a second."""

NEVER = 1e-12
"""Probability of an event that is left out of account."""


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
    them to find anything. They take `MOST_SUMS` at most. Of a number that is no mean of images' values, and so needs
    all that it is made of for each, resamples are fewer where `FUNCTION_SUMS` would be exceeded, and exchanges no more
    than its cells need.

    Raises:
        InputError: other metrics, settings, images or token counts; fewer than two images; per-image values not kept.
        ShapeError: other numbers of blocks or heads.
    """
    a, b = aligned(first, second)
    times = _times(first, a, resamples)
    if first.from_mean is not None:
        found = _of_function(a, b, first.from_mean, *times, seed)
    else:  # cell by cell, so that as many as there are fit in memory
        width = max(1, BLOCK_BYTES // 8 // max(resamples, len(a)))
        starts = range(0, _flat(a).shape[1], width)
        parts = [(_flat(a)[:, start : start + width], _flat(b)[:, start : start + width]) for start in starts]
        mean, ci, p = zip(*(_of_cells(x, y, *times, seed) for x, y in parts), strict=True)
        mean, ci, p = (np.concatenate(x, axis=-1) for x in (mean, ci, p))
        found = tuple(x.reshape((*x.shape[:-1], *a.shape[1:])) for x in (mean, ci, p))
    return _difference((first, second), first.axes, found, len(a), times, seed)


def paired_with_mean(
    first: Measurement, second: Measurement, telling: np.ndarray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[Difference, Difference]:
    """`paired_difference` of a number that is no mean over images, and of its mean over the cells `telling` [*axes].

    In one pass: most of the time goes into what both are made of.
    """
    a, b = aligned(first, second)
    of_mean = first.from_mean
    assert of_mean is not None, "of means, `paired_difference` is as fast"
    times, shape = _times(first, a, resamples), first.mean.shape

    def both(mean: np.ndarray, n_images: float | np.ndarray) -> np.ndarray:
        cells = of_mean(mean, n_images)
        whole = cells[..., telling].mean(-1)[..., None]
        return np.concatenate([cells.reshape(*whole.shape[:-1], -1), whole], -1)

    found = _of_function(a, b, both, *times, seed)
    cells = [x[..., :-1].reshape(*x.shape[:-1], *shape) for x in found]
    overall = [x[..., -1] for x in found]
    about = len(a), times, seed
    pair = first, second
    return _difference(pair, first.axes, cells, *about), _difference(pair, (), overall, *about)


def _times(first: Measurement, a: np.ndarray, resamples: int) -> tuple[int, int]:
    """Numbers of resamples and of exchanges."""
    n_cells = int(one_half(first.axes, first.mean.shape).sum()) if first.axes else 1
    needed = min(round(2 * n_cells / LEVEL), MOST_SUMS // max(1, a.size))
    if first.from_mean is not None:
        resamples = min(resamples, max(ENOUGH, FUNCTION_SUMS // max(1, a.size)))
    return resamples, max(resamples, needed)


Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Difference of the means, or of a function of them, its interval, and its p-value; NaN without a value."""


def _difference(
    pair: tuple[Measurement, Measurement],
    axes: tuple[str, ...],
    found: Sequence[np.ndarray],
    n_images: int,
    times: tuple[int, int],
    seed: int,
) -> Difference:
    (mean, ci, p), first = found, pair[0]
    resamples, exchanges = times
    p_holm, n_tests = corrected(p, axes)
    return Difference(
        metric=first.metric,
        axes=axes,
        unit=first.unit,
        mean=mean,
        ci=within_differences(ci, pair),
        p=p,
        p_holm=p_holm,
        n_images=n_images,
        n_tests=n_tests,
        smallest=min(1.0, n_tests * max(1 / (1 + exchanges), 2.0 ** (1 - n_images))),
        settings={**first.metric_settings, "resamples": resamples, "exchanges": exchanges, "seed": seed},
    )


def _of_cells(a: np.ndarray, b: np.ndarray, resamples: int, exchanges: int, seed: int) -> Found:
    """Differences of the means of values [image, cell], with intervals and tests."""
    with np.errstate(invalid="ignore", divide="ignore"):
        usable = np.isfinite(a) & np.isfinite(b)
        n = usable.sum(0).astype(np.float64)
        sum_a, sum_b = (np.where(usable, x, 0.0).sum(0) for x in (a, b))
        mean, step = sum_b / n - sum_a / n, np.where(usable, b - a, 0.0)
        resampled = np.concatenate(list(_resampled_steps(step, usable, resamples, seed)))
        as_large, bar = np.zeros(mean.shape), np.abs(mean) * (1 - 1e-9)
        likely = ~(_log_chance(step) + math.log(exchanges * max(1, len(mean))) < math.log(NEVER))
        for moved in _exchanged(step[:, likely], exchanges, seed) if likely.any() else ():
            exchanged = (sum_b[likely] - moved) / n[likely] - (sum_a[likely] + moved) / n[likely]
            as_large[likely] += (np.abs(exchanged) >= bar[likely]).sum(0)
    known = np.isfinite(mean)
    ci = np.where(known, percentile_interval(resampled, len(a)), np.nan)
    return mean, ci, np.where(known, (1 + as_large) / (1 + exchanges), np.nan)


def _log_chance(step: np.ndarray) -> np.ndarray:
    """[image, cell] -> [cell]: Hoeffding's bound on the chance that random signs give a sum as large, its logarithm."""
    size, squares = (np.abs(step.sum(0)) * (1 - 1e-9)) ** 2, (step**2).sum(0)
    return math.log(2) - size / np.maximum(2 * squares, np.finfo(float).tiny)


def _of_function(a: np.ndarray, b: np.ndarray, from_mean: FromMean, resamples: int, exchanges: int, seed: int) -> Found:
    """Differences of numbers that `from_mean` makes of the means of values [image, *any], with intervals and tests."""

    def function(means: np.ndarray) -> np.ndarray:
        return from_mean(means, count)

    with np.errstate(invalid="ignore"):
        usable = np.isfinite(a) & np.isfinite(b)
        n = usable.sum(0).astype(np.float64)
        count = one_if_equal(n)
        mean_a, mean_b = (np.where(usable, x, 0.0).sum(0) / n for x in (a, b))
        mean = function(mean_b) - function(mean_a)
        resampled = np.concatenate([function(y) - function(x) for x, y in _resampled(a, b, usable, resamples, seed)])
        as_large, bar = np.zeros(mean.shape), np.abs(mean) * (1 - 1e-9)
        for moved in _exchanged(_flat(np.where(usable, b - a, 0.0) / n), exchanges, seed):
            moved = moved.reshape(-1, *a.shape[1:])
            exchanged = function(mean_b - moved) - function(mean_a + moved)
            as_large += (np.abs(exchanged) >= bar).sum(0)
    known = np.isfinite(mean)
    ci = np.where(known, percentile_interval(centred(resampled, mean), len(a)), np.nan)
    return mean, ci, np.where(known, (1 + as_large) / (1 + exchanges), np.nan)


KEPT = ("layers", "heads", "queries")
"""Settings that say which part of the maps was kept."""


MOST_LISTED = 12
"""Kept layers, heads or queries that a sentence lists."""


def unlike(first: Measurement, second: Measurement) -> str:
    """Reason why two measurements are not of one quantity; "" if they are."""
    if first.metric != second.metric:
        return f"two numbers of one kind can be compared, not {first.metric} and {second.metric}"
    both = first.metric_settings, second.metric_settings
    for name in dict.fromkeys((*both[0], *both[1])):
        one, two = (settings.get(name) for settings in both)
        if one == two:
            continue
        if name not in KEPT:
            return f"it was measured with {name}={one} and with {name}={two}: measure both with the same settings"
        parts = (f"all {name}" if part is None else _listed(name, part) for part in (one, two))
        return f"of one {' were kept, of the other '.join(parts)}: capture both with the same {option(name)}"
    return ""


def _listed(name: str, part: Sequence[int]) -> str:
    """`layers 1, 3, 4`; of many their number."""
    return f"{name} {', '.join(map(str, part))}" if len(part) <= MOST_LISTED else f"{len(part)} {name}"


def aligned(first: Measurement, second: Measurement) -> tuple[np.ndarray, np.ndarray]:
    """Values [image, *cells] of both, float64, in the same order of images.

    Raises:
        InputError, ShapeError: they cannot be compared; see `paired_difference`.
    """
    if why := unlike(first, second):
        raise InputError(why)
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
    if len(uniform) == 2 and (np.abs(uniform[0] - uniform[1]) > 1e-6 + 1e-4 * np.abs(uniform[1])).any():  # NaN is not
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
    whole, counted = bool(usable.all()), _flat(usable.astype(np.float64))
    for counts in _rows(draws(len(a), resamples, seed), counted.shape[1]):
        n = None if whole else counts @ counted
        means = ((counts / len(a)) @ x if n is None else counts @ x / n for x in weighted)
        yield tuple(x.reshape(-1, *a.shape[1:]) for x in means)  # type: ignore[misc]


def _resampled_steps(step: np.ndarray, usable: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Mean differences of resampled images, [some resamples, cell]."""
    whole, counted = bool(usable.all()), usable.astype(np.float64)
    for counts in _rows(draws(len(step), resamples, seed), step.shape[1]):
        yield counts @ step / (float(len(step)) if whole else counts @ counted)


def _exchanged(step: np.ndarray, exchanges: int, seed: int) -> Iterator[np.ndarray]:
    """Gain of the first run's sum, [some exchanges, cell], when a random half of the images exchange their values.

    Args:
        step: [image, cell], second minus first.
    """
    rows = max(1, BLOCK_BYTES // 8 // max(step.shape))
    kept = exchanges * len(step) <= BLOCK_BYTES
    rng = np.random.default_rng([seed, 1])  # not the stream of the resampling
    for start in range(0, exchanges, rows):
        n = min(rows, exchanges - start)
        some = _chosen(len(step), exchanges, seed)[start : start + n] if kept else rng.integers(2, size=(n, len(step)))
        yield some.astype(np.float64) @ step


@lru_cache(maxsize=2)
def _chosen(n_images: int, exchanges: int, seed: int) -> np.ndarray:
    """[exchange, image], 0 or 1: which images exchange their values, drawn once for every metric."""
    return np.random.default_rng([seed, 1]).integers(2, size=(exchanges, n_images)).astype(np.uint8)


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
