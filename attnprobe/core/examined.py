"""What does a report need to know about one model?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnprobe.core.browse import Browsable
from attnprobe.core.evidence import Evidence
from attnprobe.core.history import History
from attnprobe.core.maps import TokenGrid
from attnprobe.core.measurement import Measurement
from attnprobe.core.precision import Precision


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One image and where the model looks in it.

    Attributes:
        image_id: as in the maps file.
        pixels: [row, col, 3], uint8.
        label, prediction: class names, "" where unknown; `probability` of the prediction, NaN where unknown.
        attention: [layer, head, row, col] over the patch grid: how much the class token attends to each patch
            (the mean over queries where there is no class token), at `site`.
    """

    image_id: str
    pixels: np.ndarray
    label: str
    prediction: str
    probability: float
    attention: np.ndarray
    site: str = "weights"


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """One model's measurements, and everything needed to show and to trust them.

    Attributes:
        name: short name for tables and legends; unique within a report.
        measurements: as returned by `measure`, baselines included.
        info: what the maps file's header says: model, variant, data, n_images, accuracy, checkpoint_sha256, seed,
            device, versions, created. Plain values; keys may be missing.
        certificate: as in the maps file: {"layers": [{layer, route, row_sum_error, value_error}], "output_equal",
            "fused_difference", "n_images"}; empty if unknown.
        layers: names of the layers.
        grid: the tokens.
        pictures: a handful of images.
        maps: all maps, read when the page is made, for its explorer; None for no explorer.
        class_names: in label order; empty if there are none.
        history: what the probe saw while it trained, if it was on.
        precision: how many images some of the numbers need, by the names of their measurements.
        evidence: what taking away what is similar or redundant costs, if it was tried.
        bars: of kinds of collapse, by name, that are not to be the verdict's own.
        notes: sentences a reader must see beside the numbers ("trained for 6 epochs only (--fast)").
    """

    name: str
    measurements: Mapping[str, Measurement]
    info: Mapping[str, Any]
    layers: tuple[str, ...]
    grid: TokenGrid
    certificate: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    maps: Browsable | None = None
    class_names: tuple[str, ...] = ()
    history: History | None = None
    precision: Mapping[str, Precision] = field(default_factory=dict)
    evidence: Evidence | None = None
    bars: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
