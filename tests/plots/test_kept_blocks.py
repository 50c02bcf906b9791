"""Figures of some blocks alone number them as the model does."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from attnprobe.core.examined import AttendedImage
from attnprobe.plots import attention_grid, depth_curve, head_embedding, head_grid
from tests.reports.formulas import measurement

KEPT = (2, 5, 11)


def kept(name, mean):
    return replace(measurement(name, mean), coords={"layer": list(KEPT)})


def numbers_in(ax):
    words = (text.get_text() for text in [*ax.texts, *ax.get_xticklabels()])
    return [int(word.split()[-1]) for word in words if word.split()[-1:] and word.split()[-1].isdigit()]


def test_a_curve_stands_at_its_blocks_beside_that_of_the_whole_model():
    ax = depth_curve(kept("row_entropy", np.ones((3, 2))))
    depth_curve(measurement("row_entropy", np.ones((12, 2))), ax)
    one, other = (line.get_xdata() for line in ax.get_lines()[:2])
    assert one.tolist() == [number - 1 for number in KEPT] and other.tolist() == list(range(12))
    assert ax.get_xlim() == (-0.5, 11.5)
    plt.close(ax.figure)


def test_tiles_have_the_numbers_of_their_blocks():
    ax = head_grid(kept("head_divergence", np.zeros((3, 2, 2))))
    assert numbers_in(ax) == list(KEPT)
    plt.close(ax.figure)
    picture = AttendedImage("a", np.zeros((4, 4, 3), np.uint8), "", "", 0.5, np.zeros((3, 2, 2, 2)), blocks=KEPT)
    ax = attention_grid(picture)
    assert numbers_in(ax) == list(KEPT)
    plt.close(ax.figure)


def test_heads_are_coloured_by_the_numbers_of_their_blocks():
    rng = np.random.default_rng(0)
    values = rng.random((6, 6))
    ax = head_embedding(kept("head_similarity_across_layers", ((values + values.T) / 2).reshape(3, 2, 3, 2)))
    assert sorted(set(np.asarray(ax.collections[0].get_array()).tolist())) == list(KEPT)
    plt.close(ax.figure)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")
