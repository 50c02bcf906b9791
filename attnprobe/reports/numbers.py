"""Numbers, intervals, means and settings as text."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from attnprobe.core.accuracy import accuracy_interval
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.stats.interval import mean_of

NONE = "–"
"""Written where nothing was measured, or it is not a number."""


def number(x: float | None) -> str:
    """A number as text: counts as they are, others with three digits and at most three decimals unless tiny."""
    if x is None or not math.isfinite(x):
        return NONE
    if isinstance(x, int):
        return str(x)
    size = abs(x)
    if 0 < size < 0.0005 or size >= 1e7:
        return f"{x:.1e}"
    return f"{x:.3f}" if size < 0.9995 else f"{x:#.3g}".rstrip(".") if size < 999.5 else f"{x:.0f}"


def interval(low: float | None, high: float | None) -> str:
    """`4–6`; empty where there is none."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(low)} to {number(high)}" if low < 0 else f"{number(low)}–{number(high)}"


def with_interval(x: float | None, low: float | None, high: float | None) -> str:
    """`5 (4–6)`."""
    bounds = interval(low, high)
    return f"{number(x)} ({bounds})" if bounds and x is not None else number(x)


def ci_text(bounds: Sequence[float | None]) -> str:
    """` (95% CI 4–6)`; empty where there is none."""
    text = interval(*bounds)
    return f" (95% CI {text})" if text else ""


def mean_of_cells(m: Measurement, where: np.ndarray | None = None) -> str:
    """Mean over the finite cells (all, or those of `where`) with its interval, as text."""
    cells = np.isfinite(m.mean) & (True if where is None else where)
    return with_interval(*map(float, mean_of(m, cells))) if cells.any() else NONE


def accuracy_words(e: Examined) -> str:
    """`accuracy 75.3% (70.8%–79.3%, 400 images of 96 x 96 px, crop 0.9, bicubic)`; that there are no labels; or "".

    Another preparation of the same images gives another accuracy.
    """
    accuracy, n = e.info.get("accuracy"), e.info.get("n_labelled") or e.info.get("n_images")
    if accuracy is None or not n:
        unlabelled = e.info.get("images") and not e.class_names
        return "no accuracy: the images have no labels" if unlabelled else ""
    low, high = accuracy_interval(round(accuracy * n), n)
    prepared = f" of {words}" if (words := prepared_words(e)) else ""
    return f"accuracy {accuracy:.1%} ({low:.1%}–{high:.1%}, {n} image{'s' if n != 1 else ''}{prepared})"


def prepared_words(e: Examined, *, short: bool = False) -> str:
    """Preparation of the images for the model, in the words of `attnprobe evaluate`; empty where it is not known.

    Args:
        short: for a column, `96x96, crop 0.9`.
    """
    spec = e.info.get("spec") or {}
    if not {"size", "crop_pct", "interpolation"} <= spec.keys():
        return ""
    if short:
        return f"{'x'.join(map(str, spec['size']))}, crop {spec['crop_pct']:g}"
    return f"{' x '.join(map(str, spec['size']))} px, crop {spec['crop_pct']:g}, {spec['interpolation']}"


def neighbours(m: Measurement) -> np.ndarray:
    """[layer, layer], bool: cells that compare a block with the previous one; none where that one was not kept."""
    number = np.asarray(m.block_numbers)
    return number[None, :] == number[:, None] + 1


def is_counted(m: Measurement) -> bool:
    """True if `m` has a count of similar blocks: there are blocks to compare, and a value of each."""
    return m.summary["of"] > 1 and None not in m.summary["ratio"]


def telling_cells(m: Measurement) -> np.ndarray:
    """[*axes], bool: cells to average over: neighbouring blocks of [layer, layer], different heads of [.., head,
    head]."""
    if m.axes == ("layer", "layer"):
        return neighbours(m)
    if m.axes[-2:] == ("head", "head"):
        return np.broadcast_to(~np.eye(m.mean.shape[-1], dtype=bool), m.mean.shape)
    return np.ones(m.mean.shape, bool)


def neighbour_mean(m: Measurement) -> float:
    """Mean over neighbouring blocks; NaN for a single block."""
    values = m.mean[neighbours(m)]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def neighbour_means(m: Measurement) -> Callable[[np.ndarray], np.ndarray]:
    """Function [resample, layer, layer] -> mean over neighbouring blocks of each resample."""
    cells = neighbours(m)
    return lambda means: np.nanmean(means[:, cells], axis=1)


def settings_text(m: Measurement) -> str:
    """Everything that changes the numbers, in one line; it accompanies every one of them."""
    parts = [f"{name}={value}" for name, value in m.metric_settings.items()]
    hows = {
        "bootstrap": f"{m.settings['bootstrap']} resamples of the images",
        "poisson": f"{m.settings['bootstrap']} Poisson resamples of the images, copies among them included",
        "normal": "normal approximation",
    }
    how = hows.get(m.settings.get("interval", ""), "")
    seen = f"{m.n_images} images" if m.n_images != 1 else "1 image"
    parts.append(f"{m.n_images} groups of {m.n_grouped} images" if m.settings.get("group") else seen)
    if m.n_excluded:
        parts.append(f"{m.n_excluded} of them not finite somewhere and left out there")
    if m.n_images > 1 and how:
        parts.append(f"95 % interval from {how}")
    return ", ".join(parts)
