"""What a recipe becomes, who may make it, and the runs of several seeds."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from attnprobe.cli import app as cli
from attnprobe.core.errors import InputError, InUse
from attnprobe.core.images import InputSpec
from attnprobe.data import load_images
from attnprobe.data.decode import DecodedImages
from attnprobe.data.device_resident import DeviceResident
from attnprobe.io.config import read_yaml
from attnprobe.io.ranks import held
from attnprobe.io.run import Run, damaged_files
from attnprobe.models import input_spec, load_model
from attnprobe.training.inputs import imbalance
from attnprobe.workflows.train import images_of, run_of_seed, train, train_seeds
from tests.data.test_timm_named import cifar  # noqa: F401  a fixture
from tests.training.test_loop import config, run_training

SHORT = ("--set", "model_kwargs={depth: 2}", "--set", "threads=1", "--set", "keep_checkpoints=99")


def training(path, *options):
    command = [sys.executable, "-m", "attnprobe", "train", "digits_vit_16", "-o", str(path), *SHORT, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_refused(process):
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "in use by pid" in err and err.count("\n") == 1, err


def check_sound(run):
    names = os.listdir(run.checkpoints)
    assert names and not [name for name in names if not name.startswith(("epoch-", "partial-"))], names
    assert not any(damaged_files(run.checkpoints / name) for name in names)


def test_a_second_start_is_exit_75_and_disturbs_nothing(tmp_path):
    run = Run(tmp_path / "run")
    first = training(run.path, "--set", "epochs=200")
    deadline = time.monotonic() + 120
    while not run.log.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.1)
    written = run.config.read_bytes()
    check_refused(training(run.path, "--set", "epochs=200"))
    check_refused(training(run.path, "--set", "epochs=300"))  # which may change from start to start
    assert run.config.read_bytes() == written
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 75 and "run the same command again" in err
    check_sound(run)


@pytest.mark.promise("two-starts")
def test_of_two_starts_at_once_one_trains(tmp_path):
    run = Run(tmp_path / "run")
    both = [training(run.path, "--set", "epochs=2", "--set", "warmup_epochs=0") for _ in range(2)]
    ended = [process.communicate(timeout=200) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 75], [0, 0]), ended  # both, if one ended before the other began
    assert all(err.count("\n") <= 1 for _, err in ended)
    assert run.epochs() == [1, 2]
    check_sound(run)


def test_the_loop_itself_asks_for_the_folder(tmp_path):
    refused = []

    def other():
        try:
            run_training(tmp_path, config(epochs=1, warmup_epochs=0))
        except InUse as error:
            refused.append(str(error))

    with held(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(refused) == 1 and f"in use by pid {os.getpid()}" in refused[0]
        assert os.listdir(tmp_path) == ["run.lock"]
        result = run_training(tmp_path, config(epochs=1, warmup_epochs=0))  # this command has it
    assert len(result.log) == 1


@pytest.mark.parametrize("target", ["elsewhere", None])
def test_a_lock_that_is_a_link_or_a_pipe_is_one_line(tmp_path, target):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").write_text("mine")
    lock = tmp_path / "run" / "run.lock"
    os.mkfifo(lock) if target is None else lock.symlink_to(tmp_path / target)
    process = training(tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "run.lock must be a file" in err and err.count("\n") == 1
    assert (tmp_path / "elsewhere").read_text() == "mine" and os.listdir(tmp_path / "run") == ["run.lock"]


TINY = {"epochs": 1, "warmup_epochs": 0, "model_kwargs": {"depth": 2, "embed_dim": 16, "num_heads": 2}}
SET = ["--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "model_kwargs={depth: 2, embed_dim: 16, num_heads: 2}"]


def test_a_policy_has_training_images_decoded_by_workers_and_the_others_live_on_the_device(tmp_path):
    for k in range(8):
        path = tmp_path / "images" / ("train", "val")[k % 2] / "ab"[k // 2 % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (30 * k, 90, 200)).save(path)
    plain = config(dataset=str(tmp_path / "images"))
    for options in ({"aa": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4}):
        chosen = replace(plain, **options)
        assert isinstance(images_of(chosen, "train", InputSpec((16, 16))), DecodedImages)
        assert isinstance(images_of(chosen, "val", InputSpec((16, 16))), DeviceResident)
    assert isinstance(images_of(plain, "train", InputSpec((16, 16))), DeviceResident)
    settings = {**TINY, "dataset": plain.dataset, "aa": "v0", "batch_size": 4}
    result = train("digits_vit_16", tmp_path / "run", settings=settings)
    assert len(result.log) == 1


def test_each_is_an_ordinary_run_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    command = ["train", "digits_vit_16", "--seeds", "0-1", "-o", str(tmp_path / "vit"), *SET]
    train("digits_vit_16", tmp_path / "vit_s0", settings={**TINY, "seed": 0})  # as if it was stopped after the first
    before = (tmp_path / "vit_s0" / "summary.csv").read_bytes()
    cli.main(command)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(tmp_path / "vit_s0"), str(tmp_path / "vit_s1"),
    ]  # fmt: skip
    assert (tmp_path / "vit_s0" / "summary.csv").read_bytes() == before
    assert run_of_seed(tmp_path / "vit", 1) == tmp_path / "vit_s1"
    recipes = [read_yaml(Run(tmp_path / f"vit_s{seed}").config) for seed in (0, 1)]
    assert [recipe.pop("seed") for recipe in recipes] == [0, 1] and recipes[0] == recipes[1]
    alone = train("digits_vit_16", tmp_path / "alone", settings={**TINY, "seed": 1})
    one, two = (load_model(path).state_dict() for path in (alone.run.path, tmp_path / "vit_s1"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_seeds_twice_or_in_two_places_are_refused(tmp_path):
    with pytest.raises(InputError, match="must be one or more different numbers"):
        next(train_seeds("digits_vit_16", tmp_path / "vit", (1, 1)))
    with pytest.raises(InputError, match="both by seeds and among the settings"):
        next(train_seeds("digits_vit_16", tmp_path / "vit", (1,), settings={"seed": 3}))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"dataset": "nowhere"}, "nowhere"),
        ({"model": "vit_17"}, "vit_17"),
        ({"device": "cuda:9"}, "no device 'cuda:9' here.*'device': 'cpu'}"),
        ({"num_classes": 3}, "num_classes=3, but digits has 10"),
        ({"initial_checkpoint": "gone.pth"}, "gone.pth"),
        ({"sched": "plateau"}, "no schedule 'plateau' here; use cosine, step"),
        ({"sched": "none"}, "no schedule 'none' here; use cosine, step"),
        ({"opt": "sdg"}, "opt='sdg' cannot be built"),
        ({"freeze": ["block.*"]}, "no parameter matches 'block"),
    ],
)
def test_a_start_that_fails_leaves_no_run_behind(tmp_path, wrong, why):
    with pytest.raises(Exception, match=why):
        train("digits_vit_16", tmp_path / "run", settings=wrong)
    assert not Run(tmp_path / "run").config.exists()


def test_other_options_are_shown_as_they_were_and_as_they_are(tmp_path):
    short = {"model_kwargs": {"depth": 1}, "epochs": 1, "warmup_epochs": 0}
    train("digits_vit_16", tmp_path / "run", settings=short)
    with pytest.raises(InputError, match=r"epochs 1 -> 2, lr 0.002 -> 0.5\. .*initial_checkpoint="):
        train("digits_vit_16", tmp_path / "run", settings={**short, "epochs": 2, "lr": 0.5})


SIZES = {"cat": 90, "dog": 20, "emu": 6, "fox": 30}


def folder_of(root, sizes):
    """Images of as many classes; decoded one by one, since they are not square."""
    rng = np.random.default_rng(0)
    for split, share in (("train", 1), ("val", 3)):
        for name, size in sizes.items():
            (root / split / name).mkdir(parents=True)
            for k in range(size // share):
                pixels = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


@pytest.mark.parametrize("more", [{}, {"color_jitter": 0.4}])
def test_classes_of_very_different_sizes_are_named_at_the_start(tmp_path, more):
    data = folder_of(tmp_path / "images", SIZES)
    said = r"classes of images/train have 6 to 90 images: top-1 favours the large ones"
    with pytest.warns(UserWarning, match=said):
        result = train("digits_vit_16", tmp_path / "run", settings={**TINY, "dataset": str(data), **more})
    assert len(result.log) == 1 and 0 <= result.top1 <= 1


def test_classes_within_a_factor_of_three_are_not_remarked_upon(tmp_path):
    spec = InputSpec((16, 16))
    alike = load_images(str(folder_of(tmp_path / "alike", {"a": 3, "b": 9})), "train", spec=spec)
    unlike = load_images(str(folder_of(tmp_path / "unlike", {"a": 3, "b": 10})), "train", spec=spec)
    assert imbalance(alike) == "" and "3 to 10 images" in imbalance(unlike)
    assert imbalance(load_images("fractals", "train", spec=spec, limit=8)) == ""


def test_cifar_in_its_own_format_trains_an_epoch(cifar, tmp_path):  # noqa: F811
    settings = {**TINY, "dataset": "torch/cifar10", "data_dir": str(cifar), "batch_size": 20}
    result = train("digits_vit_16", tmp_path / "run", settings=settings)
    assert len(result.log) == 1 and result.log[0]["train_loss"] > 0


@pytest.mark.parametrize("sched", [{"sched": "multistep", "decay_milestones": [1, 2]}, {"sched": "step"}])
def test_more_epochs_continue_a_schedule_whose_past_does_not_depend_on_their_number(tmp_path, sched):
    once = {**TINY, **sched, "warmup_epochs": 0, "decay_epochs": 1}
    whole = train("digits_vit_16", tmp_path / "whole", settings={**once, "epochs": 3})
    train("digits_vit_16", tmp_path / "longer", settings={**once, "epochs": 1})
    with pytest.warns(UserWarning, match=r"epochs 1 -> 3; the (multi)?step schedule's rates so far do not depend"):
        longer = train("digits_vit_16", tmp_path / "longer", settings={**once, "epochs": 3})
    assert [row["train_loss"] for row in longer.log] == [row["train_loss"] for row in whole.log]
    one, two = (load_model(run.run.path).state_dict() for run in (whole, longer))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(InputError, match="epochs 3 -> 2"):
        train("digits_vit_16", tmp_path / "longer", settings={**once, "epochs": 2})


def test_what_every_process_of_torchrun_reads_is_remarked_upon_by_the_first_alone(tmp_path, monkeypatch):
    """Warnings are errors here."""
    monkeypatch.setenv("RANK", "1")
    recipe = tmp_path / "args.yaml"
    recipe.write_text("{model: vit_16_digits, dataset: digits, log_interval: 50, pin_mem: true, warmup_epochs: 0}")
    settings = {**TINY, "model_kwargs": {"depth": 1}, "sched": "step", "batch_size": 360, "lr": 1e-3}
    train(recipe, tmp_path / "run", settings={**settings, "epochs": 1})
    monkeypatch.setenv("RANK", "0")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(recipe, tmp_path / "run", settings={**settings, "epochs": 2})
    assert ["read as arguments" in str(said[0].message), "epochs 1 -> 2" in str(said[1].message)] == [True, True]


def test_pixels_are_those_the_options_ask_for_and_are_saved_with_the_model(tmp_path):
    data = folder_of(tmp_path / "images", {"a": 3, "b": 3})
    asked = {"mean": [0.4], "std": [0.2, 0.3, 0.4], "crop_pct": 0.5, "interpolation": "bilinear"}
    result = train("digits_vit_16", tmp_path / "run", settings={**TINY, "dataset": str(data), **asked})
    spec = input_spec(load_model(result.run.path))
    assert (spec.mean, spec.std) == ((0.4,) * 3, (0.2, 0.3, 0.4))
    assert (spec.crop_pct, spec.interpolation) == (0.5, "bilinear")
    plain = train("digits_vit_16", tmp_path / "plain", settings={**TINY, "dataset": str(data)})
    assert plain.log[0]["train_loss"] != result.log[0]["train_loss"]
    assert input_spec(load_model(plain.run.path)).mean == (0.5,) * 3


def test_the_help_says_what_a_gpu_changes(capsys):
    cli.main(["train", "--help-all"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(word in told for word in ("bfloat16", "--set torchcompile=true", "--auto-batch", "torchrun"))
