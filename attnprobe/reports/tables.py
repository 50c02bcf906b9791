"""All numbers as one long table, and a summary of the most important ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.sites import Site
from attnprobe.core.text import cell
from attnprobe.reports.numbers import (
    NONE,
    is_counted,
    mean_of_cells,
    neighbours,
    number,
    prepared_words,
    telling_cells,
    with_interval,
)

REST_OF_TYPES = ("sink_mass", "own_row_mass", "own_column_mass", "position_share")
"""Metrics measured for `head_types` alone; the summary has no rows of them."""

BASELINES = ("untrained", "uniform")
TAUS = (0.7, 0.8, 0.95)
"""Thresholds at which the summary gives the count of similar blocks, besides its own."""

COUNTED = ("layer", "head")
"""Axes whose positions are numbered from 1; the others have labels (a threshold, the name of a token)."""


QUESTIONS = {
    "The model": ("",),
    "Do blocks repeat one another?": ("similar_blocks", "layer_similarity", "layer_similarity_centred", "map_overlap",
                                      "map_overlap_matched", "map_cka"),
    "Do the heads of a block differ?": ("head_divergence", "head_similarity", "head_dependence", "head_output_norm",
                                        "head_output_similarity", "head_types"),
    "How broad is attention, and where does it go?": ("row_entropy", "effective_rank", "rank_residual",
                                                      "attention_distance", "prefix_mass", "content_overlap"),
    "Do tokens and images stay apart?": ("token_similarity", "token_rank", "image_similarity", "largest_activation"),
}  # fmt: skip
"""Questions that the summary answers, with the metrics of its rows; other metrics come last."""

OTHERS = "What else was measured?"

PLAIN = {
    "map_overlap": "overlap with the previous block",
    "map_overlap_matched": "the same overlap, heads matched",
    "content_overlap": "overlap beyond another image's",
    "head_similarity": "cosine between heads",
    "token_rank": "effective rank of tokens",
    "image_similarity": "cosine between images",
    "largest_activation": "largest activation over median",
}
"""Rows of default metrics that have none in `_usual_quantities`, in words."""

SUMMARY_HEADER = "mean over images and blocks (95 % CI)"
"""Above the labels of `summary_table`."""


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV without its index, every text safe in a spreadsheet and on a terminal."""
    texts = {name: column.map(cell) for name, column in table.select_dtypes(exclude="number").items()}
    return table.assign(**texts).to_csv(index=False, lineterminator="\n")  # type: ignore[arg-type]


def long_table(runs: Sequence[Examined]) -> pd.DataFrame:
    """One row per value: run, metric, where, which block and head (from 1), mean, std, interval, baselines.

    A second axis of the same name is `layer_2` or `head_2`. What does not apply to a row is missing.
    """
    parts = [_rows(e.name, m) for e in runs for m in e.measurements.values()]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    first = ["run", "metric", "site", "effective", "stage", "unit", "layer", "layer_2", "head", "head_2"]
    last = ["mean", "std", "low", "high", "n_images", "n_excluded", "untrained", "uniform"]
    labels = [column for column in table.columns if column not in first + last]
    return table.reindex(columns=[*first, *labels, *last])


def _rows(run: str, m: Measurement) -> pd.DataFrame:
    columns: dict[str, object] = {
        "run": run, "metric": m.metric, "site": m.site, "effective": m.is_effective, "stage": m.stage, "unit": m.unit,
        "n_images": m.n_images, "n_excluded": m.n_excluded,
    }  # fmt: skip
    positions = np.indices(m.mean.shape).reshape(len(m.axes), -1)
    for i, (axis, position) in enumerate(zip(m.axes, positions, strict=True)):
        name = axis if axis not in m.axes[:i] else f"{axis}_2"
        if axis in COUNTED or axis not in m.coords:
            kept = m.coords.get(axis)
            columns[name] = pd.array(position + 1 if kept is None else np.asarray(kept)[position], dtype="Int64")
        else:
            columns[name] = [m.coords[axis][p] for p in position]
    low, high = m.ci
    values = {"mean": m.mean, "std": m.std, "low": low, "high": high}
    columns |= {name: np.asarray(v, dtype=float).ravel() for name, v in values.items()}
    for name in BASELINES:
        baseline = m.baselines.get(name)
        columns[name] = np.nan if baseline is None else np.ravel(baseline.mean).astype(float)
    return pd.DataFrame(columns)


