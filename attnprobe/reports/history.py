"""Figures of a run that was probed while it trained."""

from collections.abc import Iterator

import numpy as np

from attnprobe.core.history import History
from attnprobe.plots import filmstrip, onset
from attnprobe.plots.history import frame_tiles, frames
from attnprobe.plots.style import colour_bar, colours
from attnprobe.reports.drawing import Drawing, as_svg, canvas
from attnprobe.reports.numbers import number

MOST_FRAMES = 10


def history_drawings(name: str, history: History, width: float) -> Iterator[Drawing]:
    """Filmstrip of one run, then similarity and entropy over epoch and block."""
    if "layer_similarity" in history.matrices:
        yield _filmstrip(name, history, width)
    for metric, question in (
        ("similar_blocks", "which blocks repeat the previous block, and since when"),
        ("row_entropy", "entropy of attention rows by block and epoch"),
    ):
        if metric in history.blocks:
            yield _onset(name, history, metric, question, width)


def history_sentences(name: str, history: History) -> Iterator[str]:
    """Alarms of one run, and the time that its probe took."""
    yield from (f"{name}, epoch {alarm.epoch}: {alarm.text}." for alarm in history.alarms)
    yield f"{name}: {history.overhead()}."


def _filmstrip(name: str, history: History, width: float) -> Drawing:
    matrices = history.matrices["layer_similarity"]
    columns, rows = frame_tiles(len(frames(history.epochs, MOST_FRAMES))).size
    limits = (-1.0 if np.nanmin(matrices, initial=0) < -0.1 else 0.0, 1.0)
    with canvas(width, 0.9 + (width - 0.2) * rows / columns) as figure:
        ax = filmstrip(history, figure.add_subplot(), most=MOST_FRAMES, limits=limits, title="", colorbar=False)
        below = {"location": "bottom", "shrink": 0.7, "aspect": 40}
        colour_bar(ax, colours(limits), "mean cosine of attention vectors", matrices.round(4), **below)
        neighbours = np.nanmean(history.blocks["layer_similarity"][:, 1:], axis=1)
        alt = (
            f"Similarity of every pair of blocks of {name} over its epochs. Mean cosine of neighbouring blocks: "
            f"{number(float(neighbours[0]))} at epoch {history.epochs[0]}, {number(float(neighbours[-1]))} at epoch "
            f"{history.epochs[-1]}."
        )
        title = f"{name}: similarity of every pair of blocks while it trained"
        return as_svg(figure, alt, title, _settings(history, "layer_similarity"))


def _onset(name: str, history: History, metric: str, question: str, width: float) -> Drawing:
    values = history.blocks[metric]
    with canvas(width, 1.6 + 0.1 * max(values.shape[1], 12)) as figure:
        onset(history, figure.add_subplot(), metric=metric, title="")
        rho = history.settings[metric].get("rho")
        if rho is not None:
            counts = (values > rho).sum(1)
            found = f"{counts[0]} of {values.shape[1]} similar at epoch {history.epochs[0]}, {counts[-1]} at the last"
        else:
            means = np.nanmean(values, axis=1)
            found = (
                f"{number(float(means[0]))} nats at epoch {history.epochs[0]}, {number(float(means[-1]))} at the last"
            )
        return as_svg(figure, f"{name}: {question}. {found}.", f"{name}: {question}", _settings(history, metric))


def _settings(history: History, metric: str) -> str:
    dots = ["dots: counts as similar"] if metric == "similar_blocks" else []
    chosen = [f"{name}={value}" for name, value in history.settings[metric].items()]
    return ", ".join([*dots, *chosen, f"{len(history.image_ids)} images"]) + "."
