"""Does the count of similar blocks hang on the threshold? No published one exists, so look at all of them."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from attnprobe.core.errors import ShapeError
from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import legend, line_label, new_axes, require_axes


def threshold_curve(m: Measurement, ax: Axes | None = None, *, label: str = "", baselines: bool = True, **line) -> Axes:
    """Draw the number of similar blocks against the threshold of the cosine, with its 95 % interval.

    Arguments as in `depth_curve`; call again to add a run. A thin line marks the threshold chosen.

    Raises:
        ShapeError: other axes, or a measurement without the summary of `similar_blocks`.
    """
    require_axes(m, "threshold_curve", ("threshold", "layer"))
    if "curve" not in m.summary:
        raise ShapeError(f"threshold_curve draws the summary of similar_blocks, which {m.metric!r} does not have.")
    ax = new_axes(5.2, 3.4) if ax is None else ax
    curve = m.summary["curve"]
    options = {"linewidth": 1.5, **line}
    (drawn,) = ax.plot(curve["threshold"], curve["count"], label=line_label(label or "similar blocks"), **options)
    if None not in curve["low"]:
        ax.fill_between(curve["threshold"], curve["low"], curve["high"], color=drawn.get_color(), alpha=0.2, lw=0)
    for name, style in (("untrained", ":"), ("uniform", "-.")):
        if baselines and name in m.baselines:
            colour = drawn.get_color() if name == "untrained" else "#808080"
            other = m.baselines[name].summary["curve"]
            ax.plot(other["threshold"], other["count"], label=name, color=colour, linestyle=style, linewidth=1.2)
    if isinstance(m.summary["tau"], float | int):
        ax.axvline(m.summary["tau"], color="#808080", linewidth=0.8)
    ax.set(xlabel="threshold of the cosine (tau)", ylabel=f"similar blocks (share > {m.summary['rho']})")
    ax.set_ylim(bottom=-0.02 * m.summary["of"], top=max(1.02 * m.summary["of"], ax.get_ylim()[1]))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax)
    return ax
