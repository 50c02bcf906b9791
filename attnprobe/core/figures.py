"""Every figure by name: what it shows by default and how it is laid out. Without matplotlib, for the command line."""

from dataclasses import dataclass

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FigureKind:
    """One figure of `attnprobe plot`; the function of this name in `attnprobe.plots` draws it.

    Attributes:
        name: of the figure and its function.
        metric: what it shows if nothing else is named; "" for an image.
        height: for a width of 1.
        axes: axes of a measurement for which it is the first choice.
        shared: several runs share one Axes, instead of standing below one another.
        heat: a heat map; several stand side by side on one scale of colours.
    """

    name: str
    metric: str
    height: float
    axes: tuple[Axes, ...] = ()
    shared: bool = False
    heat: bool = False


KINDS = (
    FigureKind("layer_matrix", "layer_similarity", 0.9, (("layer", "layer"),), heat=True),
    FigureKind("depth_curve", "similar_blocks", 0.7, (("layer",),), shared=True),
    FigureKind("threshold_curve", "similar_blocks", 0.7, (("threshold", "layer"),), shared=True),
    FigureKind("similar_fraction", "similar_blocks", 0.7, shared=True),
    FigureKind("layer_head", "row_entropy", 0.6, (("layer", "head"), ("layer", "head", "prefix")), heat=True),
    FigureKind("head_scatter", "attention_distance", 0.75),
    FigureKind("head_grid", "head_divergence", 0.85, (("layer", "head", "head"),), heat=True),
    FigureKind("head_embedding", "head_divergence_across_layers", 0.9, (("layer", "head", "layer", "head"),)),
    FigureKind("head_atlas", "atlas", 0.75, (("layer", "head", "type"),)),
    FigureKind("layer_key", "attention_rollout", 0.6, (("layer", "key"),), heat=True),
    FigureKind("attention_grid", "", 0.9),
    FigureKind("filmstrip", "layer_similarity", 0.55),
    FigureKind("onset", "similar_blocks", 0.7),
)

FIGURES = {kind.name: kind for kind in KINDS}
