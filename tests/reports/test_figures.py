import base64
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from attnprobe.reports import figures
from attnprobe.reports.drawing import INK
from attnprobe.reports.figures import sections
from tests.plots.letters import watch_letters
from tests.reports.formulas import examined, picture


def drawings(runs):
    return [drawing for section in sections(runs) for drawing in section.drawings]


def svg_of(drawing):
    kind, _, data = drawing.src.partition(";base64,")
    assert kind in ("data:image/svg+xml", "data:image/webp")
    return base64.b64decode(data).decode() if kind.endswith("svg+xml") else ""


@pytest.fixture(scope="module")
def two_runs():
    return [
        examined("plain", layers=6, heads=4, similar=(5, 6), untrained=(2,)),
        examined("changed", layers=6, heads=4, similar=(2,), effective_similar=(), untrained=()),
    ]


@pytest.fixture(scope="module")
def drawn(two_runs):
    return drawings(two_runs)


def test_each_question_has_its_figures(drawn):
    titles = [drawing.title for drawing in drawn]
    for words in (
        "plain, softmax maps: similarity of every pair of blocks",
        "changed, effective maps: similarity of every pair of blocks",
        "changed, softmax maps: similarity of every pair of blocks",
        "Similarity ratio against depth",
        "Similar blocks against the threshold tau",
        "plain, softmax maps: head divergence [nats]",
        "row entropy [nats] by block and head",
        "prefix mass by block and head",
        "Token similarity against depth",
        "plain, softmax maps: attention over val/0",
    ):
        assert words in titles


def test_the_alternative_text_states_the_finding(drawn):
    alts = {drawing.title: drawing.alt for drawing in drawn}
    assert "2 of 6 blocks similar" in alts["Similarity ratio against depth"]
    assert "at most 0.970, in block 5" in alts["Similarity ratio against depth"]
    assert "0.980 raw, 0.900 centred" in alts["plain, softmax maps: similarity of every pair of blocks"]
    assert "6 of 24 heads redundant" in alts["plain, softmax maps: head divergence [nats]"]
    assert "0.100 in block 1, 0.800 in the last" in alts["Token similarity against depth"]


def test_settings_stand_under_every_measured_figure(drawn):
    for drawing in drawn:
        assert "40 images" in drawing.settings or drawing.title.endswith("val/0")


def test_drawings_can_neither_run_nor_load_anything_and_follow_the_theme(drawn):
    for drawing in drawn:
        svg = svg_of(drawing)
        if not svg:
            continue
        root = ET.fromstring(svg)
        assert not [node for node in root.iter() if node.tag.rpartition("}")[2] in ("script", "foreignObject", "a")]
        links = [value for node in root.iter() for name, value in node.attrib.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert "currentColor" in svg and INK not in svg and "prefers-color-scheme:dark" in svg


def test_the_same_runs_give_the_same_bytes(two_runs, drawn):
    assert drawings(two_runs) == drawn


def test_drawing_leaves_no_trace_in_matplotlib(two_runs):
    before = (dict(matplotlib.rcParams), pyplot.get_fignums())
    drawings(two_runs[:1])
    assert (dict(matplotlib.rcParams), pyplot.get_fignums()) == before


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (4, 3), (16, 6), (48, 24)])
def test_no_letter_is_cut_at_any_size(layers, heads, monkeypatch):
    clipped = watch_letters(monkeypatch)
    found = []
    encode = figures.as_svg

    def watched(figure, *words):
        found.extend(clipped(figure))
        return encode(figure, *words)

    monkeypatch.setattr(figures, "as_svg", watched)
    monkeypatch.setattr(figures, "as_photograph", watched)
    runs = [examined("a run with a long name, really", layers=layers, heads=heads, similar=(layers,))]
    assert drawings(runs)
    assert found == []


def test_runs_share_one_colour_scale(monkeypatch, two_runs):
    seen = {}
    for plot in ("layer_matrix", "layer_head", "head_grid", "attention_grid"):
        call = getattr(figures, plot)

        def watched(m, *args, call=call, plot=plot, **options):
            seen.setdefault((plot, getattr(m, "metric", "").removesuffix("_centred")), set()).add(options["limits"])
            return call(m, *args, **options)

        monkeypatch.setattr(figures, plot, watched)
    other = replace(two_runs[1], pictures=(replace(picture(6, 4, image_id="val/0"), attention=np.ones((6, 4, 4, 4))),))
    drawings([two_runs[0], other])
    assert len(seen) > 6
    assert {key: len(limits) for key, limits in seen.items()} == dict.fromkeys(seen, 1)


def test_names_equal_after_shortening_stay_apart(monkeypatch):
    runs = [examined(f"the same first thirty characters {i}", layers=4, pictures=0) for i in (1, 2)]
    titles = [drawing.title for drawing in drawings(runs)]
    assert len({title for title in titles if "every pair" in title}) == 2


def test_only_what_was_measured_is_drawn():
    e = examined(layers=4, pictures=0)
    alone = replace(e, measurements={"row_entropy": e.measurements["row_entropy"]})
    assert [drawing.title for drawing in drawings([alone])] == ["row entropy [nats] by block and head"]
    assert drawings([replace(e, measurements={})]) == []


def test_values_that_are_not_finite_are_drawn_without_complaint():
    e = examined(layers=4, heads=2, images=1, pictures=0)
    empty = {key: replace(m, mean=np.full_like(m.mean, np.nan)) for key, m in e.measurements.items()}
    assert drawings([replace(e, measurements=empty)])


@pytest.mark.parametrize("name", ["$\\frac{1$", "_hidden", "数字 عدد", "a\nb\x07", "x" * 300, "<script>"])
def test_hostile_names_do_not_stop_the_pen(name):
    shown = picture(4, 2, image_id=name, label=name, prediction=name)
    runs = [examined(name, layers=4, heads=2, pictures=0), examined(f"{name}2", layers=4, heads=2, pictures=0)]
    drawn = drawings([runs[0], replace(runs[1], pictures=(shown,))])
    assert drawn and all(drawing.src.startswith("data:image/") for drawing in drawn)
