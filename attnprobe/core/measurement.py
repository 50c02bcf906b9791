"""What is a metric, and what is its value on a set of images?"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.renormalize import shares_of_magnitude
from attnprobe.core.tap import Site
from attnprobe.core.text import line, table

GIVEN = ("maps", "grid", "tokens", "value_vectors")
"""Parameter names of a metric function that are filled from `AttentionMaps`; all others are settings."""

FromMean = Callable[[np.ndarray, int], np.ndarray]
"""See `Metric.from_mean`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A pure per-image function and what its numbers mean.

    Calling a metric calls its function: `layer_similarity(tensor)` works as written.

    Attributes:
        name: its name in the table and in every file.
        function: (maps [I, L, H, Q, K], grid, tokens [I, L, T, D], value_vectors [I, L, H, K, P]; any of
            them, by these parameter names; then settings with defaults) -> [I, *axes].
        axes: what the axes after the image are, such as ("layer", "head").
        value_range: smallest and largest value there can be; None where there is no bound.
        unit: "nats", "pixels" ... or "" for none.
        needs_stochastic: refuses maps whose rows do not sum to 1, unless it has the setting
            renormalize=True: then it measures `shares_of_magnitude` of them.
        needs_prefix: refuses maps without a class token or registers.
        needs_square: refuses maps whose queries and keys are not both all tokens of the picture.
        by_row: it is a mean over queries of something of each query's row, so some of the queries have one, too.
        needs_all_layers: its number for a layer depends on others, so some of the layers have none.
        needs_all_heads: its number depends on all heads of a layer, so some of them have none; also wherever the maps
            of heads are averaged first (pool="head_mean_map").
        summarise: (Measurement) -> dict of JSON-able derived numbers, such as counts.
        coords: (grid, **settings) -> labels of axes that are not plain indices.
        narrow_range: (stochastic, **settings) -> a value range tighter than `value_range`.
        from_mean: (mean over images [..., *the function's axes], number of images) -> [..., *axes], for a number
            that is no mean over images itself, such as a ratio of means; the function then returns what is averaged.
    """

    name: str
    function: Callable[..., Tensor]
    axes: tuple[str, ...]
    value_range: tuple[float | None, float | None] = (None, None)
    unit: str = ""
    needs_stochastic: bool = False
    needs_prefix: bool = False
    needs_square: bool = False
    by_row: bool = False
    needs_all_layers: bool = False
    needs_all_heads: bool = False
    sites: tuple[Site, ...] = ("weights", "effective")
    summarise: "Callable[[Measurement], dict[str, Any]] | None" = None
    coords: Callable[..., dict[str, list[Any]]] | None = None
    narrow_range: Callable[..., tuple[float | None, float | None]] | None = None
    from_mean: FromMean | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        settings = {**self.settings, **kwargs}
        if settings.pop("renormalize", False):
            if "maps" in settings:
                settings["maps"] = shares_of_magnitude(settings["maps"])
            else:
                args = (shares_of_magnitude(args[0]), *args[1:])
        return self.function(*args, **settings)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    @property
    def all_settings(self) -> dict[str, Any]:
        """Every setting with the value it will have; "renormalize" where it was chosen."""
        defaults = {n: p.default for n, p in self.parameters.items() if n not in GIVEN}
        return {**defaults, **self.settings}

    def with_settings(self, **settings: Any) -> "Metric":
        """The same metric with other settings.

        Raises:
            InputError: a setting this metric does not have.
        """
        for name in settings:
            if name not in self.all_settings and not (name == "renormalize" and self.needs_stochastic):
                raise InputError(
                    f"metric {self.name!r} has no setting {name!r}.{did_you_mean(name, self.all_settings)}"
                )
        return replace(self, settings={**self.settings, **settings})

    def per_image(self, maps: AttentionMaps) -> Tensor:
        """[image, *axes] of these maps."""
        given = {
            "maps": maps.values,
            "grid": maps.grid,
            "tokens": maps.tokens,
            "value_vectors": value_vectors_of(maps),
        }
        return self(**{name: given[name] for name in GIVEN if name in self.parameters})

    def refusal(self, maps: AttentionMaps) -> str:
        """Why this metric has no meaning on these maps, and what to do; empty if it has one."""
        if maps.site not in self.sites:
            return f"it is defined at site {' or '.join(self.sites)}, not at {maps.site!r}"
        if self.needs_stochastic and not maps.stochastic and not self.settings.get("renormalize"):
            return (
                f"rows must sum to 1, which they do not at site {maps.site!r}: capture site='weights', or set "
                "renormalize=True to measure shares of absolute values"
            )
        if self.needs_prefix and not maps.grid.prefix:
            return "there is neither a class token nor a register"
        if "tokens" in self.parameters and maps.tokens is None:
            return "the block outputs were not captured: capture with tokens=True"
        if "value_vectors" in self.parameters and value_vectors_of(maps) is None:
            return "the value vectors were not captured, only maps: capture with values=True (--what values)"
        if {"maps", "value_vectors"} <= self.parameters.keys() and not maps.is_effective:
            return f"it needs what multiplies V, which the maps at site {maps.site!r} are not: capture site='effective'"
        if ("grid" in self.parameters or self.needs_square) and maps.kind != "self":
            return f"queries and keys must be the tokens of the picture, not those of {maps.kind!r} maps"
        if maps.part.queries is not None and "maps" in self.parameters and not self.by_row:
            return "only some of the queries were kept: capture queries='all'"
        if maps.part.layers is not None and self.needs_all_layers:
            return "only some of the layers were kept, and it relates each to others: capture all layers"
        pooled = self.needs_all_heads or self.all_settings.get("pool") == "head_mean_map"
        if maps.part.heads is not None and pooled:
            return "only some of the heads were kept, and it pools all of a layer: capture all heads"
        if "grid" in self.parameters and not maps.grid.rows:
            return "where its tokens sit in the picture is not known"
        return ""

    def accepts(self, maps: AttentionMaps) -> bool:
        """Whether this metric has a meaning on these maps."""
        return not self.refusal(maps)


def value_vectors_of(maps: AttentionMaps) -> Tensor | None:
    """[image, layer, head, key, P], what the maps multiply; None where it was not captured."""
    return maps.value_vectors


def metric(**meaning: Any) -> Callable[[Callable[..., Tensor]], Metric]:
    """Turn a pure function into a `Metric` of the same name.

    Raises:
        InputError: a parameter that is neither given nor has a default; see `Metric.function`.
    """

    def decorate(function: Callable[..., Tensor]) -> Metric:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.default is parameter.empty and name not in GIVEN:
                raise InputError(
                    f"metric {function.__name__!r}: the parameter {name!r} is none of {', '.join(GIVEN)}, so it is a "
                    "setting and needs a default."
                )
        return Metric(function.__name__, function, **meaning)

    return decorate


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Measurement:
    """A metric on a set of images.

    Attributes:
        metric, site, stage: what was measured where. `is_effective` as in `AttentionMaps`.
        axes, value_range, unit: as in `Metric`; `coords` labels axes that are not plain indices, and blocks and heads,
            by their numbers from 1, where not all were kept.
        mean, std: [*axes], over images, ignoring images whose value is not finite.
        ci: [2, *axes], bounds of the 95 % interval of the mean; NaN where n_images < 2.
        n_images: images measured, each once, or groups of them; `n_excluded` of them had a value that is not finite in
            some cell.
        per_image: [image, *axes], or None when there were too many to keep. With `from_mean`, the values whose
            mean it takes.
        image_ids: one per row of `per_image`: an image, or a group of them where `settings` have a "group".
        pixels: one per row, too: a hash of what the model saw; 0 where that is not known.
        copies: "b.png = a.png": images left out since an earlier one has the same pixels.
        n_grouped: images that `n_images` groups were made of; as many where each is its own.
        settings: everything that changes the numbers, defaults included: the metric's own, and
            "interval" ("bootstrap" or "normal"), "bootstrap" (resamples) and "bootstrap_seed".
        summary: derived numbers (counts, intervals), JSON-able.
        baselines: the same metric on "untrained" and "uniform" attention, where measured.
        from_mean: as in `Metric`.
        explanation: what the metric is, in words; as in `attnprobe explain`.
        not_finite: the first maps that held NaN or infinities, by image, layer and head.
    """

    metric: str
    site: Site
    stage: str
    is_effective: bool
    axes: tuple[str, ...]
    value_range: tuple[float | None, float | None]
    unit: str
    mean: np.ndarray
    std: np.ndarray
    ci: np.ndarray
    n_images: int
    n_excluded: int
    settings: Mapping[str, Any]
    coords: Mapping[str, list[Any]] = field(default_factory=dict)
    per_image: np.ndarray | None = None
    image_ids: tuple[str, ...] = ()
    pixels: tuple[int, ...] = ()
    copies: tuple[str, ...] = ()
    n_grouped: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)
    baselines: "Mapping[str, Measurement]" = field(default_factory=dict)
    from_mean: FromMean | None = None
    explanation: str = ""
    not_finite: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """What a reader wants to know first, in words."""
        place = self.site if self.stage == "trunk" else f"{self.site}, stage {self.stage}"
        shape = " x ".join(f"{n} {axis}" for n, axis in zip(self.mean.shape, self.axes, strict=True))
        finite = self.mean[np.isfinite(self.mean)]
        unit = f" {self.unit}" if self.unit else ""
        numbers = {name: value for name, value in self.summary.items() if isinstance(value, int | float | str)}
        facts: dict[str, object] = {"measured at": place, "images": self.n_images, "values": shape or "one"}
        if finite.size:
            facts["mean over all"] = f"{finite.mean():.4g}{unit} (from {finite.min():.4g} to {finite.max():.4g})"
        return {**facts, **numbers, "baselines": ", ".join(self.baselines) or "none"}

    def __repr__(self) -> str:
        return line(self.metric, self.facts())

    def _repr_html_(self) -> str:
        return table(self.metric, self.facts())
