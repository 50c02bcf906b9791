import base64
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from attnprobe.core.browse import StageShape
from attnprobe.core.grid import TokenGrid
from attnprobe.metrics import METRICS
from attnprobe.reports import figures, head_figures, removal
from attnprobe.reports.drawing import INK
from attnprobe.reports.figures import sections
from attnprobe.reports.head_figures import smaller
from tests.evidences import evidence
from tests.plots.letters import watch_letters
from tests.reports.formulas import all_metrics, examined, measurement, picture, precision, types


class Stored:
    """Maps whose every number is known, as a file would hand them out."""

    image_ids = tuple(f"image{i}" for i in range(20))

    def __init__(self, layers, heads):
        self._shape = StageShape("trunk", "self", tuple(range(1, layers + 1)), tuple(range(1, heads + 1)),
                                 tuple(range(17)), 17, TokenGrid(4, 4), (("weights", True),))  # fmt: skip

    def shapes(self):
        return (self._shape,)

    def layer(self, stage, site, image, layer):
        rows = np.random.default_rng((image, layer)).random((len(self._shape.heads), 17, 17))
        return (rows / rows.sum(-1, keepdims=True)).astype(np.float32)

    def told(self, image):
        return -1, -1, float("nan")


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

    for module in (figures, head_figures, removal):
        monkeypatch.setattr(module, "as_svg", watched)
    for module in (figures, head_figures):
        monkeypatch.setattr(module, "as_photograph", lambda figure, *words, **_: watched(figure, *words))
    fields = {"evidence": evidence(blocks_lost=range(layers)), "precision": {"similar_blocks": precision()}}
    runs = [examined("a run with a long name, really", layers=layers, heads=heads, similar=(layers,), **fields)]
    runs[0] = replace(runs[0], measurements={**runs[0].measurements, "head_types": types(layers, heads)})
    assert drawings(runs)
    assert found == []


def test_runs_share_one_colour_scale(monkeypatch, two_runs):
    seen = {}
    for plot in ("layer_matrix", "layer_head", "head_grid", "attention_grid"):
        module = head_figures if "head" in plot else figures
        call = getattr(module, plot)

        def watched(m, *args, call=call, plot=plot, **options):
            seen.setdefault((plot, getattr(m, "metric", "").removesuffix("_centred")), set()).add(options["limits"])
            return call(m, *args, **options)

        monkeypatch.setattr(module, plot, watched)
    other = replace(two_runs[1], pictures=(replace(picture(6, 4, image_id="val/0"), attention=np.ones((6, 4, 4, 4))),))
    drawings([two_runs[0], other])
    assert len(seen) > 6
    assert {key: len(limits) for key, limits in seen.items()} == dict.fromkeys(seen, 1)


def test_names_equal_after_shortening_stay_apart(monkeypatch):
    runs = [examined(f"the same first thirty characters {i}", layers=4, pictures=0) for i in (1, 2)]
    titles = [drawing.title for drawing in drawings(runs)]
    assert len({title for title in titles if "every pair" in title}) == 2


def test_the_atlas_says_every_head_in_words_and_shows_its_mean_map():
    e = examined(layers=3, heads=2, pictures=0, maps=Stored(layers=3, heads=2))
    typed = replace(e, measurements={**e.measurements, "head_types": types(3, 2)})
    with_maps, without = (
        next(d for d in drawings([run]) if "type of every head" in d.title)
        for run in (typed, replace(typed, maps=None))
    )
    assert with_maps.wide and "3 dead, 3 uniform" in with_maps.note and "mean of 8 images" in with_maps.note
    assert "block 1 dead, uniform; block 2 uniform, dead; block 3 dead, uniform." in with_maps.alt
    assert "Tiles" not in without.note and without.src != with_maps.src


def test_a_thumbnail_is_the_mean_over_parts_of_the_map():
    maps = np.random.default_rng(0).random((2, 70, 45))
    found = smaller(maps)
    assert found.shape == (2, 24, 23)
    np.testing.assert_allclose(found[1, 0, 0], maps[1, :3, :2].mean())
    np.testing.assert_allclose(found[0, -1, -1], maps[0, 69:, 44:].mean())
    np.testing.assert_array_equal(smaller(maps[:, :32, :32]), maps[:, :32, :32])


def test_how_many_images_are_enough_is_drawn_and_said():
    e = examined(layers=4, pictures=0, precision={"similar_blocks": precision()})
    found = next(d for d in drawings([e]) if "How many images" in d.title)
    assert "0.100 to 0.900 on 8 images, 0.400 to 0.600 on 40 images" in found.alt


def test_every_metric_that_was_asked_for_has_a_figure_whatever_its_axes():
    e = examined(layers=3, heads=2, pictures=0)
    shapes = {"layer": 3, "head": 2, "key": 17, "prefix": 1}
    more = {
        name: measurement(name, np.full([shapes[axis] for axis in METRICS[name].axes], 0.3), spread=0)
        for name in METRICS
        if name not in all_metrics(3, 2)
    }
    titles = [drawing.title for drawing in drawings([replace(e, measurements={**e.measurements, **more})])]
    named = {"layer similarity": "similarity of every", "similar blocks": "Similar blocks", "token similarity": "Token"}
    for name in {*more, *e.measurements} - {"head_similarity"}:  # that shows where there is no divergence
        words = name.removesuffix("_centred").replace("_", " ")
        assert any(named.get(words, words) in title for title in titles), name


def test_only_what_was_measured_is_drawn():
    e = examined(layers=4, pictures=0)
    alone = replace(e, measurements={"row_entropy": e.measurements["row_entropy"]})
    assert [drawing.title for drawing in drawings([alone])] == ["row entropy [nats] by block and head"]
    assert drawings([replace(e, measurements={})]) == []


def test_values_that_are_not_finite_are_drawn_without_complaint():
    e = examined(layers=4, heads=2, images=1, pictures=0)
    empty = {key: replace(m, mean=np.full_like(m.mean, np.nan)) for key, m in e.measurements.items()}
    assert drawings([replace(e, measurements=empty)])


@pytest.mark.promise("names-hostile")
@pytest.mark.parametrize("name", ["$\\frac{1$", "_hidden", "数字 عدد", "a\nb\x07", "x" * 300, "<script>"])
def test_hostile_names_do_not_stop_the_pen(name):
    shown = picture(4, 2, image_id=name, label=name, prediction=name)
    runs = [examined(name, layers=4, heads=2, pictures=0), examined(f"{name}2", layers=4, heads=2, pictures=0)]
    drawn = drawings([runs[0], replace(runs[1], pictures=(shown,))])
    assert drawn and all(drawing.src.startswith("data:image/") for drawing in drawn)
