"""Attention diagnostics for vision transformers: train, capture, store, measure, plot, report.

The names below are the whole public surface, in the order of the pipeline; each loads its stage on first use, so
that `import attnprobe` costs nothing.
"""

import importlib
from typing import Any

_WHERE = {
    # images
    "DATASETS": "attnprobe.data",
    "load_images": "attnprobe.data",
    "ImageBatch": "attnprobe.core.images",
    "ImageSource": "attnprobe.core.images",
    "InputSpec": "attnprobe.core.images",
    # models
    "MODELS": "attnprobe.models",
    "VARIANTS": "attnprobe.models",
    "build_model": "attnprobe.models",
    "load_model": "attnprobe.models",
    "input_spec": "attnprobe.models",
    # training
    "RECIPES": "attnprobe.training",
    "train": "attnprobe.workflows.train",
    "evaluate": "attnprobe.workflows.evaluate",
    "Probe": "attnprobe.workflows.probe",
    # capture and store
    "AttentionMaps": "attnprobe.core.maps",
    "TokenGrid": "attnprobe.core.grid",
    "capture": "attnprobe.capturing",
    "record": "attnprobe.capturing",
    "open_maps": "attnprobe.store",
    # measure
    "METRICS": "attnprobe.metrics",
    "Measurement": "attnprobe.core.measurement",
    "measure": "attnprobe.metrics",
    "metric": "attnprobe.core.metric",
    # show
    "PLOTS": "attnprobe.plots",
    "plot": "attnprobe.plots",
    "examine": "attnprobe.workflows.measure",
    "verdict": "attnprobe.reports.verdict",
    "write_report": "attnprobe.reports",
    "compare": "attnprobe.workflows.compare",
    # act
    "verify_drops": "attnprobe.workflows.ablate",
    "prune": "attnprobe.workflows.prune",
}

__version__ = "0.1.0"
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'attnprobe' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
