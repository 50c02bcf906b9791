"""The loop: learns, logs, resumes to the same bits, and says what went wrong."""

import csv
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

from attnprobe.core.errors import CheckpointError, InputError, WorkError
from attnprobe.core.images import InputSpec
from attnprobe.core.memory import is_out_of_memory
from attnprobe.data import load_images
from attnprobe.io.config import from_mapping
from attnprobe.io.run import Run, damaged_files
from attnprobe.models import build_model, load_model
from attnprobe.models.describe import config_json
from attnprobe.training import TrainConfig, evaluate, loop, pick_device, train
from attnprobe.training.checkpoint import Learner
from attnprobe.training.loop import read_log

SPEC = InputSpec(size=(16, 16))
OPTIONS = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 16, "patch_size": 4, "num_classes": 10}


def config(**options):
    defaults = {"model": "deepvit_16_digits", "dataset": "digits", "epochs": 3, "warmup_epochs": 1, "clip_grad": 1.0,
                "scale": (0.8, 1.0), "drop_path": 0.1, "device": "cpu"}  # fmt: skip
    return TrainConfig(**{**defaults, **options})


class InDouble:
    """The same images with float64 pixels."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getattr__(self, name):
        return getattr(self.source, name)

    def batches(self, *args, **kwargs):
        for batch in self.source.batches(*args, **kwargs):
            yield replace(batch, pixels=batch.pixels.double())


def run_training(path, config, limit=192, double=False, **options_of_train):
    options = {**OPTIONS, "drop_path_rate": config.drop_path, "drop_rate": config.drop}
    model = build_model(config.model, seed=config.seed, **options)
    sets = [load_images("digits", split, spec=SPEC, limit=limit) for split in ("train", "val")]
    cfg = config_json(config.model, model, OPTIONS)
    if double:
        model, sets = model.double(), [InDouble(source) for source in sets]
    return train(model, *sets, config, Run(path), config_json=cfg, **options_of_train)


def weights(run):
    return load_model(run.path).state_dict()


def losses(result):
    """The log without what depends on the clock."""
    timed = ("seconds", "images_per_second", "data_wait", "memory_gib")
    return [{k: v for k, v in row.items() if k not in timed} for row in result.log]


@pytest.mark.promise("train-killed")
def test_a_stopped_run_ends_with_the_same_bits_as_an_unbroken_one(tmp_path):
    whole = run_training(tmp_path / "whole", config())

    class Stop(Exception):
        pass

    from attnprobe.training import loop

    original, calls = loop.save_checkpoint, []

    def stop_after_first(*args, **kwargs):
        original(*args, **kwargs)
        calls.append(1)
        if len(calls) == 1:
            raise Stop

    loop.save_checkpoint = stop_after_first
    try:
        with pytest.raises(Stop):
            run_training(tmp_path / "broken", config())
    finally:
        loop.save_checkpoint = original
    resumed = run_training(tmp_path / "broken", config())
    one, two = weights(whole.run), weights(resumed.run)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert losses(whole) == losses(resumed)


def test_the_last_and_the_best_checkpoints_are_kept_and_whole(tmp_path):
    result = run_training(tmp_path, config(epochs=4, keep_checkpoints=1))
    assert set(result.run.epochs()) == {4, result.best_epoch}
    for epoch in result.run.epochs():
        assert not damaged_files(result.run.checkpoint(epoch))
    files = {p.name for p in result.run.checkpoint(4).iterdir()}
    assert files == {"model.safetensors", "config.json", "train_state.safetensors", "state.json", "MANIFEST.json"}
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert rows == [{k: str(v) for k, v in row.items()} for row in read_log(result.run)]


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = run_training(tmp_path, config(epochs=2))
    second = run_training(tmp_path, config(epochs=2))
    assert second.log == first.log


def spoil(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_the_run_says_so_for_good(tmp_path):
    result = run_training(tmp_path, config(epochs=3))
    before = weights(result.run)
    assert result.warnings == () and not result.run.notes.exists()
    spoil(result.run.checkpoint(3))
    assert result.run.latest_checkpoint() == result.run.checkpoint(2)
    told = r"epoch-0003 is damaged \(model\.safetensors is not what was written\); training resumed from epoch-0002"
    with pytest.warns(UserWarning, match=told):
        again = run_training(tmp_path, config(epochs=3))
    after = weights(again.run)
    assert all(torch.equal(before[k], after[k]) for k in before)
    once_more = run_training(tmp_path, config(epochs=3))
    for later in (again, once_more):
        assert len(later.warnings) == 1 and re.search(told, later.warnings[0]) and "epoch-0003" in repr(later)


def test_training_does_not_begin_again_where_all_checkpoints_are_damaged(tmp_path):
    result = run_training(tmp_path, config(epochs=2))
    log = result.run.log.read_bytes()
    for epoch in (1, 2):
        spoil(result.run.checkpoint(epoch))
    names = sorted(os.listdir(result.run.checkpoints))
    with pytest.raises(CheckpointError, match=r"no intact checkpoint to resume from: epoch-0002 .*new folder \(-o\)"):
        run_training(tmp_path, config(epochs=2))
    assert result.run.log.read_bytes() == log and sorted(os.listdir(result.run.checkpoints)) == names


def test_new_checkpoints_are_kept_and_not_the_damaged_ones_after_them(tmp_path):
    result = run_training(tmp_path, config(epochs=4, keep_checkpoints=4))
    for epoch in (3, 4):
        spoil(result.run.checkpoint(epoch))

    class Stop(BaseException):
        pass

    def stop(epoch, *_):
        if epoch == 4:
            raise Stop
        return ""

    with pytest.warns(UserWarning, match="epoch-0004 .* and epoch-0003 .*from epoch-0002"), pytest.raises(Stop):
        run_training(tmp_path, config(epochs=4, keep_checkpoints=1), watch=stop)
    assert result.run.latest_checkpoint() == result.run.checkpoint(3)


def test_inside_an_epoch_the_newest_intact_state_is_gone_on_from(tmp_path):
    """Steps 2 and 4 of the second epoch are saved; what the first epoch left is damaged as well as the last."""
    options = config(epochs=2, batch_size=32, recovery_interval=2, keep_checkpoints=1)
    whole = run_training(tmp_path / "whole", options)

    class Stop(BaseException):
        pass

    kept = []

    def keep(run, progress, *args, **kwargs):
        original(run, progress, *args, **kwargs)
        kept.append((progress.epoch, progress.step))
        if progress.epoch == 1 and progress.step == 4:
            raise Stop

    original = loop.save_partial
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_partial", keep)
        with pytest.raises(Stop):
            run_training(tmp_path / "broken", options)
    run = Run(tmp_path / "broken")
    spoil(run.checkpoint(1))
    resumed = run_training(tmp_path / "broken", options)  # from inside the second epoch: nothing newer is damaged
    one, two = weights(whole.run), weights(resumed.run)
    assert all(torch.equal(one[k], two[k]) for k in one) and resumed.warnings == ()


def test_saved_weights_are_the_validated_moving_average(tmp_path):
    result = run_training(tmp_path, config(epochs=2))
    val = load_images("digits", "val", spec=SPEC, limit=192)
    top1 = evaluate(load_model(tmp_path), val, batch_size=64, device=torch.device("cpu")).top1
    assert top1 == result.top1
    state = json.loads((result.run.checkpoint(2) / "state.json").read_text())
    assert state["epoch"] == 2


def updates_of(module, options, gradient):
    """Weights and moving average after each of three updates by SGD with a rate of 1 and this gradient."""
    ema = ModelEmaV3(module, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    learner = Learner(module, ema, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    for update in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        loop._update_weights(learner, options, update)
        yield module.state_dict(), ema.module.state_dict()


def test_the_moving_average_begins_with_the_first_update_as_in_timm():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    options = config(model_ema_decay=0.5, model_ema_warmup=False, clip_grad=None)
    found = [(now["weight"].item(), mean["weight"].item()) for now, mean in updates_of(module, options, 1.0)]
    assert found == [(-1.0, -1.0), (-2.0, -1.5), (-3.0, -2.25)]


def test_adaptive_clipping_leaves_the_head_as_it_is_as_in_timm():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    start = {name: value.clone() for name, value in module.state_dict().items()}
    after, _ = next(updates_of(module, config(clip_grad=0.01, clip_mode="agc"), 10.0))
    moved = {name: (start[name] - value).abs().max() for name, value in after.items()}
    assert moved["1.weight"] == moved["1.bias"] == pytest.approx(10.0) and moved["0.weight"] < 0.1


def test_it_learns(tmp_path):
    result = run_training(tmp_path, config(epochs=12, lr=3e-3, drop_path=0.0, scale=(1.0, 1.0), model_ema=False), 1400)
    assert result.best > 0.6
    assert result.log[-1]["train_loss"] < result.log[0]["train_loss"] - 0.3


def test_accumulated_gradients_equal_those_of_the_larger_batch(tmp_path):
    options = {"epochs": 1, "warmup_epochs": 0, "drop_path": 0.0, "scale": (1.0, 1.0), "opt": "sgd", "clip_grad": None,
               "lr": 0.1, "model": "vit_16_digits", "model_ema": False}  # fmt: skip
    one = run_training(tmp_path / "one", config(**options, batch_size=64))
    two = run_training(tmp_path / "two", config(**options, batch_size=16, grad_accum_steps=4))
    for (name, a), (_, b) in zip(weights(one.run).items(), weights(two.run).items(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_keep_their_values_and_cool_down_adds_epochs(tmp_path):
    options = config(epochs=2, cooldown_epochs=1, warmup_epochs=0, freeze=("blocks.0.*",), model_ema=False)
    result = run_training(tmp_path, options)
    initial = build_model(options.model, seed=options.seed, **OPTIONS, drop_path_rate=0.1).state_dict()
    trained = weights(result.run)
    assert len(result.log) == 3 and result.log[-1]["lr"] == pytest.approx(options.min_lr)
    assert torch.equal(trained["blocks.0.attn.qkv.weight"], initial["blocks.0.attn.qkv.weight"])
    assert not torch.equal(trained["blocks.1.attn.qkv.weight"], initial["blocks.1.attn.qkv.weight"])


def test_it_stops_early_when_nothing_gets_better(tmp_path):
    result = run_training(tmp_path, config(epochs=9, warmup_epochs=0, lr=0.0, min_lr=0.0, opt="sgd", early_stop=2))
    assert len(result.log) == result.best_epoch + 2
    again = run_training(tmp_path, config(epochs=9, warmup_epochs=0, lr=0.0, min_lr=0.0, opt="sgd", early_stop=2))
    assert len(again.log) == len(result.log)


@pytest.mark.parametrize("option", [{"channels_last": True}, {"grad_checkpointing": True}, {"aug_repeats": 3}])
def test_ways_of_computing_do_not_change_what_is_learnt(tmp_path, option):
    options = {"epochs": 2, "warmup_epochs": 0, "drop_path": 0.0, "scale": (1.0, 1.0)}
    plain = run_training(tmp_path / "plain", config(**options))
    other = run_training(tmp_path / "other", config(**options, **option))
    if "aug_repeats" in option:  # a third of the images an epoch, three times each
        assert other.log[0]["train_loss"] != plain.log[0]["train_loss"]
    else:
        assert other.log[-1]["train_loss"] == pytest.approx(plain.log[-1]["train_loss"], rel=1e-3)


@pytest.mark.parametrize("ema", [True, False])
def test_the_cosine_regulariser_is_part_of_the_loss_and_of_nothing_else(tmp_path, ema):
    options = {"epochs": 2, "warmup_epochs": 0, "lr": 1e-5, "min_lr": 0.0, "model_ema": ema}
    plain = run_training(tmp_path / "plain", config(**options))
    regularised = run_training(tmp_path / "cos", config(**options, cos_reg_component=1, cos_reg_weight=10.0))
    for before, after in zip(plain.log, regularised.log, strict=True):
        assert abs(after["train_loss"] - before["train_loss"]) > 0.5  # a cosine may have either sign
        assert after["val_loss"] == pytest.approx(before["val_loss"], abs=0.1)


@pytest.mark.promise("not-finite")
def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint_named(tmp_path):
    with pytest.raises(WorkError, match=r"training loss is (nan|inf) in epoch \d.*Last good checkpoint") as caught:
        run_training(tmp_path, config(lr=1e30, opt="sgd", clip_grad=None, warmup_epochs=0))
    assert "\n" not in str(caught.value)


def test_lost_weights_are_not_saved_inside_an_epoch_either(tmp_path):
    with pytest.raises(WorkError, match=r"training loss is (nan|inf) in epoch 1"):
        run_training(
            tmp_path, config(lr=1e30, opt="sgd", clip_grad=None, warmup_epochs=0, batch_size=16, recovery_interval=1)
        )
    for folder in Run(tmp_path).checkpoints.glob("partial-*"):
        assert all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())


def run_with_memory_for(monkeypatch, path, options, images, after=0):
    """Train while no more than so many images fit into memory, from the step `after` on."""
    from attnprobe.training import loop

    original, calls = loop.classification_loss, []

    def checked(outputs, targets, config):
        calls.append(len(targets))
        if len(calls) > after and len(targets) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(outputs, targets, config)

    monkeypatch.setattr(loop, "classification_loss", checked)
    try:
        return run_training(path, options), calls
    finally:
        monkeypatch.setattr(loop, "classification_loss", original)


@pytest.mark.parametrize(
    "words", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling X"]
)
def test_memory_that_a_library_lacks_counts_too(words):
    assert is_out_of_memory(RuntimeError(words)) and not is_out_of_memory(
        RuntimeError("CUDA error: device-side assert")
    )
    assert not is_out_of_memory(WorkError("out of memory with one image"))  # its remedy is said


def test_auto_batch_cuts_the_batches_of_validation_too_and_says_what_batch_norm_sees(tmp_path, monkeypatch):
    from attnprobe.training import loop

    original, sizes = loop.evaluate, []

    def checked(*args, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(*args, batch_size=batch_size, **options)

    monkeypatch.setattr(loop, "evaluate", checked)
    options = config(epochs=1, warmup_epochs=0, batch_size=32, auto_batch=True)
    with pytest.warns(UserWarning, match="parts of a batch of (16|8) images, each of which batch norm takes"):
        run_training(tmp_path, options)
    assert sizes == [64, 32, 16]


@pytest.mark.parametrize("after", [0, 5])
def test_auto_batch_learns_the_same_from_parts_of_a_batch(tmp_path, monkeypatch, after):
    options = config(epochs=2, warmup_epochs=0, batch_size=64, model="vit_16_digits", drop_path=0.0, auto_batch=True)
    with pytest.warns(UserWarning, match="continuing with"):
        cut, sizes = run_with_memory_for(monkeypatch, tmp_path / "cut", options, 16, after)
    assert set(sizes[-12:]) == {16} and cut.run.path.joinpath("summary.csv").exists()
    whole = run_training(tmp_path / "whole", options)
    for one, two in zip(losses(cut), losses(whole), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert not list(cut.run.checkpoints.glob("partial-*"))


@pytest.mark.promise("memory-short")
def test_memory_for_not_even_one_image_ends_the_run_and_keeps_what_was_there(tmp_path, monkeypatch):
    options = config(epochs=2, warmup_epochs=0, batch_size=4, auto_batch=True)
    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
        run_with_memory_for(monkeypatch, tmp_path, options, 0)
    with pytest.raises(torch.OutOfMemoryError):
        run_with_memory_for(monkeypatch, tmp_path / "b", config(epochs=2, warmup_epochs=0), 8)


def test_the_log_says_how_long_images_were_waited_for_and_how_much_memory_it_took(tmp_path):
    class Slow(InDouble):
        def batches(self, *args, **kwargs):
            for batch in self.source.batches(*args, **kwargs):
                time.sleep(0.05)
                yield batch

    options = config(epochs=1, warmup_epochs=0, batch_size=32)
    model = build_model(options.model, seed=0, **OPTIONS)
    sets = [load_images("digits", split, spec=SPEC, limit=96) for split in ("train", "val")]
    cfg = config_json(options.model, model, OPTIONS)
    (row,) = train(model, Slow(sets[0]), sets[1], options, Run(tmp_path), config_json=cfg).log
    assert 0.15 / row["seconds"] <= row["data_wait"] * 1.01 and row["data_wait"] < 1
    assert 0.05 < row["memory_gib"] < 64


def test_tensorboard_has_the_log_and_a_resumed_run_goes_on_in_it(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # not in child processes

    options = {"warmup_epochs": 0, "log_tensorboard": True}
    run_training(tmp_path, config(epochs=1, **options))
    log = run_training(tmp_path, config(epochs=3, **options)).log
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("val_top1", "train_loss"):
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert seen == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in log]


def test_weights_and_biases_gets_the_log_and_one_identity_over_resumes(tmp_path, monkeypatch):
    class Board:
        def __init__(self, **options):
            self.options, self.rows, self.ended = options, [], False
            boards.append(self)

        def log(self, row, step):
            self.rows.append((step, row["val_top1"]))

        def finish(self):
            self.ended = True

    boards = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Board))
    options = {"warmup_epochs": 0, "log_wandb": True, "wandb_project": "mine"}
    run_training(tmp_path, config(epochs=1, **options))
    log = run_training(tmp_path, config(epochs=2, **options)).log
    assert [row for board in boards for row in board.rows] == [(row["epoch"], row["val_top1"]) for row in log]
    assert boards[0].options["id"] == boards[1].options["id"] and boards[0].options["project"] == "mine"
    assert boards[0].options["resume"] == "allow" and all(board.ended for board in boards)


@pytest.mark.parametrize("option", ["log_tensorboard", "log_wandb"])
def test_a_board_that_is_not_installed_is_named_with_its_remedy(tmp_path, monkeypatch, option):
    for name in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install"):
        run_training(tmp_path, config(epochs=1, warmup_epochs=0, **{option: True}))


def test_a_full_disk_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    result = run_training(tmp_path, config(epochs=1, warmup_epochs=0))
    kept = weights(result.run)
    monkeypatch.setenv("ATTNPROBE_FAULT", "reserve:2:ENOSPC")
    monkeypatch.setattr("attnprobe.io.fs.matched", 0)
    options = config(epochs=2, warmup_epochs=0)
    with pytest.raises(WorkError, match="no space left"):
        run_training(tmp_path, options)
    monkeypatch.delenv("ATTNPROBE_FAULT")
    assert result.run.epochs() == [1] and all(torch.equal(v, weights(result.run)[k]) for k, v in kept.items())
    assert not list(result.run.checkpoints.glob(".tmp-*"))


KILLED = """
import sys
from pathlib import Path
from tests.training.test_loop import config, run_training
run_training(Path(sys.argv[1]), config(epochs=2, warmup_epochs=0), 64)
"""


@pytest.mark.promise("train-killed")
@pytest.mark.parametrize("fault", ["write:9", "fsync:8", "rename:2", "rename:4", "fsync_folder:9"])
def test_kill_9_while_writing_a_checkpoint_loses_nothing(tmp_path, fault):
    import os

    env = {**os.environ, "ATTNPROBE_FAULT": f"{fault}:kill"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], env=env, check=False)
    assert done.returncode == -9
    resumed = run_training(tmp_path / "a", config(epochs=2, warmup_epochs=0), 64)
    whole = run_training(tmp_path / "b", config(epochs=2, warmup_epochs=0), 64)
    one, two = weights(resumed.run), weights(whole.run)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not list(resumed.run.checkpoints.glob(".tmp-*"))


SIGNALLED = """
import os, signal, sys
from pathlib import Path
import attnprobe.training.loop as loop
from attnprobe.core.errors import Stopped
from tests.training.test_loop import config, run_training

