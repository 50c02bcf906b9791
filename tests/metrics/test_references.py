import pytest
import torch

from attnprobe.metrics import METRICS
from tests.metrics.references import QUESTIONS, REFERENCES, largest_difference

ROUGH = {"attention_flow": 1e-6}
"""Capacities are rounded to 24 bits."""


def test_every_metric_has_a_second_reference():
    assert list(REFERENCES) == list(METRICS)


def test_every_metric_answers_one_question_of_the_grouped_table():
    assert sorted(name for names in QUESTIONS.values() for name in names) == sorted(METRICS)


@pytest.mark.parametrize("name", REFERENCES)
def test_every_metric_equals_what_another_package_computes(name):
    assert largest_difference(name) <= ROUGH.get(name, 1e-9)
    assert largest_difference(name, torch.float32) <= ROUGH.get(name, 2e-4)
