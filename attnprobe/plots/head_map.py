"""The attention map of one head, over its image where that is given, and sliders that choose the head."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from attnprobe.core.errors import InputError
from attnprobe.core.images import LUMA
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.sites import SITES
from attnprobe.plots.attention_grid import OPACITY
from attnprobe.plots.map_strip import tiles_of
from attnprobe.plots.style import Limits, colours, finish, limits_from_zero, new_axes


def head_map(
    maps: AttentionMaps,
    ax: Axes | None = None,
    *,
    block: int = 1,
    head: int = 1,
    image: int = 0,
    query: int | None = None,
    pixels: np.ndarray | None = None,
    limits: Limits | None = None,
) -> Axes:
    """Draw one head's map of one image, or what one query of it attends to.

    Args:
        maps: of one stage and site.
        ax: where; a new figure if None.
        block, head: numbers from 1, as in the whole model.
        image, query: as for `map_strip`.
        pixels: [row, col, 3], uint8, the image, drawn in grey under the row of a query.
        limits: lowest and highest value of the colours; from 0 (the lowest, if below) to the highest if None.

    Raises:
        InputError: no such block, head, image or query.
        ShapeError: a query, of maps whose keys are not the patches of an image.
    """
    tiles, outline = tiles_of(maps, image, query)
    values = tiles[_position(maps, "layer", block), _position(maps, "head", head)]
    rows, cols = values.shape
    ax = new_axes(4.4, 0.7 + 3.4 * rows / cols) if ax is None else ax
    scale, extent, opacity = colours(limits or limits_from_zero(values)), (0, cols, rows, 0), 1.0
    if query is not None and pixels is not None:
        opacity = OPACITY
        ax.imshow(pixels.astype(float) @ np.array(LUMA), extent=extent, cmap="gray", vmin=0, vmax=255)
    ax.imshow(values, extent=extent, alpha=opacity, **scale._asdict())
    if outline is not None:
        corner = outline[1], outline[0]
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=1.2))
    ax.set(xticks=[], yticks=[])
    if query is None:
        ax.set(xlabel="key", ylabel="query")
    name = f"block {block}, head {head}\n{SITES[maps.site]}, {maps.image_ids[image]}"
    return finish(ax, scale, values, "attention", name, shrink=0.8)


def sliders(maps: AttentionMaps, *, image: int = 0, query: int | None = None, pixels: np.ndarray | None = None) -> Any:
    """`head_map` with a slider for the block and one for the head, as a widget of ipywidgets.

    Colours are the same for all heads, from 0 to the value that 99 % of all entries stay below.
    """
    from ipywidgets import SelectionSlider, interactive  # only notebooks need it

    tiles, _ = tiles_of(maps, image, query)
    highest = float(np.nanquantile(tiles, 0.99))
    limits = (0.0, highest) if highest > 0 else limits_from_zero(tiles)

    def draw(block: int, head: int) -> None:
        head_map(maps, block=block, head=head, image=image, query=query, pixels=pixels, limits=limits)
        plt.show()

    blocks, heads = (SelectionSlider(options=_numbers(maps, axis)) for axis in ("layer", "head"))
    return interactive(draw, block=blocks, head=heads)


def _numbers(maps: AttentionMaps, axis: str) -> list[int]:
    """Numbers from 1 of the layers or heads that were kept."""
    return maps.part.numbers.get(axis) or list(range(1, maps.values.shape[1 if axis == "layer" else 2] + 1))


def _position(maps: AttentionMaps, axis: str, number: int) -> int:
    numbers = _numbers(maps, axis)
    if number not in numbers:
        word = "block" if axis == "layer" else axis
        raise InputError(
            f"no {word} {number}; there are {', '.join(map(str, numbers[:12]))}{', ...' * (len(numbers) > 12)}."
        )
    return numbers.index(number)
