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
    "train": "attnprobe.pipeline",
    "Probe": "attnprobe.probe",
    # capture and store
    "AttentionMaps": "attnprobe.core.maps",
    "TokenGrid": "attnprobe.core.maps",
    "capture": "attnprobe.capture",
    "record": "attnprobe.capture",
    "open_maps": "attnprobe.store",
    # measure
    "METRICS": "attnprobe.metrics",
    "Measurement": "attnprobe.core.measurement",
    "measure": "attnprobe.metrics",
    "metric": "attnprobe.core.measurement",
    # show
    "PLOTS": "attnprobe.plots",
    "plot": "attnprobe.plots",
    "examine": "attnprobe.pipeline",
    "write_report": "attnprobe.reports",
    "compare": "attnprobe.comparison",
    # act
    "verify_drops": "attnprobe.ablation",
    "prune": "attnprobe.pruning",
}

__version__ = "0.1.0"
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'attnprobe' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return module if name == "capture" else getattr(module, name)  # the package is itself the call


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
