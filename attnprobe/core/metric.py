"""A metric: a pure per-image function of attention maps, and what its numbers mean."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.measurement import FromMean, Measurement
from attnprobe.core.sharing import shared
from attnprobe.core.sites import Site

GIVEN = {
    "maps": "[image, layer, head, query, key]",
    "grid": "which tokens are patches, and where these sit in the image",
    "tokens": "[image, layer, token, width], the output of each block for every token",
    "value_vectors": "[image, layer, head, key, P], what the map of a head multiplies",
}
"""Parameters of a metric function that are filled from `AttentionMaps`, and what each is; all others are settings. They
are the same for every metric, so no docstring repeats them: `Metric.explanation` adds them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A pure per-image function and what its numbers mean.

    Calling a metric calls its function: `layer_similarity(tensor)` works as written.

    Attributes:
        name: its name in the table and in every file.
        function: (any of `GIVEN`, by these names; then settings with defaults) -> [image, *axes].
        axes: the axes after the image, such as ("layer", "head").
        value_range: smallest and largest possible value; None where there is no bound.
        unit: "nats", "pixels" ... or "" for none.
        needs_stochastic: refuses maps whose rows do not sum to 1, unless it has the setting
            renormalize=True: then it measures `shares_of_magnitude` of them.
        needs_prefix: refuses maps without a class token or registers.
        needs_square: refuses maps whose queries and keys are not both all tokens of the image.
        needs_all_patches: refuses maps of a model that drops some of the patches of its grid.
        by_row: a mean over queries of a function of each query's row, so it is defined for some of the queries, too.
        needs_all_layers: its number for a layer depends on other layers, so it is refused for some of them.
        needs_all_heads: its number depends on all heads of a layer, so it is refused for some of them; also where the
            maps of heads are averaged first (pool="head_mean_map").
        summarise: (Measurement) -> dict of JSON-able derived numbers, such as counts.
        coords: (grid, **settings) -> labels of axes that are not plain indices.
        narrow_range: (stochastic, **settings) -> a value range tighter than `value_range`.
        from_mean: (mean over images [..., *the function's axes], number of images) -> [..., *axes], for a number
            that is not a mean over images itself, such as a ratio of means; the function then returns what is averaged.
            The number counts images with a finite value, and is of each entry where it is not the same for all.
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
    needs_all_patches: bool = False
    needs_all_layers: bool = False
    needs_all_heads: bool = False
    sites: tuple[Site, ...] = ("weights", "effective")
    summarise: Callable[[Measurement], dict[str, Any]] | None = None
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
        """Parameters of the function, by name."""
        return _parameters_of(self.function)

    @property
    def all_settings(self) -> dict[str, Any]:
        """Every setting with the value it will have; "renormalize" where it was chosen."""
        defaults = {n: p.default for n, p in self.parameters.items() if n not in GIVEN}
        return {**defaults, **self.settings}

    @property
    def _needs_effective(self) -> bool:
        """True for a metric of what maps make of the values: only the effective map multiplies them."""
        return {"maps", "value_vectors"} <= self.parameters.keys()

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
        given = {"maps": maps.values, "grid": maps.grid, "tokens": maps.tokens, "value_vectors": maps.value_vectors}
        return self(**{name: given[name] for name in GIVEN if name in self.parameters})

    def refusal(self, maps: AttentionMaps) -> str:
        """Reason why this metric is not defined on these maps, and what to do; empty if it is."""
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
            return "no block outputs were captured: capture with tokens=True, where blocks return their tokens"
        if "value_vectors" in self.parameters and maps.value_vectors is None:
            return "the value vectors were not captured, only maps: capture with values=True (--what values)"
        if self._needs_effective and not maps.is_effective:
            return (
                f"it needs effective attention, which the maps at site {maps.site!r} are not: capture site='effective'"
            )
        if ("grid" in self.parameters or self.needs_square) and maps.kind != "self":
            return f"queries and keys must be the tokens of the image, not those of {maps.kind!r} maps"
        if maps.part.queries is not None and "maps" in self.parameters and not self.by_row:
            return "only some of the queries were kept: capture queries='all'"
        if maps.part.layers is not None and self.needs_all_layers:
            return "only some of the layers were kept, and it relates each to others: capture all layers"
        pooled = self.needs_all_heads or self.all_settings.get("pool") == "head_mean_map"
        if maps.part.heads is not None and pooled:
            return "only some of the heads were kept, and it pools all of a layer: capture all heads"
        if "grid" in self.parameters and not maps.grid.rows:
            return "the place of its tokens in the image is not known; the certificate says why"
        if self.needs_all_patches and maps.grid.n_patches < maps.grid.rows * maps.grid.cols:
            return f"it needs every patch of the image, and the model keeps {maps.grid.patches_in_words}"
        return ""

    def accepts(self, maps: AttentionMaps) -> bool:
        """True if this metric is defined on these maps."""
        return not self.refusal(maps)

    @property
    def explanation(self) -> str:
        """Definition, formula, source, our reading and caveats (the docstring), then axes, range, needs and settings.

        One text, made of the metric itself, for the terminal and for the report.
        """
        parts = [inspect.getdoc(self.function) or "No description."]
        if self.settings:
            parts.append(f"Here with {_listed(self.settings)}.")
        given = [f"    {name}: {what}" for name, what in GIVEN.items() if name in self.parameters]
        return "\n\n".join([*parts, "\n".join(["Measured on:", *given]), "\n".join(self._facts())])

    def _facts(self) -> list[str]:
        low, high = ("unbounded" if bound is None else f"{bound:.4g}" for bound in self.value_range)
        unit = f" {self.unit}" if self.unit else ""
        what = f"One number per image and {', '.join(self.axes)}"
        if self.from_mean is not None:
            what = f"One number per {', '.join(self.axes)} from means over images"
        facts = [f"{what}, from {low} to {high}{unit}."]
        needs = {
            "rows that sum to 1 (or renormalize=True: shares of absolute values)": self.needs_stochastic,
            "a class token or registers": self.needs_prefix,
            "queries and keys that are the tokens of the image": self.needs_square or "grid" in self.parameters,
            "every patch of the image": self.needs_all_patches,
            "the outputs of the blocks": "tokens" in self.parameters,
            "the value vectors": "value_vectors" in self.parameters,
            "effective attention": self._needs_effective,
        }
        if needed := [what for what, is_needed in needs.items() if is_needed]:
            facts.append(f"Needs {'; '.join(needed)}.")
        if self.all_settings:
            facts.append(f"Settings: {_listed(self.all_settings)}.")
        return facts


@shared
def shares_of_magnitude(maps: Tensor) -> Tensor:
    """Each entry as the share of its row's absolute values: |A[i, j]| / sum_j |A[i, j]|.

    Maps that a variant mixed, normalised or gated after the softmax have signs and rows of any sum. Their absolute
    values say how strongly a query draws on a key, for or against, and nothing is thrown away; the choice is ours.
    Rows that sum to 1 without negative entries stay as they are.

    Args:
        maps: [..., query, key].

    Returns:
        Like `maps`, rows that sum to 1; NaN in a row of zeros, which has no shares.
    """
    size = maps.abs()
    return size / torch.where((total := size.sum(-1, keepdim=True)) > 0, total, torch.nan)


@cache
def _parameters_of(function: Callable[..., Tensor]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def metric(**meaning: Any) -> Callable[[Callable[..., Tensor]], Metric]:
    """Decorator that turns a pure function into a `Metric` of the same name.

    Args:
        meaning: fields of `Metric` other than `name` and `function`; `axes` at least.

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