def summary_table(runs: Sequence[Examined]) -> pd.DataFrame:
    """Summary for reading: quantities down, runs across, cells such as `5 of 16 (4–6)`.

    Rows that no run can fill are left out. Where a variant changes its maps after the softmax, cosines have a row for
    each matrix.
    """
    rows = {label: cells for label, _, cell in _quantities(runs) if set(cells := [cell(e) for e in runs]) != {NONE}}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[e.name for e in runs])


def by_question(labels: Mapping[str, str]) -> dict[str, list[str]]:
    """Labels of the summary's rows under the questions that they answer.

    Args:
        labels: {label: its metric}, as `summary_metrics` returns.
    """
    question_of = {metric: question for question, metrics in QUESTIONS.items() for metric in metrics}
    groups: dict[str, list[str]] = {question: [] for question in (*QUESTIONS, OTHERS)}
    for label, metric in labels.items():
        groups[question_of.get(metric, OTHERS)].append(label)
    return {question: rows for question, rows in groups.items() if rows}


def summary_metrics(runs: Sequence[Examined]) -> dict[str, str]:
    """The metric behind each row of the summary; "" for none."""
    return {label: metric for label, metric, _ in _quantities(runs)}


Cell = Callable[[Examined], str]


def _quantities(runs: Sequence[Examined]) -> Iterator[tuple[str, str, Cell]]:
    """The rows of the summary: a label, the metric it shows, and what to write for a run.

    What only the types of heads rest on has no rows beside them, nor has what is scaled so that its mean says nothing.
    """
    typed = any(m.metric == "head_types" for e in runs for m in e.measurements.values())
    shown = {"", "head_importance", *(REST_OF_TYPES if typed else ())}
    for row in _usual_quantities(runs):
        shown.add(row[1])
        yield row
    for m in {m.metric: m for e in runs for m in e.measurements.values() if m.metric not in shown}.values():
        if (write := _mean_of.get(m.axes)) is not None:
            label = PLAIN.get(m.metric, m.metric.replace("_", " ")) + (f" [{m.unit}]" if m.unit else "")
            yield label, m.metric, _cell(m.metric, write, "weights", "effective")


def _usual_quantities(runs: Sequence[Examined]) -> Iterator[tuple[str, str, Cell]]:
    both = any(e.measurements.change_after_softmax for e in runs)
    yield "accuracy", "", lambda e: f"{e.info['accuracy']:.1%}" if e.info.get("accuracy") is not None else NONE
    yield "accuracy is of images of", "", lambda e: prepared_words(e) or NONE
    yield "images", "", lambda e: str(max((m.n_images for m in e.measurements.values()), default=0))
    for metric, label, write in (
        ("similar_blocks", "similar blocks", _count),
        ("similar_blocks", f"similar, {'/'.join(BASELINES)}", _baselines),
        ("similar_blocks", f"similar at tau {'/'.join(map(str, TAUS))}", _curve),
        ("similar_blocks", "similar from block", lambda m: number(m.summary["collapsed_from"])),
        ("layer_similarity", "cosine of neighbours", lambda m: mean_of_cells(m, neighbours(m))),
        ("layer_similarity_centred", "centred cosine of neighbours", lambda m: mean_of_cells(m, neighbours(m))),
    ):
        yield label + (", effective" if both else ""), metric, _cell(metric, write, "effective")
        if both:
            yield f"{label}, softmax", metric, _cell(metric, write, "weights")
    for metric, label, write in (
        ("head_divergence", "redundant heads", _redundant),
        ("head_divergence", "effective heads per block", _heads),
        ("row_entropy", "row entropy [nats]", mean_of_cells),
        ("rank_residual", "rank residual", mean_of_cells),
        ("effective_rank", f"effective rank{_orders(runs)}", mean_of_cells),
        ("attention_distance", "attention distance [px]", mean_of_cells),
        ("prefix_mass", "attention on prefix tokens", _prefix),
        ("head_types", "most frequent head types", _types),
    ):
        yield label, metric, _cell(metric, write, "weights")
    yield (
        "token similarity, last block",
        "token_similarity",
        _cell("token_similarity", _last, "weights", "effective", last=True),
    )


