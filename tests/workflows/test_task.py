import json
import shlex
from dataclasses import replace

import pytest
import torch
from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.core.spec import CaptureSpec, ImageOptions
from attnprobe.models import build_model, input_spec
from attnprobe.reports import verdict
from attnprobe.reports.json_report import to_json
from attnprobe.workflows.capture import capture_file, measure_live
from attnprobe.workflows.evaluate import evaluate
from attnprobe.workflows.measure import examine
from attnprobe.workflows.task import no_accuracy
from attnprobe.workflows.trial import prepared_for


def checkpoint(folder, classes):
    torch.save(build_model("vit_16_digits", num_classes=classes, seed=0).state_dict(), folder / "my.pth")
    return {"architecture": "vit_16_digits", "data": "digits", "images": 8}


def test_a_head_of_other_classes_leaves_no_accuracy_and_capture_and_report_say_so(tmp_path):
    spec = CaptureSpec(tmp_path / "my.pth", **checkpoint(tmp_path, 7), untrained=0)
    with pytest.warns(UserWarning, match=r"no accuracy: .*my.pth tells 7 classes apart, not the 10 of digits"):
        e = examine(capture_file(spec, out=tmp_path / "my.h5"))
    note = "no accuracy: what the model gives are not the 10 classes of the images."
    assert "accuracy" not in e.info and note in e.notes and note in verdict(e).warnings
    assert note in json.loads(to_json([e]))["runs"][0]["notes"]


def test_accuracy_is_said_with_the_preparation_that_evaluate_says(tmp_path):
    from attnprobe.reports.numbers import accuracy_words

    options = checkpoint(tmp_path, 10)
    e = examine(capture_file(CaptureSpec(tmp_path / "my.pth", **options, untrained=0), out=tmp_path / "my.h5"))
    done = evaluate(tmp_path / "my.pth", **options)
    prepared = "8 images of 32 x 32 px, crop 1, bicubic"
    assert prepared in accuracy_words(e) and prepared in str(done)
    assert f"{done.shares['top-1'][0]:.1%}" in accuracy_words(e)


def test_the_printed_advice_runs_as_it_is_printed(tmp_path, call_command):
    options = checkpoint(tmp_path, 10) | {"images": 16}
    maps = capture_file(CaptureSpec(tmp_path / "my.pth", **options, untrained=0), out=tmp_path / "my maps.h5")
    command = shlex.split(verdict(examine(maps)).advice.partition("): ")[2])
    assert command[:3] == ["attnprobe", "verify-drops", str(tmp_path / "my.pth")]
    code, out, err = call_command(*command[1:], "--images", "16")
    assert code == 0 and "the report calls" in out and "advice: " in out, err


def test_nothing_is_said_where_classes_agree_or_are_not_known():
    assert no_accuracy(10, 10, "m", "d") == no_accuracy(0, 10, "m", "d") == no_accuracy(10, None, "m", "d") == ""
    assert "has no head for the 10 classes of d" in no_accuracy(10, 0, "m", "d")


def test_images_without_labels_are_said_to_have_none_and_so_no_accuracy(tmp_path):
    from attnprobe.reports.numbers import accuracy_words

    (tmp_path / "photos").mkdir()
    for k in range(4):
        Image.new("RGB", (32, 32), (60 * k, 0, 0)).save(tmp_path / "photos" / f"{k}.png")
    options = checkpoint(tmp_path, 10) | {"data": str(tmp_path / "photos"), "untrained": 0}
    spec = CaptureSpec(tmp_path / "my.pth", **options)
    (live,), _ = measure_live(spec, out=tmp_path / "live", formats=("json",))
    for e in (examine(capture_file(spec, out=tmp_path / "my.h5"), pictures=0), live):
        assert accuracy_words(e) == "no accuracy: the images have no labels"


def test_one_mean_and_one_std_give_grey_images_to_a_model_that_does_not_say_it_wants_them():
    model = build_model("vit_16_digits")
    wanted = prepared_for(model, ImageOptions(mean=(0.4,), std=(0.2,)))
    assert wanted == replace(input_spec(model), mean=(0.4,), std=(0.2,))
    with pytest.raises(InputError, match="mean needs 3 numbers, one per channel, or one for mean and std each"):
        prepared_for(model, ImageOptions(mean=(0.4,)))
