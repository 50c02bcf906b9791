from pathlib import Path

import pytest
import torch

from attnprobe.metrics import METRICS
from tests.metrics.references import REFERENCES, largest_difference, papers_of

ROUGH = {"attention_flow": 1e-6}
"""Capacities are rounded to 24 bits."""


def test_every_metric_has_a_second_reference():
    assert list(REFERENCES) == list(METRICS)


@pytest.mark.parametrize("name", REFERENCES)
def test_every_metric_equals_what_another_package_computes(name):
    assert largest_difference(name) <= ROUGH.get(name, 1e-9)
    assert largest_difference(name, torch.float32) <= ROUGH.get(name, 2e-4)


def test_the_table_in_the_documentation_is_the_one_that_is_printed():
    """But for the size of the differences, which are those of the machine."""
    lines = (Path(__file__).parents[2] / "docs" / "pages" / "metrics.md").read_text(encoding="utf-8").splitlines()
    shown = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `") and line.count(" | ") == 4]
    told = {cells[0].strip("`"): cells[1:] for cells in shown if cells[0].strip("`") in METRICS}
    assert list(told) == list(METRICS)
    for name, (papers, reference, double, single) in told.items():
        assert papers == (", ".join(papers_of(name)) or "ours, or textbook") and reference == REFERENCES[name][0]
        assert largest_difference(name) <= 10 * float(double) + 1e-14
        assert largest_difference(name, torch.float32) <= 10 * float(single) + 1e-6
