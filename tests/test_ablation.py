"""What is told to be droppable was dropped, and the accuracies are those of the models without it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from attnprobe import ablation, cli, pipeline
from attnprobe.ablation import MOST_TRIED, Tried, verify_drops
from attnprobe.core.accuracy import accuracy_difference
from attnprobe.core.errors import InputError
from attnprobe.models.ablate import Change
from attnprobe.pruning import prune
from tests.reports.formulas import head_distance, measurement

TINY = {"epochs": 2, "warmup_epochs": 1, "model_kwargs": {"depth": 4, "embed_dim": 24, "num_heads": 3}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("ablation") / "vit"
    pipeline.train("digits_vit_16", path, settings=TINY)
    pipeline.capture(path, images=20, untrained=0)
    return path


def test_accuracies_are_those_of_pruned_models(run, tmp_path):
    evidence, _ = verify_drops(run, blocks=[2, 4], heads=[(1, 3)], device="cpu", images=100)
    assert [str(tried.changes[0]) for tried in evidence.single] == [
        "block 2: map of the block before", "block 2: attention skipped", "block 2: dropped",
        "block 4: map of the block before", "block 4: attention skipped", "block 4: dropped",
        "block 1, head 3: output 0",
    ]  # fmt: skip
    right = {str(tried.changes[0]): tried.right for tried in evidence.single}
    for cut, words in (({"blocks": [4]}, "block 4: dropped"), ({"heads": {1: [3]}}, "block 1, head 3: output 0")):
        done = prune(run, tmp_path / words[:7], **cut, device="cpu", images=100)
        np.testing.assert_array_equal(done.right[0], evidence.whole)
        np.testing.assert_array_equal(done.right[1], right[words])


def test_the_curve_takes_the_cheapest_first_and_all_in_the_end(run):
    evidence, _ = verify_drops(run, blocks=[2, 3, 4], device="cpu", images=100)
    curve = evidence.curves["blocks"]
    assert [len(tried.changes) for tried in curve] == [1, 2, 3]
    assert {change.block for change in curve[-1].changes} == {2, 3, 4}
    alone = {
        tried.changes[0].block: tried.right.mean() for tried in evidence.single if tried.changes[0].kind == "block"
    }
    assert curve[0].right.mean() == max(alone.values())
    first, second = (tried.changes for tried in curve[:2])
    assert second[:1] == first


def test_candidates_are_the_reports_and_settings_move_them(run):
    evidence, _ = verify_drops(run, metrics=["similar_blocks:tau=0.5,rho=0"], device="cpu", images=60)
    summary = pipeline.examine(run, metrics=["similar_blocks:tau=0.5,rho=0", "head_divergence"]).measurements
    similar = summary["similar_blocks"].summary["similar"]
    tried = {t.changes[0].block for t in evidence.single if t.changes[0].kind == "map"}
    heads = [t for t in evidence.single if t.changes[0].kind == "head"]
    assert similar and tried == set(similar)
    assert len(heads) == summary["head_divergence"].summary["redundant"]


def test_redundant_heads_are_all_but_one_of_each_group():
    m = measurement("head_divergence", head_distance(4, 5, twins=3))
    assert list(ablation._redundant(m)) == [(3, 2), (3, 3), (4, 2), (4, 3)]
    some = replace(m, coords={"layer": [2, 5, 8, 11]})
    assert list(ablation._redundant(some)) == [(8, 2), (8, 3), (11, 2), (11, 3)]


def test_many_candidates_are_taken_in_the_order_of_what_each_costs(monkeypatch):
    n = MOST_TRIED + 2
    alone = [Tried((Change("head", 1, head),), np.arange(20) < 20 - head) for head in range(n, 0, -1)]
    tries = []

    def tried(_trial, _ablatable, changes, _advance):
        tries.append(len(changes))
        return Tried(tuple(changes), np.zeros(20, bool))

    monkeypatch.setattr(ablation, "_tried", tried)
    curve = ablation._curve(alone, None, None, None)
    assert [change.head for change in curve[-1].changes] == list(range(1, n + 1))
    assert tries == list(range(2, n + 1)) and len(tries) == ablation._tries(n)
    few = ablation._curve(alone[:4], None, None, None)
    assert len(few) == 4 and len(tries) == n - 1 + ablation._tries(4)


def test_files_and_words_say_the_same(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    folder = tmp_path / "evidence"
    cli.main(["verify-drops", str(run), "--blocks", "2,3", "--heads", "1:2", "-o", str(folder), "--images", "60"])
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((folder / "drops.csv").open()))
    document = json.loads((folder / "drops.json").read_text())
    assert len(rows) == len(document["tries"]) == 7 + 2 + 1
    assert {row["curve"] for row in rows} == {"", "blocks", "heads"}
    assert printed.count("%–") == 1 + len(rows) and document["n_images"] == 60
    for row in rows:
        assert f"{float(row['accuracy']):.2%} ({float(row['low']):.2%}–{float(row['high']):.2%})" in printed
        assert float(row["gained"]) == pytest.approx(float(row["accuracy"]) - document["accuracy"])
    assert "nan" not in printed.lower()


def test_a_loss_that_is_sure_is_called_so():
    whole, gone = np.ones(60, bool), np.zeros(60, bool)
    evidence = ablation.Evidence("m", whole, (Tried((Change("block", 2),), gone),), {}, "advice")
    assert accuracy_difference(whole, gone)[2] < 0 and "not by chance" in str(evidence)
    same = ablation.Evidence("m", whole, (Tried((Change("block", 2),), whole),), {}, "advice")
    assert "not by chance" not in str(same)


def test_without_maps_or_labels_it_says_what_to_do(run, tmp_path):
    with pytest.raises(InputError, match="capture them, or name"):
        verify_drops("vit_16_digits", data="digits")
    with pytest.raises(InputError, match="--data"):
        verify_drops("vit_16_digits", blocks=[2])
    with pytest.raises(InputError, match="no block 9"):
        verify_drops(run, blocks=[9])
    none, _ = verify_drops(run, blocks=[], heads=[], images=40)
    assert none.single == () and none.curves == {} and "whole model" in str(none)
