import math
from dataclasses import replace

import numpy as np
import pytest

from attnprobe.reports.numbers import (
    ci_text,
    interval,
    mean_of_cells,
    neighbour_mean,
    neighbours,
    number,
    settings_text,
)
from tests.reports.formulas import layer_cosine, measurement


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (5, "5"),
        (0.0, "0.000"),
        (0.94449, "0.944"),
        (-0.0123, "-0.012"),
        (0.99961, "1.00"),
        (2.5, "2.50"),
        (16.04, "16.0"),
        (100.2, "100"),
        (12345.6, "12346"),
        (0.0000321, "3.2e-05"),
        (3e9, "3.0e+09"),
    ],
)
def test_numbers_have_three_digits(x, text):
    assert number(x) == text


def test_intervals_read_as_ranges_and_never_as_a_subtraction():
    assert interval(4, 6) == "4–6"
    assert interval(-0.5, 0.25) == "-0.500 to 0.250"
    assert interval(None, None) == interval(math.nan, 1.0) == ""
    assert ci_text([4, 6]) == " (95% CI 4–6)" and ci_text([None, None]) == ""


def test_neighbours_are_the_cells_next_to_the_diagonal():
    m = measurement("layer_similarity", layer_cosine(5, 0.2))
    slow = [m.mean[block, block + 1] for block in range(4)]
    assert neighbour_mean(m) == pytest.approx(sum(slow) / 4)
    assert neighbours(m).sum() == 4
    assert math.isnan(neighbour_mean(measurement("layer_similarity", [[1.0]])))


def test_the_mean_of_cells_skips_what_is_not_finite():
    m = measurement("row_entropy", [[1.0, np.nan], [3.0, 2.0]])
    assert mean_of_cells(m).startswith("2.00 (")
    assert mean_of_cells(measurement("row_entropy", [[np.nan]])) == "–"


def test_settings_name_everything_that_changes_a_number():
    m = measurement("similar_blocks", np.zeros((50, 3)), images=7)
    text = settings_text(replace(m, n_excluded=2))
    for name in m.settings.keys() - {"interval", "bootstrap", "bootstrap_seed"}:
        assert f"{name}={m.settings[name]}" in text
    assert "7 images, 2 of them not finite" in text
    assert "95 % interval from 20 resamples of the images" in text
    normal = replace(m, settings={**m.settings, "interval": "normal"})
    assert "normal approximation" in settings_text(normal)
    assert "interval" not in settings_text(replace(m, n_images=1))
