"""The table of kinds of collapse and the figure of each."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes

from attnprobe.reports import verdict
from attnprobe.reports.kind_rows import kind_rows
from attnprobe.reports.kinds import KINDS, kind_named
from tests.plots.letters import watch_letters
from tests.reports.formulas import examined, measurement

BAR = kind_named("near_uniform").bar


def with_entropy(e, shares):
    """The model whose blocks have these values of exp(entropy) over tokens."""
    tokens, heads = e.grid.n_tokens, e.measurements["row_entropy"].mean.shape[1]
    mean = np.repeat(np.log(np.array(shares) * tokens)[:, None], heads, axis=1)
    uniform = measurement("row_entropy", np.full(mean.shape, np.log(tokens)))
    m = replace(measurement("row_entropy", mean), baselines={"uniform": uniform})
    return replace(e, measurements={**e.measurements, "row_entropy": m})


def rows_of(*runs):
    return kind_rows([(e, verdict(e)) for e in runs], 3.6, 9.6)


def row(rows, name):
    return next(r for r in rows if r.kind.name == name)


def test_every_kind_has_one_row_with_a_cell_for_each_run():
    rows = rows_of(examined("a", layers=4), examined("b", layers=3))
    assert sorted(r.kind.name for r in rows) == sorted(kind.name for kind in KINDS)
    assert all(len(r.cells) == 2 for r in rows)


def test_the_kind_found_in_most_blocks_comes_first_and_what_cannot_be_said_last():
    e = with_entropy(examined(layers=8, similar=(), pictures=0), [0.99] * 6 + [0.3] * 2)
    e = replace(e, measurements={k: m for k, m in e.measurements.items() if m.metric != "image_similarity"})
    rows = rows_of(e)
    assert rows[0].kind.name == "near_uniform" and rows[0].cells[0].mark == "found"
    assert rows[-1].cells[0].mark == "unknown"
    order = ["found", "single", "explained", "none", "unknown"]
    places = [order.index(r.cells[0].mark) for r in rows]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("shares", "mark", "answer"),
    [
        ([0.3] * 8, "none", "not found"),
        ([0.99] + [0.3] * 7, "single", "in single blocks: block 1 of 8"),
        ([0.3] * 5 + [0.99] * 3, "found", "from block 6, 3 of 8 blocks"),
    ],
)
def test_the_answer_says_in_which_blocks(shares, mark, answer):
    cell = row(rows_of(with_entropy(examined(layers=8, similar=(), pictures=0), shares)), "near_uniform").cells[0]
    assert (cell.mark, cell.answer) == (mark, answer)
    assert cell.number.startswith(f"{max(shares):.3f} (")


def test_a_number_beyond_its_bar_that_another_kind_explains_is_said_to_be_explained():
    e = with_entropy(examined(layers=4, similar=range(1, 5), pictures=0), [0.99] * 4)
    cell = row(rows_of(e), "repetition").cells[0]
    assert (cell.mark, cell.answer) == ("explained", "explained by another kind") and "near uniform" in cell.detail


def test_a_figure_draws_every_blocks_number_and_marks_those_that_count(monkeypatch):
    shares = [0.3, 0.95, 0.4, 0.97, 0.5, 0.6]
    e = with_entropy(examined(layers=6, similar=(), pictures=0), shares)
    seen = {}
    plot, line = Axes.plot, Axes.axhline

    def watched(ax, x, y, *fmt, **options):
        seen.setdefault(id(ax), []).append((np.asarray(x), np.asarray(y), options.get("label")))
        return plot(ax, x, y, *fmt, **options)

    def bar(ax, y, **options):
        seen.setdefault(id(ax), []).append(y)
        return line(ax, y, **options)

    monkeypatch.setattr(Axes, "plot", watched)
    monkeypatch.setattr(Axes, "axhline", bar)
    rows_of(e)
    drawn = next(lines for lines in seen.values() if lines[-1] == BAR and np.allclose(lines[0][1], shares))
    np.testing.assert_array_equal(drawn[0][0], range(1, 7))
    counted = next(each for each in drawn[:-1] if each[2] == "_counted")
    np.testing.assert_array_equal(counted[0], [2, 4])


def test_a_figure_says_its_finding_in_words_and_on_which_side_of_the_bar_it_counts():
    drawing = row(rows_of(examined("vit", layers=4, similar=(4,))), "repetition").drawing
    assert "vit: block 4, 1 of 3 blocks, 0.970 (" in drawing.alt
    assert drawing.note == "Overlap; found above 0.85."


def test_the_figure_of_the_worst_kind_is_the_wide_one():
    def width(drawing):
        import base64

        svg = base64.b64decode(drawing.src.partition(",")[2]).decode()
        return float(re.search(r'width="([\d.]+)pt"', svg)[1])

    drawings = [r.drawing for r in rows_of(examined(layers=4, similar=(3, 4))) if r.drawing]
    assert width(drawings[0]) == pytest.approx(72 * 9.6) and {width(d) for d in drawings[1:]} == {72 * 3.6}


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (4, 3), (48, 24)])
def test_no_letter_is_cut(layers, heads, monkeypatch):
    from attnprobe.reports import kind_rows as module

    clipped, found, encode = watch_letters(monkeypatch), [], module.as_svg

    def watched(figure, *words):
        found.extend(clipped(figure))
        return encode(figure, *words)

    monkeypatch.setattr(module, "as_svg", watched)
    assert rows_of(examined("a run with a long name, really", layers=layers, heads=heads, similar=(layers,)))
    assert found == []