step, number = int(sys.argv[2]), getattr(signal, sys.argv[3])
original, calls = loop.classification_loss, []
def loss_and_signal(*arguments):
    calls.append(1)
    if len(calls) == step:
        os.kill(os.getpid(), number)
    return original(*arguments)
loop.classification_loss = loss_and_signal
try:
    run_training(Path(sys.argv[1]), config(epochs=3, grad_accum_steps=2, batch_size=16), 128)
except Stopped:
    sys.exit(75)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.promise("stop-requested")
@pytest.mark.parametrize(("step", "number", "code"), [(3, "SIGTERM", 75), (12, "SIGINT", 130), (8, "SIGTERM", 75)])
def test_a_signal_saves_after_the_update_it_comes_in(tmp_path, step, number, code):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, str(tmp_path / "a"), str(step), number], check=False)
    assert done.returncode == code
    updated = step + step % 2
    epoch = (updated - 1) // 8
    saved = [folder.name for folder in Run(tmp_path / "a").checkpoints.glob("partial-*")]
    assert saved == [f"partial-{epoch:04d}-{updated - 8 * epoch:08d}"]
    options = config(epochs=3, grad_accum_steps=2, batch_size=16)
    resumed, whole = run_training(tmp_path / "a", options, 128), run_training(tmp_path / "b", options, 128)
    one, two = weights(resumed.run), weights(whole.run)
    assert all(torch.equal(one[k], two[k]) for k in one) and losses(resumed) == losses(whole)
    assert not list(resumed.run.checkpoints.glob("partial-*"))


