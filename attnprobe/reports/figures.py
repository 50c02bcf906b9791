"""Figures of a report, by section, each with a description in words."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.examined import AttendedImage, Examined, Precision
from attnprobe.core.measurement import Measurement
from attnprobe.core.sites import SITES
from attnprobe.io.progress import progress
from attnprobe.plots import (
    attention_grid,
    depth_curve,
    layer_matrix,
    plot,
    precision_curve,
    shared_limits,
    threshold_curve,
)
from attnprobe.plots.attention_grid import attention_limits, attention_of
from attnprobe.plots.depth import by_depth
from attnprobe.plots.style import colour_bar, colours, quantity
from attnprobe.plots.tiles import Tiles
from attnprobe.reports.drawing import GREY, Drawing, as_photograph, as_svg, canvas
from attnprobe.reports.head_figures import AXES, LEGEND, atlases, head_grids, heat_maps
from attnprobe.reports.history import history_drawings, history_sentences
from attnprobe.reports.numbers import neighbour_mean, number, settings_text
from attnprobe.reports.removal import removal_drawings, removal_sentences
from attnprobe.reports.series import Series, named, series_of, settings_of

WIDTH = 4.8
"""Width of every figure in inches: two fit side by side on a desk, one on a phone with legible letters."""

MOST_PICTURES = 4

DRAWN = ("layer_similarity", "layer_similarity_centred", "similar_blocks", "head_divergence", "head_similarity",
         "head_types", "token_similarity")  # fmt: skip
"""Metrics that have figures of their own, as those of single heads have."""


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that answer one question, how to read them, and sentences that accompany them."""

    title: str
    reading: str
    drawings: tuple[Drawing, ...]
    sentences: tuple[str, ...] = ()


def sections(runs: Sequence[Examined]) -> list[Section]:
    """Sections of a report; those without a measurement are left out."""
    probed = [(name, e.history) for name, e in named(runs) if e.history is not None]
    with_evidence = [(name, e.evidence) for name, e in named(runs) if e.evidence is not None]
    parts = [
        (
            "Which blocks repeat one another?",
            "Each square compares two blocks. Where it has the colour of the diagonal, they attend to the same places. "
            "Raw cosines are near 1 for any maps that are near uniform; centred ones are not.",
            _matrices(runs),
        ),
        (
            "From which block on, and how sure?",
            "First: the share of a block's attention vectors that repeat those of the block it is compared with; a "
            "block above the grey line counts as similar. Second: how many do, for every choice of the threshold. "
            "Then: the interval that a number would have on fewer or more images like these; the dot is at those there "
            "are. Bands are 95 % intervals; dotted lines the same network before training; dash-dotted, uniform "
            "attention.",
            chain(_curves(runs), _precisions(runs)),
        ),
        (
            "Do the heads of a block differ?",
            "One square matrix per block, one row and column per head. Where a cell has the colour of the diagonal, "
            "two heads attend alike.",
            head_grids(runs, WIDTH),
        ),
        ("What kind of head is each?", LEGEND, atlases(runs, 2 * WIDTH)),
        (
            "What does each head do, and what becomes of the tokens?",
            "One square per head, from the first block at the left to the last at the right. Token similarity is the "
            "mean cosine between the tokens a block outputs; near 1, all of them say the same.",
            chain(heat_maps(runs, WIDTH), _token_curve(runs)),
        ),
        (
            "What else was measured?",
            "Metrics that have no figure above, for every block or pair of blocks.",
            _others(runs),
        ),
        (
            "What does each block attend to?",
            "Attention of the class token, or of the mean query where there is none, over the image: one tile per "
            "block, mean over heads; every run shows an image on the same colour scale.",
            _pictures(runs),
        ),
        (
            "Are they needed?",
            "What is called similar or redundant is removed, the cheapest first, and the accuracy measured: the block "
            "is left out, the output of the head is 0. Bands are 95 % intervals; grey is the whole model. Some of the "
            "images chose the order, and the others are measured.",
            (drawing for name, e in with_evidence for drawing in removal_drawings(name, e, WIDTH)),
            (sentence for name, e in with_evidence for sentence in removal_sentences(name, e)),
        ),
        (
            "What happened while it trained?",
            "Measured on a few fixed images after some of the epochs. Each square compares all pairs of blocks after "
            "one epoch. Networks start near uniform, and then every block repeats the previous one; trouble is what "
            "begins later, or stays.",
            (drawing for name, h in probed for drawing in history_drawings(name, h, WIDTH)),
            (sentence for e in runs if e.history is not None for sentence in history_sentences(e.name, e.history)),
        ),
    ]
    made = []
    with progress("draw the report", len(parts)) as advance:
        for title, reading, drawings, *sentences in parts:
            made.append(Section(title, reading, tuple(drawings), tuple(chain(*sentences))))
            advance()
    return [section for section in made if section.drawings or section.sentences]


