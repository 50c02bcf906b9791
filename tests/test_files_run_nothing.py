"""A maps file or a run that comes from elsewhere runs nothing and shows nothing of this machine, whatever it names."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from attnprobe.cli import app as cli
from attnprobe.io.reference import UserImages
from attnprobe.io.run import MANIFEST, Run, manifest_of
from attnprobe.models import build_model
from attnprobe.models.describe import config_json
from attnprobe.workflows import view as viewing
from tests.store.capturing import capture, plan_for

SPEC = {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 10}


def run_command(*arguments):
    """Exit code of a command in this process."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def private(tmp_path):
    """Somebody's photographs: one colour that can be found again in a page."""
    folder = tmp_path / "private"
    folder.mkdir()
    Image.fromarray(np.full((32, 32, 3), (203, 17, 99), np.uint8)).save(folder / "me.png")
    return folder


@pytest.fixture
def maps_file(tmp_path, make_maps):
    """A maps file whose plan names its images as the forger wants."""

    def forge(ids=None, **reference):
        maps = make_maps(images=3)
        images = {"data": "digits", "split": "val", "data_dir": None, "images": None, **reference}
        if ids:
            maps = type(maps)(**{name: getattr(maps, name) for name in maps.__slots__} | {"image_ids": ids})
        plan = plan_for([maps], config={"images": images, "spec": SPEC, "class_names": ["a", "b"]})
        return capture(tmp_path / "maps.h5", [maps], plan=plan)

    return forge


def commands_of(tmp_path):
    canary = tmp_path / "CANARY"
    return canary, {
        "wds in --data-dir": {"data": "wds/x", "data_dir": f"pipe:touch {shlex.quote(str(canary))} ;#"},
        "wds split": {"data": "wds/x", "data_dir": str(tmp_path), "split": f"pipe:touch {canary};x.tar|10"},
        "curl": {"data": "wds/x", "data_dir": f"http://x';touch {canary};'"},
    }


KINDS = ("wds in --data-dir", "wds split", "curl")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_of_a_maps_file_runs_no_command(tmp_path, maps_file, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canary, kinds = commands_of(tmp_path)
    path = maps_file(**kinds[kind])
    assert run_command("report", path, "-o", tmp_path / "report", "--metric", "row_entropy") == 0
    assert run_command("plot", path, "--figure", "attention_grid", "-o", tmp_path / "a.png") == 2
    with viewing.viewer([path]) as serving:
        assert serving.answers.answer("pixels", {"image": "0"}) is None
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_user", [False, True])
def test_what_runs_a_models_run_runs_no_command(tmp_path, kind, by_user, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    canary, kinds = commands_of(tmp_path)
    named = kinds[kind]
    run = Run(tmp_path / "run")
    folder = run.checkpoint(1)
    folder.mkdir(parents=True)
    model = build_model("vit_16_digits", **SMALL)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json("vit_16_digits", model, SMALL)))
    files = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}
    (folder / MANIFEST).write_bytes(manifest_of(files))
    run.config.write_text(
        f"model: vit_16_digits\ndataset: {named['data']}\ndata_dir: {json.dumps(named['data_dir'])}\n"
    )
    options = []
    if by_user:  # a pipe is refused even of the user
        options = ["--data", named["data"], "--data-dir", named["data_dir"], "--split", named.get("split", "val")]
    commands = [
        ["capture", run.path],
        ["verify-drops", run.path, "--blocks", "2"],
        ["prune", run.path, "--blocks", "2"],
    ]
    for command in commands:
        out = ["-o", tmp_path / "out.h5"] if command[0] != "verify-drops" else []
        assert run_command(*command, *options, *out) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("attnprobe: "), said
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_file_shows_no_photograph_of_the_reader_but_the_reader_may(tmp_path, maps_file, private):
    path = maps_file(ids=("me.png", "b", "c"), data="folder", data_dir=str(private))
    assert run_command("plot", path, "--figure", "attention_grid", "-o", tmp_path / "a.png") == 2
    with viewing.viewer([path]) as serving:
        assert serving.answers.answer("pixels", {"image": "0"}) is None
    with viewing.viewer([path], user=UserImages(str(private))) as serving:
        assert serving.answers.answer("pixels", {"image": "0"}).kind.startswith("image/")
    assert run_command("plot", path, "--figure", "attention_grid", "-o", tmp_path / "a.png", "--data", private) == 0


def test_a_message_from_a_file_moves_no_cursor(tmp_path, maps_file, capsys):
    path = maps_file(data="\x1b[2J\x1b]0;title\x07/x", data_dir="\x1b[31m")
    run_command("plot", path, "--figure", "attention_grid", "-o", tmp_path / "a.png")
    said = capsys.readouterr().err
    assert "\x1b" not in said and "‹U+001B›" in said
