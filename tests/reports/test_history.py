"""The page shows what the probe saw, and its alarms in words; without a probe it says nothing of it."""

import json

import pytest

from attnprobe.reports.figures import sections
from attnprobe.reports.html import to_html
from attnprobe.reports.json_report import to_json
from attnprobe.reports.verdict import verdict
from tests.histories import history
from tests.plots.letters import watch_letters
from tests.reports.formulas import examined

TITLE = "What happened while it trained?"
ALARMS = [(4, "blocks 4–6 <b>now</b> repeat the previous block"), (8, "second"), (8, "third")]


@pytest.fixture(scope="module")
def probed():
    return examined("watched", layers=6, heads=2, history=history(similar_from=4, alarms=ALARMS))


def section(runs):
    return next((s for s in sections(runs) if s.title == TITLE), None)


def test_the_section_is_there_only_for_runs_with_a_history(probed):
    plain = examined("plain", layers=6, heads=2)
    assert section([plain]) is None
    assert TITLE not in to_html([plain])
    titles = [drawing.title for drawing in section([plain, probed]).drawings]
    assert titles == [
        "watched: similarity of every pair of blocks while it trained",
        "watched: which blocks repeat the previous block, and since when",
        "watched: entropy of attention rows by block and epoch",
    ]


def test_alternative_texts_state_the_finding(probed):
    film, onset, entropy = (drawing.alt for drawing in section([probed]).drawings)
    assert "Mean cosine of neighbouring blocks: 0.995 at epoch 1, 0.810 at epoch 10" in film
    assert "5 of 6 similar at epoch 1, 3 at the last" in onset
    assert "2.83 nats at epoch 1, 1.81 at the last" in entropy


def test_alarms_are_listed_as_text_and_the_first_stands_beside_the_verdict(probed):
    assert section([probed]).sentences[0] == "watched, epoch 4: blocks 4–6 <b>now</b> repeat the previous block."
    assert section([probed]).sentences[-1] == (
        "watched: 7 probes took 0.35 s beside 70.0 s of training: 0.50% of the time."
    )
    page = to_html([probed])
    assert "blocks 4–6 &lt;b&gt;now&lt;/b&gt; repeat" in page and "<b>now" not in page
    assert "watched, epoch 8: third." in page
    first = "while it trained, from epoch 4: blocks 4–6 <b>now</b> repeat the previous block; 2 more alarms later."
    assert verdict(probed).warnings[0] == first


def test_json_has_the_history(probed):
    run = json.loads(to_json([probed]))["runs"][0]
    assert run["history"]["epochs"] == [1, 2, 3, 4, 6, 8, 10]
    assert run["history"]["blocks"]["similar_blocks"][0][0] is None
    assert run["history"]["alarms"][1] == {"epoch": 8, "text": "second"}
    assert json.loads(to_json([examined(layers=2, heads=2)]))["runs"][0]["history"] is None


@pytest.mark.parametrize("epochs", [(1,), range(1, 9), range(1, 400, 7)])
@pytest.mark.parametrize("blocks", [2, 16, 48])
def test_all_letters_are_inside_the_figures(epochs, blocks, monkeypatch):
    from attnprobe.reports import drawing
    from attnprobe.reports import history as module

    clipped, bad = watch_letters(monkeypatch), []

    def check(figure, *rest):
        bad.extend(clipped(figure))
        return drawing.as_svg(figure, *rest)

    monkeypatch.setattr(module, "as_svg", check)
    runs = [examined("a name of twenty-four chr", layers=2, heads=2, pictures=0, history=history(epochs, blocks))]
    assert len(section(runs).drawings) == 3
    assert bad == []
