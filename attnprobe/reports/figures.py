"""Which figures does a report show, and what does each say in words?"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.examined import Examined, Picture
from attnprobe.core.measurement import Measurement
from attnprobe.core.visible import short
from attnprobe.plots import (
    attention_grid,
    depth_curve,
    head_grid,
    layer_head,
    layer_matrix,
    shared_limits,
    threshold_curve,
)
from attnprobe.plots.attention_grid import attention_limits, attention_of
from attnprobe.plots.depth_curve import by_depth
from attnprobe.plots.style import SITES, colour_bar, colours, quantity
from attnprobe.plots.tiles import Tiles
from attnprobe.reports.drawing import GREY, Drawing, as_photograph, as_svg, canvas
from attnprobe.reports.history import history_drawings
from attnprobe.reports.needed import removal_drawings, told
from attnprobe.reports.numbers import neighbour_mean, number, settings_text
from attnprobe.reports.sites import at_sites

WIDTH = 4.8
"""Inches of every figure: two beside one another on a desk, one on a phone with letters still legible."""

MOST_PICTURES = 4


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that answer one question, how to read them, and what there is to say beside them."""

    title: str
    reading: str
    drawings: tuple[Drawing, ...]
    sentences: tuple[str, ...] = ()


def sections(runs: Sequence[Examined]) -> list[Section]:
    """All figures of a report; what was not measured is left out."""
    tried = [(name, e.evidence) for name, e in zip(_short_names(runs), runs, strict=True) if e.evidence is not None]
    made = [
        Section(
            "Which blocks repeat one another?",
            "Each square compares two blocks. Where it has the colour of the diagonal, they look at the same places. "
            "Raw cosines are near 1 for any maps that are near uniform; centred ones are not.",
            tuple(_matrices(runs)),
        ),
        Section(
            "From which block on, and how sure?",
            "First: the share of a block's attention vectors that repeat those of the block it is compared with; a "
            "block above the grey line counts as similar. Second: how many do, for every choice of the threshold. "
            "Bands are 95 % intervals; dotted lines the same network before training; dash-dotted, uniform attention.",
            tuple(_curves(runs)),
        ),
        Section(
            "Do the heads of a block differ?",
            "One square matrix per block, one row and column per head. Where a cell has the colour of the diagonal, "
            "two heads attend alike.",
            tuple(_head_grids(runs)),
        ),
        Section(
            "What does each head do, and what becomes of the tokens?",
            "One square per head, from the first block at the left to the last at the right. Token similarity is the "
            "mean cosine between the tokens a block puts out; near 1, all of them say the same.",
            (*_heat_maps(runs), *_token_curve(runs)),
        ),
        Section(
            "Where does it look?",
            "Attention of the class token, or of the mean query where there is none, over the image: one tile per "
            "block, mean over heads; every run shows an image on the same colour scale.",
            tuple(_pictures(runs)),
        ),
        Section(
            "Are they needed?",
            "What is called similar or redundant is taken away, the cheapest first, and the accuracy measured: the "
            "block is left out, the head puts out 0. Bands are 95 % intervals; grey is the whole model. Chosen on the "
            "images that it is measured on, so a little too good.",
            tuple(drawing for name, e in tried for drawing in removal_drawings(name, e, WIDTH)),
            tuple(sentence for name, e in tried for sentence in told(name, e)),
        ),
        Section(
            "What happened while it trained?",
            "Measured on a few fixed images after some of the epochs. Each square compares all pairs of blocks after "
            "one epoch. Networks start near uniform, and then every block repeats the one before; trouble is what "
            "begins later, or stays.",
            tuple(_histories(runs)),
            tuple(_told(runs)),
        ),
    ]
    return [section for section in made if section.drawings or section.sentences]


@dataclass(frozen=True, slots=True)
class Shown:
    """A measurement under the name a reader knows it by."""

    name: str
    m: Measurement

    @property
    def place(self) -> str:
        return SITES[self.m.site]


def _shown(runs: Sequence[Examined], metric: str) -> list[Shown]:
    """The metric of every run, at both sites where they differ."""
    names = _short_names(runs)
    return [Shown(name, m) for name, e in zip(names, runs, strict=True) for m in at_sites(e, metric)]


def _short_names(runs: Sequence[Examined]) -> list[str]:
    """Names that fit a legend; numbered where shortening made them equal."""
    names = [short(e.name) for e in runs]
    return [name if names.count(name) == 1 else f"{i}: {name}" for i, name in enumerate(names, 1)]


