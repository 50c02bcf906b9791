"""From a run to a smaller checkpoint: what is told is what the written model does."""

import numpy as np
import pytest
import timm
import torch

from attnprobe.cli import app as cli
from attnprobe.core.errors import InputError
from attnprobe.core.spec import CaptureSpec, ReportSpec
from attnprobe.data import load_images
from attnprobe.data.order import one_half
from attnprobe.io.run import Run
from attnprobe.models import input_spec, load_model
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.prune import heads_of, numbers_of, prune
from attnprobe.workflows.report import report
from attnprobe.workflows.train import train

TINY = {"epochs": 2, "warmup_epochs": 1, "model_kwargs": {"depth": 4, "embed_dim": 24, "num_heads": 3}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("pruning") / "vit"
    train("digits_vit_16", path, settings=TINY)
    return path


def right(model, judging=True):
    """Of the validation images that judge, or of those that choose."""
    images = load_images("digits", "val", spec=input_spec(model))
    with torch.inference_mode():
        answers = [(model.eval()(b.pixels).argmax(-1) == b.labels, b.labels) for b in images.batches(64)]
    found, labels = (torch.cat(part).numpy() for part in zip(*answers, strict=True))
    return found[one_half(images.ids, labels.tolist()) != judging]


def test_what_is_told_is_what_the_written_model_gets_right(run, tmp_path):
    done = prune(run, tmp_path / "small", blocks=[4], heads={1: [3], 2: [1, 2]}, device="cpu")
    opened = load_model(done.path)
    np.testing.assert_array_equal(done.right[0], right(load_model(run)))
    np.testing.assert_array_equal(done.right[1], right(opened))
    np.testing.assert_array_equal(done.right[1], right(timm.create_model(f"local-dir:{done.path}", pretrained=True)))
    assert done.parameters[1] == sum(p.numel() for p in opened.parameters()) < done.parameters[0]
    assert done.speed_up > 0 and done.spread[0] <= done.speed_up <= done.spread[1]
    told = str(done)
    assert f"{done.right[1].mean():.2%}" in told and "on the same images" in told


@pytest.mark.parametrize("removed", [{"blocks": [4]}, {"heads": {1: [3]}}, {"attention": [2]}])
def test_the_written_model_states_the_preparation_that_its_accuracy_was_measured_with(run, tmp_path, removed):
    chosen = {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7), "crop_pct": 0.8, "interpolation": "bilinear"}
    done = prune(run, tmp_path / "small", device="cpu", **removed, **chosen)
    opened = load_model(done.path)
    spec = input_spec(opened)
    assert {name: getattr(spec, name) for name in chosen} == chosen
    np.testing.assert_array_equal(done.right[1], right(opened))


def test_a_pruned_model_is_captured_and_reported_on_like_any_other(run, tmp_path):
    done = prune(run, tmp_path / "small", heads={1: [3], 3: [1]}, blocks=[4], device="cpu", images=50)
    maps = capture_file(CaptureSpec(done.path, data="digits", images=20, untrained=0), out=tmp_path / "maps.h5")
    examined, _ = report(ReportSpec([maps], tmp_path / "report", formats=["json"]))
    assert examined[0].measurements


def test_fine_tuning_goes_on_from_the_pruned_weights_by_the_recipe(run, tmp_path):
    done = prune(run, tmp_path / "tuned", blocks=[2], heads={1: [1]}, finetune_epochs=3, device="cpu")
    assert len(done.right) == 3 and "what to remove and the epoch of fine-tuning" in str(done)
    tuning = Run(done.path / "finetuning")
    chosen = [right(load_model(tuning.checkpoint(epoch)), judging=False).sum() for epoch in (1, 2, 3)]
    assert right(load_model(done.path), judging=False).sum() == max(chosen)
    np.testing.assert_array_equal(done.right[2], right(load_model(done.path)))
    start, tuned = (load_model(path).state_dict() for path in (done.path / "start", done.path))
    moved = max((tuned[name] - start[name]).abs().max() for name in start if start[name].is_floating_point())
    assert 0 < moved < 0.1
    assert done.right[2].mean() >= done.right[1].mean() - 0.1


def test_what_cannot_be_done_is_said_before_anything_is_written(run, tmp_path):
    with pytest.raises(InputError, match="nothing to remove"):
        prune(run, tmp_path / "none")
    with pytest.raises(InputError, match="no block 9"):
        prune(run, tmp_path / "none", blocks=[9])
    with pytest.raises(InputError, match="no run"):
        prune("vit_16_digits:num_classes=10", tmp_path / "none", blocks=[9], data="digits", finetune_epochs=1)
    with pytest.raises(InputError, match="data='"):
        prune("vit_16_digits", tmp_path / "none", blocks=[9])
    with pytest.raises(InputError, match="is a run; choose another folder"):
        prune(run, run, blocks=[1])
    with pytest.raises(InputError, match="must be 0 or more"):
        prune(run, tmp_path / "none", blocks=[1], finetune_epochs=-1)
    with pytest.raises(InputError, match="7 classes and .* tells 10 apart"):
        prune(run, tmp_path / "none", blocks=[1], data="fractals:7:20")
    with pytest.raises(InputError, match="holds maps, not a model"):
        prune(run / "maps.h5", tmp_path / "none", blocks=[1])
    assert not (tmp_path / "none").exists()
    prune(run, tmp_path / "once", blocks=[1], images=50)
    with pytest.raises(InputError, match="holds a model"):
        prune(run, tmp_path / "once", blocks=[1])


def test_the_command_prints_what_it_costs_and_where_it_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    cli.main(["prune", str(run), "--blocks", "4", "--heads", "1:3", "-o", str(tmp_path / "out"), "--images", "50"])
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:4]] == ["parameters", "speed", "before", "after"]
    assert out[4:] == ["25 other images are for choosing what to remove.", str(tmp_path / "out")]


def test_numbers_and_heads_are_read_as_they_are_written():
    assert numbers_of("12, 14") == (12, 14) and numbers_of("") == ()
    assert heads_of("9:3,9:5,1:2") == {9: (3, 5), 1: (2,)} and heads_of("") == {}
    for text in ("9", "9:", ":3", "a:b", "9:3:2", "9-3"):
        with pytest.raises(InputError, match="BLOCK:HEAD"):
            heads_of(text)
    with pytest.raises(InputError, match="such as 12,14"):
        numbers_of("12-14")
