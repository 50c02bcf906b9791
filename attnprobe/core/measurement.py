"""The values of one metric on a set of images, and the measurements of one model by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from attnprobe.core.registry import Registry
from attnprobe.core.sites import SITES, Site
from attnprobe.core.text import Shown, table, visible

FromMean = Callable[[np.ndarray, float | np.ndarray], np.ndarray]
"""(mean over images [..., *any], number of images) -> [..., *axes]; see `Metric.from_mean`. The number counts finite
values, and is [*any] where it is not the same for all."""

INTERVAL_SETTINGS = ("interval", "bootstrap", "bootstrap_seed")
"""Settings that say how sure a number is, not what it is."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Measurement(Shown):
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
            mean it takes. Of a fixed subset of the images where there are `replicates`.
        image_ids: one per row of `per_image`: an image, or a group of them where `settings` have a "group".
        replicates: [replicate, *axes]: like `mean`, over resamples of all images (of what `from_mean` takes), where
            the values of all would be too many; see `stats.poisson`.
        pixels: a hash of the pixels that the model saw, one per row; 0 where it is not known.
        copies: "b.png = a.png": images left out because an earlier one has the same pixels.
        n_grouped: images that `n_images` groups were made of; as many where each is its own.
        settings: everything that changes the numbers, defaults included: the metric's own, and
            "interval" ("bootstrap", "poisson" of `replicates`, "normal" or "none"), "bootstrap" (resamples) and
            "bootstrap_seed".
        summary: derived numbers (counts, intervals), JSON-able.
        baselines: the same metric on "untrained" and "uniform" attention, where measured.
        from_mean: as in `Metric`.
        explanation: definition of the metric in words, as `attnprobe explain` prints it.
        not_finite: the first maps that held NaN or infinities, by image, layer and head.
        together: stages of the same tokens that differ in their number of heads alone, this one included; their blocks
            are numbered through the network, in `coords`. Empty where this is the only one.
        network: {stage: numbers of its blocks through all stages that images pass one after the other, this one
            included}; empty where there is one such stage, where these are `together`, or some layers were not kept.
        of: what the metric is of: "maps", "block outputs" or "value vectors"; of these two the site says nothing.
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
    replicates: np.ndarray | None = None
    together: tuple[str, ...] = ()
    network: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    of: str = "maps"

    @property
    def place(self) -> str:
        """The thing that was measured, in words: `softmax maps`, `block outputs`."""
        return SITES[self.site] if self.of == "maps" else self.of

    @property
    def n_blocks(self) -> int:
        """Length of the first layer axis; 0 where there is none."""
        return self.mean.shape[self.axes.index("layer")] if "layer" in self.axes else 0

    @property
    def block_numbers(self) -> tuple[int, ...]:
        """Numbers of the blocks along that axis, from 1: those that were kept, where not all were."""
        return tuple(self.coords.get("layer", range(1, self.n_blocks + 1)))

    @property
    def n_finite(self) -> int:
        """Number of images with a finite value in some cell, by those whose values were kept; where none were, in every
        cell."""
        if self.per_image is None or not len(self.per_image):
            return self.n_images - self.n_excluded
        rows = np.isfinite(self.per_image).reshape(len(self.per_image), -1).any(1)
        return round(rows.mean() * self.n_images)

    @property
    def metric_settings(self) -> dict[str, Any]:
        """Settings that say what the number is, without those of its interval."""
        return {name: value for name, value in self.settings.items() if name not in INTERVAL_SETTINGS}

    def facts(self) -> dict[str, object]:
        """Place, number of images, shape, mean and summary in words, for notebook and terminal."""
        site = self.site if self.of == "maps" else self.of
        place = site if self.stage == "trunk" else f"{site}, stage {self.stage}"
        shape = " x ".join(f"{n} {axis}" for n, axis in zip(self.mean.shape, self.axes, strict=True))
        numbers = {name: value for name, value in self.summary.items() if isinstance(value, int | float | str)}
        return {
            "measured at": place,
            "images": self.n_images,
            "values": shape or "one",
            "mean over all": self.range_text,
            **numbers,
            "baselines": ", ".join(self.baselines) or "none",
        }

    @property
    def range_text(self) -> str:
        """Mean over all finite values, the smallest and the largest, with the unit; `–` where none is finite."""
        finite = self.mean[np.isfinite(self.mean)]
        unit = f" {self.unit}" if self.unit else ""
        return f"{finite.mean():.4g}{unit} ({finite.min():.4g}, {finite.max():.4g})" if finite.size else "–"

    @property
    def _title(self) -> str:
        return self.metric


class Key(NamedTuple):
    """Name of a measurement within its model, written "stage/metric@site".

    Left out: the stage "trunk", and the site where the metric was measured on effective attention or at one site only.
    """

    metric: str
    stage: str = "trunk"
    site: str = ""

    @classmethod
    def parse(cls, text: str) -> "Key":
        """The inverse of `str`."""
        stage, _, rest = text.rpartition("/")
        name, _, site = rest.partition("@")
        return cls(name, stage or "trunk", site)

    def __str__(self) -> str:
        name = f"{self.metric}@{self.site}" if self.site else self.metric
        return name if self.stage == "trunk" else f"{self.stage}/{name}"