def _settings(shown: Sequence[Shown]) -> str:
    """The settings behind a figure, once for all runs that share them."""
    sharing: dict[str, list[str]] = {}
    for s in shown:
        twice = [other.name for other in shown].count(s.name) > 1
        sharing.setdefault(settings_text(s.m), []).append(f"{s.name} ({s.place})" if twice else s.name)
    if len(sharing) == 1:
        return f"{next(iter(sharing))}."
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in sharing.items()) + "."


def _matrices(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """Raw and centred similarity side by side, a figure per run and site, one scale for all of them."""
    raw, centred = _shown(runs, "layer_similarity"), _shown(runs, "layer_similarity_centred")
    places = dict.fromkeys((s.name, s.m.site) for s in (*raw, *centred))
    limits = shared_limits([s.m for s in (*raw, *centred)]) if places else (0, 1)
    for name, site in places:
        pair = {
            kind: s.m
            for kind, column in (("raw", raw), ("centred", centred))
            for s in column
            if (s.name, s.m.site) == (name, site)
        }
        with canvas(WIDTH, 3.2) as figure:
            axes = figure.subplots(1, len(pair), squeeze=False)[0]
            for ax, (kind, m) in zip(axes, pair.items(), strict=True):
                layer_matrix(m, ax, limits=limits, title=kind, colorbar=False)
            values = np.concatenate([m.mean.ravel() for m in pair.values()])
            below = {"location": "bottom", "shrink": 0.7, "aspect": 40}
            colour_bar(list(axes), colours(limits), "mean cosine of attention vectors", values, **below)
            found = [f"{number(neighbour_mean(m))} {kind}" for kind, m in pair.items()]
            title = f"{name}, {SITES[site]}: similarity of every pair of blocks"
            settings = "; ".join(f"{kind}: {settings_text(m)}" for kind, m in pair.items())
            alt = f"{title}. Mean cosine of neighbouring blocks: {', '.join(found)}."
            yield as_svg(figure, alt, title, f"{settings}.")


def _curves(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """The ratio against depth, and the count against the threshold."""
    shown = _shown(runs, "similar_blocks")
    if not shown:
        return
    height = 3.0 + 0.1 * len(shown)  # for the legend
    with canvas(WIDTH, height) as figure:
        _draw_lines(figure.add_subplot(), shown, depth_curve)
        found = [f"{s.name}, {s.place}: {_largest(s.m)}" for s in shown]
        yield as_svg(
            figure,
            f"Share of similar attention vectors in each block. {'; '.join(found)}.",
            "Similarity ratio against depth",
            _settings(shown),
        )
    with canvas(WIDTH, height) as figure:
        _draw_lines(figure.add_subplot(), shown, threshold_curve)
        found = [f"{s.name}, {s.place}: {_range_of_counts(s.m)}" for s in shown]
        yield as_svg(
            figure,
            f"Number of similar blocks for every threshold. {'; '.join(found)}.",
            "Similar blocks against the threshold tau",
            _settings(shown),
        )


def _token_curve(runs: Sequence[Examined]) -> Iterator[Drawing]:
    shown = _shown(runs, "token_similarity")
    if not shown:
        return
    with canvas(WIDTH, 3.2) as figure:
        _draw_lines(figure.add_subplot(), shown, depth_curve)
        found = [f"{s.name}: {number(s.m.mean[0])} in block 1, {number(s.m.mean[-1])} in the last" for s in shown]
        alt = f"Similarity of the tokens after each block. {'; '.join(found)}."
        yield as_svg(figure, alt, "Token similarity against depth", _settings(shown))


def _draw_lines(ax: Axes, shown: Sequence[Shown], draw: Callable[..., Axes]) -> None:
    """A colour per run; where a run has two sites, the softmax is dashed."""
    runs = list(dict.fromkeys(s.name for s in shown))
    for s in shown:
        twice = sum(other.name == s.name for other in shown) > 1
        dashed = twice and s.m.is_effective is False
        label = f"{s.name}, {s.place.split()[0]}" if twice else s.name
        draw(s.m, ax, label=label, color=f"C{runs.index(s.name)}", linestyle="--" if dashed else "-")


def _head_grids(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """One figure per run, of the divergence where it was measured, else of the cosine; the metric's full range."""
    shown = _shown(runs, "head_divergence") or _shown(runs, "head_similarity")
    for s in shown:
        width, height = Tiles(len(s.m.mean)).size
        with canvas(WIDTH, 0.1 + (WIDTH - 1.2) * height / width) as figure:
            head_grid(s.m, figure.add_subplot(), title="", limits=shared_limits([s.m for s in shown]))
            summary = s.m.summary
            found = f"{summary['redundant']} of {summary['of']} heads redundant" if summary else "not clustered"
            alt = f"{quantity(s.m)} between the heads of each block of {s.name}, {s.place}: {found}."
            yield as_svg(figure, alt, f"{s.name}, {s.place}: {quantity(s.m)}", _settings([s]))


def _heat_maps(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """One figure per metric, the runs below one another on one scale."""
    usual = ("row_entropy", "attention_distance", "effective_rank", "rank_residual", "prefix_mass")
    others = [m.metric for e in runs for m in e.measurements.values() if m.axes == ("layer", "head")]
    for metric in dict.fromkeys((*usual, *others)):
        shown = _shown(runs, metric)
        if not shown:
            continue
        limits = shared_limits([s.m for s in shown])
        heights = [0.75 + max(1.0, 0.12 * s.m.mean.shape[1]) for s in shown]
        with canvas(WIDTH, max(2.4, 0.1 + sum(heights))) as figure:  # room for the label of the colour bar
            axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
            for ax, s in zip(axes, shown, strict=True):
                layer_head(s.m, ax, limits=limits, title=f"{s.name}, {s.place}", colorbar=False)
            values = np.concatenate([s.m.mean.ravel() for s in shown])
            colour_bar(list(axes), colours(limits), quantity(shown[0].m), values, aspect=20 * len(shown))
            found = [f"{s.name}, {s.place}: {_first_and_last(s.m)}" for s in shown]
            alt = f"{quantity(shown[0].m)} of every head. Mean over heads, {'; '.join(found)}."
            yield as_svg(figure, alt, f"{quantity(shown[0].m)} by block and head", _settings(shown))


def _pictures(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """The same image of every run beside one another."""
    chosen = [(name, picture) for name, e in zip(_short_names(runs), runs, strict=True) for picture in e.pictures]
    ids = list(dict.fromkeys(picture.image_id for _, picture in chosen))[:MOST_PICTURES]
    for image_id in ids:
        same = [(name, picture) for name, picture in chosen if picture.image_id == image_id]
        limits = attention_limits([picture for _, picture in same])
        for name, picture in same:
            yield _picture(name, picture, limits)


def _histories(runs: Sequence[Examined]) -> Iterator[Drawing]:
    for name, e in zip(_short_names(runs), runs, strict=True):
        if e.history is not None:
            yield from history_drawings(name, e.history, WIDTH)


def _told(runs: Sequence[Examined]) -> Iterator[str]:
    for e in runs:
        if e.history is not None:
            yield from (f"{e.name}, epoch {alarm.epoch}: {alarm.text}." for alarm in e.history.alarms)
            yield f"{e.name}: {e.history.overhead()}."


def _picture(name: str, picture: Picture, limits: tuple[float, float]) -> Drawing:
    rows, cols = picture.pixels.shape[:2]
    width, height = Tiles(len(picture.attention) + 1, height=rows / cols).size
    attention = attention_of(picture)
    told = f"Seen as {picture.prediction or 'unknown'}"
    told += f" ({picture.probability:.0%})" if math.isfinite(picture.probability) else ""
    told += f", is {picture.label}." if picture.label else "."
    title = f"{name}, {SITES.get(picture.site, picture.site)}: attention over {picture.image_id}"
    peaks = attention.reshape(len(attention), -1).max(1)
    alt = (
        f"Attention of each of {len(attention)} blocks of {name} over image {picture.image_id}: "
        f"the largest value of a patch goes from {number(peaks[0])} in block 1 to {number(peaks[-1])} in the last."
    )
    with canvas(WIDTH, 0.1 + (WIDTH - 1.2) * height / width, ink=GREY) as figure:
        attention_grid(picture, figure.add_subplot(), limits=limits, title="")
        return as_photograph(figure, alt, title, told)


def _largest(m: Measurement) -> str:
    ratio, _, _ = by_depth(m)
    if not np.isfinite(ratio).any():
        return "unknown"
    block = int(np.nanargmax(ratio))
    count = f"{m.summary['count']} of {m.summary['of']} blocks similar"
    return f"at most {number(ratio[block])}, in block {block + 1}; {count}"


def _range_of_counts(m: Measurement) -> str:
    counts = m.summary["curve"]["count"]
    chosen = f"{m.summary['count']} at {m.summary['tau']}"
    return f"from {max(counts)} at {m.summary['curve']['threshold'][0]} over {chosen} to {min(counts)} at the strictest"


def _first_and_last(m: Measurement) -> str:
    per_block = (m.mean if m.mean.ndim == 2 else m.mean.sum(-1)).mean(1)
    return f"{number(per_block[0])} in block 1, {number(per_block[-1])} in the last"
