"""The papers' table says what was measured, and nothing where nothing was."""

from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.accuracy import accuracy_interval
from attnprobe.reports.kinds import NAMES, OTHER_BARS
from attnprobe.reports.numbers import number
from attnprobe.reports.papers import HEADER, kinds_cells, papers_caption, papers_cells, papers_table
from attnprobe.reports.verdict import verdict
from tests.reports.formulas import examined


@pytest.fixture
def runs():
    known = {"parameters": 24_423_784, "accuracy": 0.95, "n_images": 40, "n_labelled": 40}
    changed = examined("changed", layers=6, similar=(5, 6), effective_similar=(), untrained=(2, 3), info=known)
    return [examined("plain", layers=6, similar=(4, 5, 6), info=known), changed, examined("bare", layers=6, info={})]


def test_numbers_are_those_of_the_measurements(runs):
    table = papers_table(runs).set_index("model")
    low, high = accuracy_interval(38, 40)
    assert table.loc["plain", ["accuracy", "accuracy_low", "accuracy_high"]].tolist() == [0.95, low, high]
    assert table.loc["plain", ["similar_weights", "similar_effective", "similar_weights_of"]].tolist() == [3, 3, 6]
    assert table.loc["changed", ["similar_weights", "similar_effective"]].tolist() == [2, 0]
    assert table.loc["changed", "similar_weights_untrained"] == 2
    assert table.loc["plain", "similar_weights_tau"] == 0.9
    assert np.isnan(table.loc["bare", "accuracy"])


def test_cells_are_for_reading_and_unknown_ones_are_dashes(runs):
    plain, _, bare = papers_cells(runs)
    assert plain[:4] == ["plain", "24,423,784", "95.0 (83.5–98.6)", "3 of 6 (3–3)"]
    assert bare[1:3] == ["–", "–"] and len(bare) == len(HEADER)
    unmeasured = papers_cells([examined("none", layers=3, measurements={}, info={})])
    assert unmeasured == [["none", *["–"] * 6]]


def test_the_caption_says_once_what_similar_means(runs):
    caption = papers_caption(runs)
    assert caption.count("tau=0.9") == 1 and f"each head on its own, on 40 images; {OTHER_BARS}." in caption
    assert "not measured" in papers_caption([examined("none", layers=3, measurements={}, info={})])


def test_kinds_are_counted_by_run_and_those_that_no_run_can_judge_are_left_out(runs):
    plain, _, bare = runs
    kinds = {name: cells for name, *cells in kinds_cells({"one": [plain], "three": [plain, plain, bare]})}
    repeated = verdict(plain).findings[NAMES.index("repetition")]
    assert kinds["repetition"] == [f"3 of 5, {number(repeated.number)}", "3 of 5 in 2 runs, no in 1"]
    alone = replace(plain, measurements={k: m for k, m in plain.measurements.items() if m.metric == "sink_mass"})
    assert [cells[0] for cells in kinds_cells({"alone": [alone]})] == ["sink_collapse"]