KILLED_INSIDE = """
import sys, time, os, signal, threading
from pathlib import Path
from tests.training.test_loop import config, run_training
threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
run_training(Path(sys.argv[1]), config(epochs=4, recovery_interval=2, batch_size=16), 128)
os._exit(0)
"""


@pytest.mark.promise("train-killed")
@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, record_property):
    options = config(epochs=4, recovery_interval=2, batch_size=16)
    whole = run_training(tmp_path / "whole", options, 128)
    moments = random.Random(0)
    killed = 0
    for attempt in range(20):
        moment = moments.uniform(0.2, 1.5)
        path = tmp_path / f"run{attempt % 5}"
        done = subprocess.run([sys.executable, "-c", KILLED_INSIDE, str(path), str(moment)], check=False)
        killed += done.returncode == -9
    assert killed > 5
    for attempt in range(5):
        resumed = run_training(tmp_path / f"run{attempt}", options, 128)
        assert losses(resumed) == losses(whole)
        one, two = weights(resumed.run), weights(whole.run)
        assert all(torch.equal(one[k], two[k]) for k in one)
    record_property("tried", killed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": 9, "epochs": 3}, r"warmup_epochs=9 must lie in \[0, epochs=3\)"),
        ({"scale": [0, 1]}, "scale=.* must be two shares"),
        ({"epoch": 3}, "no option named 'epoch'. Did you mean 'epochs'?"),
        ({"lr": "fast"}, "lr: expected float, got 'fast'"),
        ({"epochs": 2.5}, "epochs: expected int, got 2.5"),
        ({"bad_images": "eat"}, "expected one of refuse, skip"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        from_mapping(TrainConfig, {"model": "x", "dataset": "y", **options})


def test_unknown_devices_are_refused():
    with pytest.raises(InputError, match="no device 'tpu9'"):
        pick_device("tpu9")


def test_validation_computes_in_the_precision_of_training(tmp_path, monkeypatch):
    from attnprobe.training import loop

    evaluate, given = loop.evaluate, []

    def noted(*arguments, amp, **options):
        given.append(amp)
        return evaluate(*arguments, amp=amp, **options)

    monkeypatch.setattr(loop, "evaluate", noted)
    run_training(tmp_path / "cpu", config(epochs=1, warmup_epochs=0), 32)
    monkeypatch.setattr(loop, "amp_dtype", lambda *_: torch.bfloat16)
    run_training(tmp_path / "bf16", config(epochs=1, warmup_epochs=0), 32)
    assert given == [None, torch.bfloat16]