def _orders(runs: Sequence[Examined]) -> str:
    """`, order 2`: of the effective ranks measured; empty for the usual order 1."""
    found = {m.settings.get("order", 1) for e in runs for m in e.measurements.values() if m.metric == "effective_rank"}
    return f", order {'/'.join(map(str, sorted(found)))}" if found - {1} else ""


def _cell(metric: str, write: Callable[[Measurement], str], *sites: Site, last: bool = False) -> Cell:
    """Writes the metric of a run at the first of these sites where it was measured; of several stages of the one with
    the most blocks, or of the last one, which is named."""

    def cell(e: Examined) -> str:
        m = e.measurements.prefer(metric, *sites)
        if m is not None and last:
            m = max(e.measurements.in_network(m), key=lambda its: its.block_numbers[-1])
        return NONE if m is None else f"{write(m)}, {m.stage}" if m.network else write(m)

    return cell


def _count(m: Measurement) -> str:
    s = m.summary
    if is_counted(m):
        return _of(s["count"], s["of"], *s["count_ci"])
    return f"at least {s['count']} of {s['of']}" if s["count"] else NONE


def _baselines(m: Measurement) -> str:
    """Similar blocks of the untrained network and of uniform attention."""
    counts = (m.baselines[name].summary["count"] if name in m.baselines else None for name in BASELINES)
    return "/".join(map(number, counts)) if m.baselines and is_counted(m) else NONE


def _curve(m: Measurement) -> str:
    """Similar blocks at each of `TAUS`."""
    counts = dict(zip(m.summary["curve"]["threshold"], m.summary["curve"]["count"], strict=True))
    return "/".join(str(counts[tau]) for tau in TAUS) if is_counted(m) else NONE


def _redundant(m: Measurement) -> str:
    s = m.summary
    return _of(s["redundant"], s["of"], *s["redundant_ci"]) if s else NONE


def _heads(m: Measurement) -> str:
    known = [n for n in m.summary.get("effective_heads", ()) if n is not None]
    return f"{number(float(np.mean(known)))} of {m.mean.shape[1]}" if known else NONE


def _of(count: int, total: int, low: int | None, high: int | None) -> str:
    bounds = with_interval(count, low, high).partition(" ")[2]
    return f"{count} of {total} {bounds}".rstrip()


def _prefix(m: Measurement) -> str:
    return number(float(np.nansum(m.mean, axis=-1).mean()))


def _types(m: Measurement) -> str:
    counts = sorted(m.summary["counts"].items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {name}" for name, count in counts[:2] if count)


def _last(m: Measurement) -> str:
    return with_interval(float(m.mean[-1]), float(m.ci[0, -1]), float(m.ci[1, -1]))


_mean_of: dict[tuple[str, ...], Callable[[Measurement], str]] = {
    ("layer",): mean_of_cells,
    ("layer", "head"): mean_of_cells,
    ("layer", "head", "prefix"): _prefix,
    ("layer", "layer"): lambda m: mean_of_cells(m, telling_cells(m)),
    ("layer", "head", "head"): lambda m: mean_of_cells(m, telling_cells(m)),
}
"""Cell of a metric that has no row of its own: the mean over blocks and heads, over neighbouring blocks, or over pairs
of different heads."""