class Measurements(Registry[Measurement]):
    """Measurements of one model: a read-only dictionary by `Key`, and a look-up by metric, site and stage.

        measurements["similar_blocks"]                          by name, as in every file
        measurements.get("similar_blocks", site="weights")      on softmax maps, in the deepest stage
        measurements.select("similar_blocks", stage="stage2")   all that match, in order

    In a look-up site="effective" means effective attention, whichever matrix of the layer that is: a plain ViT
    multiplies its softmax maps with V as they are, so both sites name one measurement.
    """

    def __init__(
        self,
        named: Mapping[str, Measurement] | None = None,
        facts: Mapping[str, Any] | None = None,
        refusals: Mapping[str, str] | None = None,
    ) -> None:
        """Collect measurements by their names.

        Args:
            facts: what is known of the model beside them, such as its accuracy on the images; see `Examined.info`.
            refusals: why a metric that was asked for is not among them, by its name.
        """
        super().__init__("measurement")
        self._things, self.facts, self.refusals = dict(named or {}), dict(facts or {}), dict(refusals or {})

    def __repr__(self) -> str:
        return f"<{len(self)} measurements: {', '.join(map(visible, self))}>"

    def _repr_html_(self) -> str:
        rows = []
        for name, m in self.items():
            facts, fresh = m.facts(), m.baselines.get("untrained")
            rows.append((name, facts["measured at"], facts["values"], m.range_text, fresh.range_text if fresh else "–"))
        images = " or ".join(dict.fromkeys(str(m.n_images) for m in self.values()))
        head = ("metric", "measured at", "values", "mean over all (from, to)", "untrained")
        return table(f"{len(self)} measurements of {images or 'no'} images", rows, head)

    def select(
        self, metric: str | None = None, *, site: Site | None = None, stage: str | None = None
    ) -> list[Measurement]:
        """Measurements of this metric, at this site and in this stage; None for any."""
        return [
            m
            for m in self.values()
            if metric in (None, m.metric)
            and stage in (None, m.stage)
            and (site is None or (m.is_effective if site == "effective" else m.site == site))
        ]

    def get(  # type: ignore[override]
        self, metric: str, default: Measurement | None = None, /, *, site: Site | None = None, stage: str | None = None
    ) -> Measurement | None:
        """The measurement of that name; with a site or a stage, the (first) match in the stage with the most blocks."""
        if site is None and stage is None:
            return super().get(metric, default)
        return max(self.select(metric, site=site, stage=stage), key=lambda m: m.n_blocks, default=default)

    def at_sites(self, metric: str, *sites: Site, stage: str | None = None) -> list[Measurement]:
        """The metric at each of these sites where it was measured, each measurement once.

        Without sites: on effective attention, then on softmax maps. Without a stage: in the one with the most blocks.
        """
        found = (self.get(metric, site=site, stage=stage) for site in sites or ("effective", "weights"))
        return list({id(m): m for m in found if m is not None}.values())

    def plus(self, others: Mapping[str, Measurement]) -> "Measurements":
        """These and others, which replace those of their names."""
        return Measurements({**self, **others}, self.facts, self.refusals)

    def through(self, m: Measurement) -> list[Measurement]:
        """`m`, and the same of all stages that its blocks are numbered with."""
        others = (self.get(m.metric, site=m.site, stage=stage) for stage in m.together if stage != m.stage)
        return [m, *(other for other in others if other is not None)]

    def in_network(self, m: Measurement) -> list[Measurement]:
        """`m` and the same of all stages that images pass one after the other, each with the numbers that its blocks
        have through these; where they are one stage, or not numbered so, as `through`."""
        if not m.network:
            return self.through(m)
        found = (self.get(m.metric, site=m.site, stage=stage) for stage in m.network)
        return [
            replace(its, coords={**its.coords, "layer": list(m.network[its.stage])}) for its in found if its is not None
        ]

    def of_network(self) -> "Measurements":
        """Those of the stages that images pass one after the other; of others, as of encoder and decoder, those of the
        stage with the most blocks, and of what is numbered with it."""
        by_block = [m for m in self.values() if m.n_blocks]
        if not by_block:
            return self
        deepest = max(by_block, key=lambda m: sum(its.n_blocks for its in self.in_network(m)))
        stages = deepest.network or deepest.together or (deepest.stage,)
        kept = {name: m for name, m in self.items() if m.stage in stages or not m.n_blocks}
        return Measurements(kept, self.facts, self.refusals)

    def prefer(self, metric: str, *sites: Site, stage: str | None = None) -> Measurement | None:
        """The metric at the first of these sites where it was measured."""
        return next(iter(self.at_sites(metric, *sites, stage=stage)), None)

    @property
    def change_after_softmax(self) -> bool:
        """True if the model changes its maps between the softmax and V, so that metrics come twice."""
        return any(m.site == "weights" and not m.is_effective for m in self.values())