def _matrices(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """Raw and centred similarity side by side, a figure per run and site, one scale for all of them."""
    raw, centred = series_of(runs, "layer_similarity"), series_of(runs, "layer_similarity_centred")
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
                ax.tick_params(axis="x", labelsize=7)  # twelve numbers side by side in half of a figure
            values = np.concatenate([m.mean.ravel() for m in pair.values()])
            below = {"location": "bottom", "shrink": 0.7, "aspect": 40}
            colour_bar(list(axes), colours(limits), "mean cosine of attention vectors", values, **below)
            found = [f"{number(neighbour_mean(m))} {kind}" for kind, m in pair.items()]
            title = f"{name}, {SITES[site]}: similarity of every pair of blocks"
            settings = "; ".join(f"{kind}: {settings_text(m)}" for kind, m in pair.items())
            alt = f"{title}. Mean cosine of neighbouring blocks: {', '.join(found)}."
            yield as_svg(figure, alt, title, f"{settings}.")


def _curves(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """Curves of the ratio against depth, and of the count against the threshold."""
    every = series_of(runs, "similar_blocks")
    height = 3.0 + 0.1 * len(every)  # for the legend
    for draw, title, alt, text in (
        (depth_curve, "Similarity ratio against depth", "Share of similar attention vectors in each block", _largest),
        (threshold_curve, "Similar blocks against the threshold tau", "Number of similar blocks for every threshold",
         _range_of_counts),
    ) if every else ():  # fmt: skip
        found = [f"{s.name}, {s.place}: {text(s.m)}" for s in every]
        yield _curve(every, draw, height, title, f"{alt}. {'; '.join(found)}.")


def _curve(every: Sequence[Series], draw: Callable[..., Axes], height: float, title: str, alt: str) -> Drawing:
    """A line for each of the series, and their settings."""
    with canvas(WIDTH, height) as figure:
        _draw_lines(figure.add_subplot(), every, draw)
        return as_svg(figure, alt, title, settings_of(every))


def _precisions(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """A figure per number whose precision is known, on effective attention."""
    for key in dict.fromkeys(key for e in runs for key in e.precision):
        every = [(n, name, e.precision[key]) for n, (name, e) in enumerate(named(runs)) if key in e.precision]
        number_of = every[0][2].of
        with canvas(WIDTH, 3.0 + 0.1 * len(every)) as figure:
            ax = figure.add_subplot()
            for n, name, p in every:
                precision_curve(p, ax, label=name, color=f"C{n}")
            found = "; ".join(f"{name}: {number(p.value)}, {_interval_text(p)}" for _, name, p in every)
            title = f"How many images are enough: {number_of}"
            counts = " and ".join(dict.fromkeys(str(p.n_images) for _, _, p in every))
            settings = f"Drawn with replacement from the {counts} images there are."
            yield as_svg(figure, f"{title}. {found}.", title, settings)


def _interval_text(p: Precision) -> str:
    """The interval on the fewest images, on those at hand, and on the most."""
    places = dict.fromkeys((0, p.sizes.index(p.n_images), len(p.sizes) - 1))
    return ", ".join(f"{number(float(p.low[i]))} to {number(float(p.high[i]))} on {p.sizes[i]} images" for i in places)


def _token_curve(runs: Sequence[Examined]) -> Iterator[Drawing]:
    if every := series_of(runs, "token_similarity"):
        found = [f"{s.name}: {number(s.m.mean[0])} in block 1, {number(s.m.mean[-1])} in the last" for s in every]
        alt = f"Similarity of the tokens after each block. {'; '.join(found)}."
        yield _curve(every, depth_curve, 3.2, "Token similarity against depth", alt)


def _others(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """A figure per run and site of every metric without figures of its own, by its axes."""
    metrics = dict.fromkeys(m.metric for e in runs for m in e.measurements.values())
    for s in (s for metric in metrics for s in series_of(runs, metric)):
        if s.m.metric in DRAWN or s.m.axes in AXES:
            continue
        with canvas(WIDTH, 3.6) as figure:
            title = f"{s.name}, {s.place}: {quantity(s.m)}"
            plot(s.m, figure.add_subplot()).set_title("")
            values = s.m.mean[np.isfinite(s.m.mean)]
            found = f"from {number(float(values.min()))} to {number(float(values.max()))}" if values.size else "unknown"
            yield as_svg(figure, f"{title}, {found}.", title, f"{settings_text(s.m)}.")


def _draw_lines(ax: Axes, every: Sequence[Series], draw: Callable[..., Axes]) -> None:
    """A colour per run; where a run has two sites, the softmax is dashed."""
    runs = list(dict.fromkeys(s.name for s in every))
    for s in every:
        twice = sum(other.name == s.name for other in every) > 1
        dashed = twice and s.m.is_effective is False
        label = f"{s.name}, {s.place.split()[0]}" if twice else s.name
        draw(s.m, ax, label=label, color=f"C{runs.index(s.name)}", linestyle="--" if dashed else "-")


def _pictures(runs: Sequence[Examined]) -> Iterator[Drawing]:
    """Attention over a few images, the runs of an image side by side."""
    chosen: dict[str, list[tuple[str, AttendedImage]]] = {}
    for name, e in named(runs):
        for picture in e.pictures:
            chosen.setdefault(picture.image_id, []).append((name, picture))
    for same in list(chosen.values())[:MOST_PICTURES]:
        limits = attention_limits([picture for _, picture in same])
        yield from (_picture(name, picture, limits) for name, picture in same)


def _picture(name: str, picture: AttendedImage, limits: tuple[float, float]) -> Drawing:
    rows, cols = picture.pixels.shape[:2]
    width, height = Tiles(len(picture.attention) + 1, height=rows / cols).size
    attention = attention_of(picture)
    outcome = f"Predicted {picture.prediction or 'unknown'}"
    outcome += f" ({picture.probability:.0%})" if math.isfinite(picture.probability) else ""
    outcome += f", label {picture.label}." if picture.label else "."
    title = f"{name}, {SITES.get(picture.site, picture.site)}: attention over {picture.image_id}"
    peaks = attention.reshape(len(attention), -1).max(1)
    alt = (
        f"Attention of each of {len(attention)} blocks of {name} over image {picture.image_id}: "
        f"the largest value of a patch goes from {number(peaks[0])} in block 1 to {number(peaks[-1])} in the last."
    )
    with canvas(WIDTH, 0.1 + (WIDTH - 1.2) * height / width, ink=GREY) as figure:
        attention_grid(picture, figure.add_subplot(), limits=limits, title="")
        return as_photograph(figure, alt, title, "", note=outcome)


def _largest(m: Measurement) -> str:
    ratio, _, _ = by_depth(m)
    if not np.isfinite(ratio).any():
        return "unknown"
    block = int(np.nanargmax(ratio))
    count = f"{m.summary['count']} of {m.summary['of']} blocks similar"
    return f"at most {number(ratio[block])}, in block {m.block_numbers[block]}; {count}"


def _range_of_counts(m: Measurement) -> str:
    counts = m.summary["curve"]["count"]
    chosen = f"{m.summary['count']} at {m.summary['tau']}"
    return f"from {max(counts)} at {m.summary['curve']['threshold'][0]} over {chosen} to {min(counts)} at the strictest"
