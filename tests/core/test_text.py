"""Nouns show themselves in a notebook and in a terminal: short, and whatever they hold is text."""

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.capturing import capture
from attnprobe.capturing.certificate import Certificate, LayerProof
from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.core.measurement import Measurements
from attnprobe.core.text import blocks_text, markdown, numbers, one_run_each, short, table, visible
from attnprobe.data.order import ListedImages
from attnprobe.io.run import Run
from attnprobe.reports.verdict import verdict
from attnprobe.training import TrainResult
from tests.reports.formulas import examined


def test_bidi_and_control_characters_are_spelt_out():
    assert visible("gpj.\u202eexe\x1b[31m\n\u2066x\u200f") == "gpj.‹U+202E›exe‹U+001B›[31m‹U+000A›‹U+2066›x‹U+200F›"


def test_letters_of_any_script_stay():
    assert visible("Größe 数字 цифры أرقام µ–") == "Größe 数字 цифры أرقام µ–"


@given(st.text(st.characters(codec=None), max_size=30))
@settings(max_examples=80, deadline=None)
def test_nothing_hidden_is_left_and_the_result_can_be_written(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in shown)
    assert visible(shown) == shown


@given(st.text(max_size=80), st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_short_names_fit_and_say_that_they_are_cut(text, length):
    cut = short(text, length)
    assert len(cut) <= length
    assert cut == visible(text) or cut.endswith("…")


def test_markdown_sees_no_markup():
    assert markdown("<b>|`x`*[a](b)*$") == "&lt;b&gt;\\|\\`x\\`\\*\\[a\\](b)\\*\\$"


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([3], "block 3"),
        ([3, 7], "blocks 3 and 7"),
        ([3, 4, 5, 9], "blocks 3–5 and 9"),
        ([1, 3, 8, 9], "blocks 1, 3 and 8–9"),
    ],
)
def test_blocks_are_listed_in_words(blocks, text):
    assert blocks_text(blocks) == text


def test_single_runs_reach_no_further_than_themselves():
    assert one_run_each(2) == "One run each: about these two checkpoints, not about the methods."
    assert "these 3 checkpoints" in one_run_each(3)


HOSTILE = "<script>alert(1)</script>"
ROW = {"seconds": 2.0, "train_loss": 0.5}


def nouns(name):
    one = examined(layers=6, heads=4)
    warned = replace(verdict(one), warnings=(name,))
    maps = AttentionMaps(torch.full((2, 3, 4, 5, 5), 0.2), ("a", "b"), TokenGrid(2, 2, prefix=(name,)))
    return (
        replace(one.measurements["similar_blocks"], metric=name),
        maps,
        TrainResult(Run(Path(name)), 0.5, 0.6, 1, (ROW,)),
        Certificate((LayerProof(name, name, 1e-7, None),), True, 0.0, 2),
        source := ListedImages(name, InputSpec(), ids=("a",), class_names=(name, "dog"), fingerprint=""),
        capture(torch.nn.Linear(1, 1), Unread(source)),
        Measurements({name: one.measurements["row_entropy"]}),
        warned,
    )


class Unread:
    """Images that end the test if they are read."""

    def __init__(self, source):
        self.name = source.name

    def __len__(self):
        return 7

    def batches(self, *_, **__):
        raise AssertionError("something read images in order to show itself")


@pytest.mark.parametrize("which", range(8))
def test_names_from_outside_are_text(which):
    html = nouns(HOSTILE)[which]._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert html.startswith("<table>") and html.endswith("</table>")


@pytest.mark.parametrize("which", range(8))
def test_a_terminal_gets_one_short_line_without_arrays(which):
    text = repr(nouns("name")[which])
    assert "\n" not in text and len(text) < 900 and "array(" not in text and "tensor(" not in text


def test_what_is_shown_is_what_it_says():
    measured, maps, result, certificate, source, captured, measurements, _ = nouns("cls")
    assert repr(source).startswith("<images of cls: images 1; classes 2 (cls, dog); input 224 x 224, bicubic;")
    assert "<Capture of Linear: images 7 of cls; captured effective; proof at first use" in repr(captured)
    assert repr(measurements) == "<1 measurements: cls>"
    assert "2 images, 3 layers, 4 heads, 5 queries, 5 keys" in repr(maps) and "2 x 2 patches and cls" in repr(maps)
    assert f"count {measured.summary['count']}" in repr(measured) and "40" in repr(measured)
    assert "50.00% after 1 epochs" in repr(result) and "took 2 s" in repr(result)
    assert "layers 1; read at cls 1" in repr(certificate) and "off by at most not checked" in repr(certificate)


def test_long_values_are_cut():
    assert len(table("t", [("a", "x" * 10_000)])) < 500


def test_a_row_that_is_too_short_spans_the_columns():
    html = table("t", [("a", 1, 2), ("b", 3)], ("name", "one", "two"))
    assert re.findall(r"<t[hd][^>]*?(colspan=.\d.)?>(\w+)<", html)[3:] == [
        ("", "a"),
        ("", "1"),
        ("", "2"),
        ("", "b"),
        ("colspan='2'", "3"),
    ]


def test_measurements_of_a_model_are_a_row_each():
    measurements = examined(layers=6, heads=4).measurements
    html = measurements._repr_html_()
    assert html.count("<tr>") == 1 + len(measurements) and all(f">{name}</th>" in html for name in measurements)
    entropy = measurements["row_entropy"]
    fresh = entropy.baselines["untrained"].mean
    assert f"{fresh.mean():.4g} nats ({fresh.min():.4g}, {fresh.max():.4g})</td></tr>" in html


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "gpj.\u202eexe"])
def test_a_name_moves_no_cursor(text):
    for noun in nouns(text):
        assert text not in noun._repr_html_() and text not in repr(noun)


def test_seeds_are_numbers_and_ranges_from_zero():
    assert numbers("--seeds", "0-2,7", 0) == [0, 1, 2, 7] and numbers("--seeds", "3", 0) == [3]
    assert numbers("--seeds", "0, 4 - 5", 0) == [0, 4, 5]
    for text in ("", "a", "-1", "3-1", "1-", "1:3", "0-999999999"):
        with pytest.raises(InputError, match="--seeds.* must be numbers from 0 and ranges"):
            numbers("--seeds", text, 0)
