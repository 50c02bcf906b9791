"""One model as a report knows it: its measurements, its images, and what they rest on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attnprobe.core.browse import Browsable
from attnprobe.core.evidence import Evidence
from attnprobe.core.grid import TokenGrid
from attnprobe.core.history import History
from attnprobe.core.measurement import Measurements


@dataclass(frozen=True, slots=True, eq=False)
class AttendedImage:
    """One image and how much attention each of its patches gets.

    Attributes:
        image_id: as in the maps file.
        pixels: [row, col, 3], uint8.
        label, prediction: class names, "" where unknown; `probability` of the prediction, NaN where unknown.
        attention: [layer, head, row, col] over the patch grid: how much the class token attends to each patch
            (the mean over queries where there is no class token), at `site`.
        blocks: the numbers of its layers, from 1; all of them, one after the other, if empty.
    """

    image_id: str
    pixels: np.ndarray
    label: str
    prediction: str
    probability: float
    attention: np.ndarray
    site: str = "weights"
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Precision:
    """95 % intervals that a number would have on other numbers of images.

    Attributes:
        sizes: numbers of images, ascending; [size].
        low, high: bounds of the middle 95 % of the number on that many images, [size].
        value: the number on all images at hand.
        n_images: how many these are; intervals on more images assume that these represent the others.
        of: name of the number, in words.
    """

    sizes: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    value: float
    n_images: int
    of: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """One model's measurements, and everything needed to show and to trust them.

    Attributes:
        name: short name for tables and legends; unique within a report.
        measurements: as returned by `measure`, baselines included.
        info: facts from the maps file's header: model, variant, data, n_images, accuracy, checkpoint_sha256, seed,
            device, versions, created. Plain values; keys may be missing.
        certificate: as in the maps file: {"layers": [{layer, route, row_sum_error, value_error}], "output_equal",
            "fused_difference", "n_images"}; empty if unknown.
        layers: names of the layers.
        grid: the tokens.
        pictures: a handful of images.
        maps: all maps, read when the page is made, for its explorer; None for no explorer.
        class_names: in label order; empty if there are none.
        history: measurements of the probe during training, if it was on.
        precision: intervals on other numbers of images, by the names of the measurements.
        evidence: accuracy without similar blocks and redundant heads, if it was measured.
        bars: of kinds of collapse, by name, that replace the verdict's own.
        notes: sentences a reader must see beside the numbers ("trained for 6 epochs only (--fast)").
    """

    name: str
    measurements: Measurements
    info: Mapping[str, Any]
    layers: tuple[str, ...]
    grid: TokenGrid
    certificate: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[AttendedImage, ...] = ()
    maps: Browsable | None = None
    class_names: tuple[str, ...] = ()
    history: History | None = None
    precision: Mapping[str, Precision] = field(default_factory=dict)
    evidence: Evidence | None = None
    bars: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {name: getattr(self.measurements, name, {}) for name in ("facts", "refusals")}
        object.__setattr__(self, "measurements", Measurements(self.measurements, **known))

    @property
    def untrained(self) -> "Examined | None":
        """The same architecture with initial weights, as a model of its own; None if it was not measured."""
        baselines = {
            key: m.baselines["untrained"] for key, m in self.measurements.items() if "untrained" in m.baselines
        }
        if not baselines:
            return None
        about = {"info": {}, "certificate": {}, "pictures": ()}
        return replace(self, name=f"{self.name}, untrained", measurements=baselines, **about)
