"""The description of a capture and its command line say the same."""

import shlex
from pathlib import Path

import pytest
import tyro

from attnprobe.core.spec import CaptureSpec

SPECS = [
    CaptureSpec("vit_16_digits"),
    CaptureSpec("a run", architecture="deepvit_16", data="my images", data_dir=Path("x y"), images=7, seed=3),
    CaptureSpec("m", what=("weights", "values"), layers="1-4,12", heads="2", queries="-3:", store="qk", img_size=64),
    CaptureSpec("m", site="scores", dtype="float16", initial=True, overwrite=True, keep_shards=True, workers=2),
    CaptureSpec(
        "m", allow_nonfinite=True, bad_images="skip", untrained=0, batch_size=60, device="cuda:1", split="train"
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.command)
def test_the_command_of_a_spec_is_read_as_that_spec(spec):
    attnprobe, capture, *options = shlex.split(spec.command)
    assert (attnprobe, capture) == ("attnprobe", "capture")
    assert tyro.cli(CaptureSpec, args=options, config=(tyro.conf.FlagCreatePairsOff,)) == spec


def test_one_site_leaves_out_the_maps_of_the_others_and_nothing_else():
    spec = CaptureSpec("m", what=("weights", "effective", "tokens", "values"), site="scores")
    assert spec.kept == ("scores", "tokens", "values") and spec.sites == ("scores",)
    assert CaptureSpec("m", what=("scores", "tokens", "weights")).sites == ("weights", "scores")


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, "bfloat16"), ({"store": "qk"}, "float32"), ({"store": "qk", "dtype": "float16"}, "float16")],
)
def test_queries_and_keys_are_stored_in_full_precision_unless_said_otherwise(options, dtype):
    assert CaptureSpec("m", **options).stored_dtype == dtype
