"""Figures of single heads: matrices of heads, types with mean maps, and heat maps over block and head."""

from collections.abc import Iterator, Sequence

import numpy as np

from attnprobe.core.browse import Browsable
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.plots import head_atlas, head_grid, layer_head, shared_limits
from attnprobe.plots.head_atlas import SHORT, atlas_size
from attnprobe.plots.style import colour_bar, colours, quantity
from attnprobe.plots.tiles import Tiles
from attnprobe.reports.drawing import GREY, Drawing, as_photograph, as_svg, canvas
from attnprobe.reports.numbers import number, settings_text
from attnprobe.reports.series import Series, named, series_of, settings_of

AXES = (("layer", "head"), ("layer", "head", "prefix"))
USUAL = ("row_entropy", "attention_distance", "effective_rank", "rank_residual", "prefix_mass")


def head_grids(runs: Sequence[Examined], width: float) -> Iterator[Drawing]:
    """Matrices of heads, a figure per run: of the divergence where it was measured, else of the cosine."""
    every = series_of(runs, "head_divergence") or series_of(runs, "head_similarity")
    for s in every:
        across, down = Tiles(len(s.m.mean)).size
        with canvas(width, 0.1 + (width - 1.2) * down / across) as figure:
            head_grid(s.m, figure.add_subplot(), title="", limits=shared_limits([s.m for s in every]))
            summary = s.m.summary
            found = f"{summary['redundant']} of {summary['of']} heads redundant" if summary else "not clustered"
            alt = f"{quantity(s.m)} between the heads of each block of {s.name}, {s.place}: {found}."
            yield as_svg(figure, alt, f"{s.name}, {s.place}: {quantity(s.m)}", settings_of([s]))


def atlases(runs: Sequence[Examined], width: float) -> Iterator[Drawing]:
    """Types and mean maps of all heads, a figure per run as wide as the page."""
    for name, e in named(runs):
        m = e.measurements.get("head_types", stage="trunk")
        if m is None:
            continue
        pictures, n_images = mean_maps(e.maps) if e.maps is not None else (None, 0)
        if pictures is not None and pictures.shape[:2] != m.mean.shape[:2]:
            pictures = None
        title = f"{name}: type of every head"
        tiles = f"Tiles: softmax map, mean of {n_images} images, each on its own scale. "
        below = "" if pictures is None else tiles
        across, down = atlas_size(m)
        with canvas(width, 0.5 + (width - 0.5) * down / across, ink=GREY) as figure:
            head_atlas(m, figure.add_subplot(), thumbnails=pictures, title="")
            alt = f"{title}: {types_text(m)}. " + "; ".join(
                f"block {block} {', '.join(types)}"
                for block, types in zip(m.block_numbers, m.summary["types"], strict=True)
            )
            note = f"{types_text(m)}. {below}".rstrip()
            yield as_photograph(figure, f"{alt}.", title, f"{settings_text(m)}.", note=note, wide=True)


def types_text(m: Measurement) -> str:
    """`41 local, 3 positional, 52 content`."""
    return ", ".join(f"{count} {name}" for name, count in m.summary["counts"].items() if count)


LEGEND = (
    "The type of a head is the first of these rules that holds, measured on softmax maps. Dead: its output is "
    "near zero (known only where value vectors were captured, --what values). Uniform: attention is near uniform. "
    "Class: mostly on the class token or registers. Sink: mostly on one token, whichever. Local: near its query. Row, "
    "column: mostly along its query's own. Positional: the same map in every image. Content: what is left; its map "
    "depends on the image. With a "
    "question mark: fewer than 95 % of the resamples of the images agree. "
) + f"Short: {', '.join(f'{short} {name}' for name, short in SHORT.items() if short != name)}."


def heat_maps(runs: Sequence[Examined], width: float) -> Iterator[Drawing]:
    """Heat maps over block and head, a figure per metric with the runs below one another on one scale."""
    others = [m.metric for e in runs for m in e.measurements.values() if m.axes in AXES]
    for metric in dict.fromkeys((*USUAL, *others)):
        if every := series_of(runs, metric):
            yield _heat_map(every, width)


def _heat_map(every: Sequence[Series], width: float) -> Drawing:
    limits = shared_limits([s.m for s in every])
    heights = [0.75 + max(1.0, 0.12 * s.m.mean.shape[1]) for s in every]
    with canvas(width, max(2.4, 0.1 + sum(heights))) as figure:  # room for the label of the colour bar
        axes = figure.subplots(len(every), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, s in zip(axes, every, strict=True):
            layer_head(s.m, ax, limits=limits, title=f"{s.name}, {s.place}", colorbar=False)
        values = np.concatenate([s.m.mean.ravel() for s in every])
        colour_bar(list(axes), colours(limits), quantity(every[0].m), values, aspect=20 * len(every))
        found = [f"{s.name}, {s.place}: {_first_and_last(s.m)}" for s in every]
        alt = f"{quantity(every[0].m)} of every head. Mean over heads, {'; '.join(found)}."
        return as_svg(figure, alt, f"{quantity(every[0].m)} by block and head", settings_of(every))


def _first_and_last(m: Measurement) -> str:
    per_block = (m.mean if m.mean.ndim == 2 else m.mean.sum(-1)).mean(1)
    return f"{number(per_block[0])} in block 1, {number(per_block[-1])} in the last"


IMAGES = 8
"""Number of images of a mean map, evenly spread over the file."""

SIDE = 32
"""Pixels of a thumbnail, at most; larger maps are averaged down."""


def mean_maps(maps: Browsable) -> tuple[np.ndarray | None, int]:
    """[layer, head, row, col], the mean softmax map of each head in the first stage, and of how many images.

    None where the first stage holds no softmax maps.
    """
    shape = maps.shapes()[0]
    if "weights" not in (site for site, _ in shape.sites):
        return None, 0
    images = sorted({int(i) for i in np.linspace(0, len(maps.image_ids) - 1, min(IMAGES, len(maps.image_ids)))})
    layers = [
        np.mean([smaller(maps.layer(shape.name, "weights", image, layer)) for image in images], axis=0)
        for layer in range(len(shape.layers))
    ]
    return np.stack(layers), len(images)


def smaller(maps: np.ndarray) -> np.ndarray:
    """[head, query, key] averaged over equal parts, to at most `SIDE` of each; the last part may be smaller."""
    for axis in (1, 2):
        step = -(-maps.shape[axis] // SIDE)
        starts = np.arange(0, maps.shape[axis], step)
        sizes = np.diff([*starts, maps.shape[axis]]).reshape([-1 if i == axis else 1 for i in range(3)])
        maps = np.add.reduceat(maps, starts, axis=axis) / sizes
    return maps
