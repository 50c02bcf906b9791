"""Nouns show themselves in a notebook and in a terminal: short, and whatever they hold is text."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnprobe.capturing.certificate import Certificate, LayerProof
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.core.showing import table
from attnprobe.io.run import Run
from attnprobe.reports.verdict import verdict
from attnprobe.training import TrainResult
from tests.reports.formulas import examined

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
        warned,
    )


@pytest.mark.parametrize("which", range(5))
def test_names_from_outside_are_text(which):
    html = nouns(HOSTILE)[which]._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert html.startswith("<table>") and html.endswith("</table>")


@pytest.mark.parametrize("which", range(4))
def test_a_terminal_gets_one_short_line_without_arrays(which):
    text = repr(nouns("name")[which])
    assert "\n" not in text and len(text) < 900 and "array(" not in text and "tensor(" not in text


def test_what_is_shown_is_what_it_says():
    measured, maps, result, certificate, _ = nouns("cls")
    assert "2 images, 3 layers, 4 heads, 5 queries, 5 keys" in repr(maps) and "2 x 2 patches and cls" in repr(maps)
    assert f"count {measured.summary['count']}" in repr(measured) and "40" in repr(measured)
    assert "50.00% after 1 epochs" in repr(result) and "took 2 s" in repr(result)
    assert "layers 1; read at cls 1" in repr(certificate) and "off by at most not checked" in repr(certificate)


def test_long_values_are_cut():
    assert len(table("t", {"a": "x" * 10_000})) < 500
