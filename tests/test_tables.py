"""The hand-written tables list everything there is, under its own name."""

import importlib
import pkgutil

import pytest

import attnprobe
from attnprobe.core.metric import Metric
from attnprobe.core.registry import Registry, UnknownName


@pytest.mark.parametrize("table", ["VARIANTS", "MODELS", "METRICS", "DATASETS", "PLOTS", "RECIPES"])
def test_names_are_keys(table):
    entries = getattr(attnprobe, table)
    assert entries
    assert all((thing.__name__ if table == "PLOTS" else thing.name) == name for name, thing in entries.items())


def test_every_metric_defined_in_the_package_is_in_the_table():
    import attnprobe.metrics as package

    defined = set()
    for module in pkgutil.iter_modules(package.__path__):
        names = vars(importlib.import_module(f"attnprobe.metrics.{module.name}")).values()
        defined |= {thing.name for thing in names if isinstance(thing, Metric)}
    assert defined == set(attnprobe.METRICS)


def test_every_metric_says_what_it_is():
    for metric in attnprobe.METRICS.values():
        assert metric.function.__doc__ and len(metric.function.__doc__) > 100, metric.name


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="no metric named 'layer_similarty'. Did you mean 'layer_similarity'?"):
        attnprobe.METRICS["layer_similarty"]


def test_registry_behaves_like_a_mapping():
    class Thing:
        name = "a"

    table = Registry("thing", Thing())
    assert list(table) == ["a"] and len(table) == 1 and "a" in table and "b" not in table
    assert table.get("b") is None
