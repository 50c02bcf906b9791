"""What is told to be droppable was dropped, and the accuracies are those of the models without it."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from attnprobe.cli import app as cli
from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Change, Evidence, Tried
from attnprobe.core.spec import CaptureSpec, ReportSpec
from attnprobe.io.run import Run
from attnprobe.models.ablate import Ablatable
from attnprobe.reports.removal import advice, evidence_text
from attnprobe.workflows import ablate as ablation
from attnprobe.workflows.ablate import MOST_TRIED, verify_drops
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.measure import examine
from attnprobe.workflows.prune import heads_of, numbers_of, prune
from attnprobe.workflows.report import report
from attnprobe.workflows.train import train
from attnprobe.workflows.trial import open_trial

TINY = {"epochs": 12, "warmup_epochs": 1, "model_kwargs": {"depth": 4, "embed_dim": 24, "num_heads": 3}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("ablation") / "vit"
    train("digits_vit_16", path, settings=TINY)
    capture_file(CaptureSpec(path, images=20, untrained=0))
    return path


def test_accuracies_are_those_of_pruned_models(run, tmp_path):
    evidence = verify_drops(run, blocks=[2, 4], heads=[(1, 3)], device="cpu", images=100)
    assert [str(tried.changes[0]) for tried in evidence.single] == [
        "block 2 with the previous block's map", "block 2 without attention", "without block 2",
        "block 4 with the previous block's map", "block 4 without attention", "without block 4",
        "block 1 without head 3",
    ]  # fmt: skip
    right = {str(tried.changes[0]): tried.right for tried in evidence.single}
    for cut, words in (({"blocks": [4]}, "without block 4"), ({"heads": {1: [3]}}, "block 1 without head 3")):
        done = prune(run, tmp_path / words[:7], **cut, device="cpu", images=100)
        np.testing.assert_array_equal(done.right[0], evidence.whole.right[~evidence.chooses])
        np.testing.assert_array_equal(done.right[1], right[words][~evidence.chooses])
        assert (done.n_choosing, len(done.right[0])) == (evidence.n_choosing, evidence.n_judging) == (50, 50)


def test_the_curve_takes_the_cheapest_first_and_all_in_the_end(run):
    evidence = verify_drops(run, blocks=[2, 3, 4], device="cpu", images=100)
    curve = evidence.curves["blocks"]
    assert [len(tried.changes) for tried in curve] == [1, 2, 3]
    assert {change.block for change in curve[-1].changes} == {2, 3, 4}
    chosen = evidence.chooses
    alone = {
        tried.changes[0].block: tried.right[chosen].mean()
        for tried in evidence.single
        if tried.changes[0].kind == "block"
    }
    assert curve[0].right[chosen].mean() == max(alone.values())
    first, second = (tried.changes for tried in curve[:2])
    assert second[:1] == first


def test_maps_of_other_images_than_those_that_judge_are_said_to_be(run):
    found = examine(run, metrics=["similar_blocks", "head_divergence"]).measurements
    others = {name: replace(m, image_ids=("photo.jpg", *m.image_ids[1:])) for name, m in found.items()}
    none = {name: replace(m, image_ids=tuple(f"photo{i}" for i in range(20))) for name, m in found.items()}
    words = [ablation.evidence_of(run, its, images=20, device="cpu").candidates for its in (found, others, none)]
    assert words[1] == f"{words[0]}, on 20 images, 1 of which is not among these"
    assert words[2].startswith(f"{words[0]}, on other images than these: photo0 and others, here digits/")


def test_candidates_are_the_reports_and_settings_move_them(run):
    evidence = verify_drops(run, metrics=["similar_blocks:tau=0.5,rho=0"], device="cpu", images=60)
    summary = examine(run, metrics=["similar_blocks:tau=0.5,rho=0", "head_divergence"]).measurements
    similar = summary["similar_blocks"].summary["similar"]
    tried = {t.changes[0].block for t in evidence.single if t.changes[0].kind == "map"}
    heads = [t for t in evidence.single if t.changes[0].kind == "head"]
    assert similar and tried == set(similar)
    assert len(heads) == summary["head_divergence"].summary["redundant"]


def test_many_candidates_are_taken_in_the_order_of_what_each_costs():
    n = MOST_TRIED + 2
    nothing = np.zeros(20)
    alone = [Tried((Change("head", 1, head),), np.arange(20) < 20 - head, nothing) for head in range(n, 0, -1)]
    whole = Evidence("m", "said", Tried((), np.ones(20, bool), nothing), (), {}, np.ones(20, bool))
    tries = []

    def try_it(changes):
        tries.append(len(changes))
        return Tried(tuple(changes), np.zeros(20, bool), nothing)

    curve = ablation._curve(alone, whole, try_it)
    assert [change.head for change in curve[-1].changes] == list(range(1, n + 1))
    assert tries == list(range(2, n + 1)) and len(tries) == ablation._tries(n)
    few = ablation._curve(alone[:4], whole, try_it)
    assert len(few) == 4 and len(tries) == n - 1 + ablation._tries(4)


def test_images_that_judge_have_no_say_in_the_order():
    """Head 1 is the cheapest for the images that choose, and the dearest for the others."""
    chooses = np.arange(20) < 10
    whole = Evidence("m", "said", Tried((), np.ones(20, bool), np.zeros(20)), (), {}, chooses)
    right = [np.where(chooses, np.arange(20) < 10 - head, np.arange(20) < 10 + 3 * head) for head in (1, 2, 3)]
    alone = [Tried((Change("head", 1, h),), r, np.zeros(20)) for h, r in zip((1, 2, 3), right, strict=True)]
    curve = ablation._curve(alone, whole, lambda changes: Tried(tuple(changes), right[2], np.zeros(20)))
    assert curve[0].changes[0].head == 1
    assert whole.cost_choosing(alone[0]) < whole.cost_choosing(alone[1]) < whole.cost_choosing(alone[2])
    assert alone[0].right[~chooses].sum() < alone[1].right[~chooses].sum() < alone[2].right[~chooses].sum()


def test_files_and_words_say_the_same(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    folder = tmp_path / "evidence"
    cli.main(["verify-drops", str(run), "--blocks", "2,3", "--heads", "1:2", "-o", str(folder), "--images", "60"])
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((folder / "drops.csv").read_text().splitlines()))
    document = json.loads((folder / "drops.json").read_text())
    assert len(rows) == len(document["tries"]) == 7 + 2 + 1
    assert {row["curve"] for row in rows} == {"", "blocks", "heads"}
    assert printed.count("%–") <= 1 + len(rows) and printed.count("advice: ") == 1
    assert document["n_images"] == document["n_choosing"] == 30 and "30 images that judge; 30 others chose" in printed
    for row in rows:
        assert f"{float(row['accuracy']):.2%} ({float(row['low']):.2%}–{float(row['high']):.2%})" in printed
        assert float(row["gained"]) == pytest.approx(float(row["accuracy"]) - document["accuracy"])
    assert "nan" not in printed.lower()


def test_without_maps_or_labels_it_says_what_to_do(run, tmp_path):
    with pytest.raises(
        InputError,
        match="vit_16_digits is no run, so no maps say .*: make some with `attnprobe capture .*FOLDER",
    ):
        verify_drops("vit_16_digits", data="digits")
    with pytest.raises(
        InputError, match=rf"{run / 'maps.h5'} holds maps, not a model: attnprobe verify-drops {run}\.$"
    ):
        verify_drops(str(run / "maps.h5"))
    alone = shutil.copy(run / "maps.h5", tmp_path / "alone.h5")
    with pytest.raises(InputError, match=rf"attnprobe verify-drops {run} --maps {alone} --data digits\.$"):
        verify_drops(str(alone))
    bare = Run(tmp_path / "bare")
    shutil.copytree(run, bare.path, ignore=shutil.ignore_patterns("*.h5"))
    with pytest.raises(
        InputError,
        match=f"no maps at {bare.maps} .*: make some with `attnprobe capture {bare.path} ",
    ):
        verify_drops(bare.path)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "flat" / "image.png")
    with pytest.raises(InputError, match="the images of .* have no labels, as folders named by class would give them"):
        verify_drops(run, blocks=[2], data=str(tmp_path / "flat"))
    with pytest.raises(InputError, match="as in data='digits'"):
        verify_drops("vit_16_digits", blocks=[2])
    with pytest.raises(InputError, match="no block 9"):
        verify_drops(run, blocks=[9])
    with pytest.raises(InputError, match="split='vall'"):
        verify_drops(run, blocks=[2], split="vall")
    with pytest.raises(InputError, match="one half chooses and the other judges"):
        verify_drops(run, blocks=[2], images=1)
    none = verify_drops(run, blocks=[], heads=[], images=40)
    assert none.single == () and none.curves == {} and "whole model" in evidence_text(none)


def test_maps_of_another_model_or_of_several_stages_are_no_evidence(run, tmp_path):
    other = tmp_path / "other"
    train("digits_vit_16", other, settings={**TINY, "epochs": 2, "seed": 1})
    with pytest.raises(InputError, match="of another checkpoint than"):
        verify_drops(other, maps=run / "maps.h5", device="cpu")
    (other / "maps.h5").write_bytes((run / "maps.h5").read_bytes())
    with pytest.raises(InputError, match="of another checkpoint than"):
        report(ReportSpec([other], tmp_path / "out", verify_drops=True))
    small = prune(run, tmp_path / "small", heads={2: [1]}, device="cpu", images=20).path
    maps = capture_file(CaptureSpec(small, data="digits", images=20, untrained=0), out=tmp_path / "small.h5")
    with pytest.raises(InputError, match="measured as .* stages"):
        verify_drops(small, maps=maps, data="digits", device="cpu")
    some = capture_file(CaptureSpec(run, images=8, untrained=0, layers="1,2"), out=tmp_path / "some.h5")
    with pytest.raises(InputError, match="some.h5 holds some of the layers or heads alone"):
        verify_drops(run, maps=some, device="cpu")
    for path in (maps, some):
        with pytest.raises(InputError, match="attnprobe verify-drops .* --blocks all --heads all"):
            verify_drops(path)


def test_metrics_and_tolerances_that_say_nothing_are_refused(run):
    with pytest.raises(InputError, match="'row_entropy' does not say what could be removed"):
        verify_drops(run, metrics=["row_entropy"])
    for tolerance in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="must be a share"):
            verify_drops(run, blocks=[2], tolerance=tolerance)


def test_importance_by_gradients_is_that_of_a_loop_and_of_finite_differences(run):
    trial = open_trial(run, device="cpu", images=12)
    model = trial.model.double().eval()
    batch = next(iter(trial.images.batches(12)))
    pixels = batch.pixels.double()
    found = ablation._gate_gradients(_as_double(trial, pixels, batch.labels), ablatable := Ablatable(model, pixels))
    expected = np.zeros_like(found)
    for i in range(12):  # <O_h, dL / dO_h>, one image after the other
        kept = []

        def keep(_m, x, kept=kept):
            x[0].retain_grad()
            kept.append(x[0])

        hooks = [block.attn.proj.register_forward_pre_hook(keep) for block in model.blocks]
        F.cross_entropy(model(pixels[i : i + 1]), batch.labels[i : i + 1]).backward()
        for layer, outputs in enumerate(kept):
            product = (outputs * outputs.grad).unflatten(-1, (3, -1))
            expected[i, layer] = product.sum((0, 1, 3)).numpy(force=True)
        for hook in hooks:
            hook.remove()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)
    step = 1e-5
    for layer, head in ((0, 1), (3, 2)):
        losses = []
        for sign in (1, -1):
            gates = [torch.ones(12, 3, dtype=torch.float64) for _ in range(4)]
            gates[layer][:, head] += sign * step
            with torch.inference_mode(), ablatable.gated(gates):
                losses.append(F.cross_entropy(ablatable.module(pixels), batch.labels, reduction="none").numpy())
        np.testing.assert_allclose((losses[0] - losses[1]) / (2 * step), found[:, layer, head], atol=1e-8)


def test_training_images_choose_and_validation_images_judge(run, tmp_path):
    evidence = verify_drops(run, blocks=[3, 4], device="cpu", split="train", images=60, tolerance=0.5)
    trial = open_trial(run, device="cpu", images=60)
    val = set(trial.images.ids)
    assert (evidence.n_choosing, evidence.n_judging) == (60, 60)
    asked = open_trial(run, device="cpu", split="train", images=60)
    assert set(asked.ids[60:]) == val and not val & set(asked.ids[:60]) and asked.chooses[:60].all()
    np.testing.assert_array_equal(evidence.whole.right[60:], trial.answers(trial.model)[0])
    assert "--split train --images 60" in advice(evidence)
    done = prune(run, tmp_path / "small", blocks=[4], device="cpu", split="train", images=60)
    np.testing.assert_array_equal(done.right[0], evidence.whole.right[60:])


def _as_double(trial, pixels, labels):
    """The trial on these images alone, in float64."""

    class Doubled:
        device, images = trial.device, trial.images

        def labelled(self):
            yield pixels, labels

    return Doubled()


def test_all_heads_give_their_importance_by_ablation(run):
    evidence = verify_drops(run, blocks="all", heads="all", device="cpu", images=40)
    assert len(evidence.curves["blocks"]) == 4 and len(evidence.curves["heads"]) == 12
    assert evidence.importance.keys() == {"head_importance", "head_ablation", "attention_update"}
    found = evidence.importance["head_ablation"]
    alone = {tried.heads[0]: tried.loss for tried in evidence.single if tried.heads}
    assert found.mean.shape == (4, 3) and len(alone) == 12
    for (block, head), loss in alone.items():
        assert found.mean[block - 1, head - 1] == pytest.approx((loss - evidence.whole.loss).mean())
    assert evidence.importance["head_importance"].n_images == 40


def test_the_advice_is_what_prune_then_measures(run, tmp_path):
    evidence = verify_drops(run, blocks=[2, 3, 4], heads=[(1, 2), (4, 1)], tolerance=0.2, device="cpu")
    assert evidence.advised is not None
    words = advice(evidence).split()
    assert "chosen on 180 images, measured on 180 others" in advice(evidence)
    asked = {name: words[words.index(name) + 1] for name in ("--blocks", "--heads") if name in words}
    done = prune(
        run, tmp_path / "small", device="cpu", blocks=numbers_of(asked.get("--blocks", "")),
        heads=heads_of(asked.get("--heads", "")),
    )  # fmt: skip
    np.testing.assert_array_equal(done.right[1], evidence.advised.right[~evidence.chooses])
    assert evidence.harmless(evidence.advised)


def test_what_cannot_be_taken_out_is_not_advised(tmp_path):
    path = tmp_path / "deepvit"
    train("digits_deepvit_16", path, settings=TINY)
    evidence = verify_drops(path, heads=[(1, 1), (2, 3)], tolerance=0.99, device="cpu")
    assert evidence.free("heads") is not None and evidence.advised is None
    assert {tried.changes[0].kind for tried in evidence.single} == {"softmax"}
    assert "mixed" in advice(evidence) and "attnprobe prune" not in advice(evidence)


def test_a_report_shows_the_evidence_and_says_so(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    loose = ["--metric", "similar_blocks:tau=0.5,rho=0", "--metric", "row_entropy"]  # head_divergence comes by itself
    cli.main(["report", str(run), "--verify-drops", "--tolerance", "0.9", *loose, "-o", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    written = json.loads((tmp_path / "measurements.json").read_text())["runs"][0]
    expected = verify_drops(run, metrics=["similar_blocks:tau=0.5,rho=0"], tolerance=0.9)
    tries = written["evidence"]["tries"]
    assert [row["accuracy"] for row in tries] == [row["accuracy"] for row in expected.rows()]
    assert (
        "similar blocks not needed at a tolerance of 90.0%, accuracy without them" in printed
        and "attnprobe prune" in printed
    )
    assert written["verdict"]["advice"] == advice(expected) and "head_importance" in written["measurements"]
    page = (tmp_path / "report.html").read_text()
    assert "Are they needed?" in page and "accuracy against blocks removed" in page and ">nan" not in page
    with pytest.raises(SystemExit, match="2"):
        (tmp_path / "lone").mkdir()
        (run / "maps.h5").rename(tmp_path / "lone" / "maps.h5")
        cli.main(["report", str(tmp_path / "lone" / "maps.h5"), "--verify-drops", "-o", str(tmp_path)])
    assert "is not of a run" in capsys.readouterr().err


def test_a_pruned_model_and_one_whose_first_block_must_stay_are_verified_too(run, tmp_path):
    small = prune(run, tmp_path / "small", heads={2: [1]}, device="cpu", images=20).path
    evidence = verify_drops(small, blocks="all", heads="all", data="digits", images=20, device="cpu")
    assert evidence.importance["head_ablation"].mean.shape == (4, 3)
    assert np.isnan(evidence.importance["head_importance"].mean[1]).tolist() == [False, False, True]
    assert "block 2 with the previous block's map" not in {str(tried.changes[0]) for tried in evidence.single}
    kept = verify_drops("refiner_16_digits:num_classes=10", blocks="all", data="digits", images=8, device="cpu")
    assert kept.single[0].changes[0].block == 2
    all_heads = verify_drops("refiner_16_digits:num_classes=10", heads="all", data="digits", images=8, device="cpu")
    assert {tried.changes[0].block for tried in all_heads.single} == set(range(1, 17, 2))  # the others share a map
    with pytest.raises(InputError, match="no softmax of their own"):
        verify_drops("refiner_16_digits:num_classes=10", heads=[(2, 1)], data="digits", images=8, device="cpu")
    with pytest.raises(InputError, match="passes on"):
        verify_drops("refiner_16_digits:num_classes=10", blocks=[1], data="digits", images=8, device="cpu")


def test_measurements_that_say_nothing_of_blocks_or_heads_are_refused(run):
    with pytest.raises(InputError, match="measure similar_blocks or head_divergence"):
        ablation.evidence_of(run, {})
