"""Training on a GPU: every precision and layout follows the float32 run of the CPU."""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from attnprobe.io.run import Run
from tests.capturing.test_on_device import allocate_too_much
from tests.training import test_loop
from tests.training.test_loop import config, run_training

STEPS = {"epochs": 1, "warmup_epochs": 0, "batch_size": 12, "drop_path": 0.0, "keep_checkpoints": 1}
"""30 steps of 360 images, without draws that differ between devices."""

VARIANTS = ("vit", "deepvit", "refiner", "realformer", "sigmareparam", "richvit")

WAYS = {
    "bfloat16": {"amp_dtype": "bfloat16"},
    "float16": {"amp_dtype": "float16"},
    "channels last": {"channels_last": True},
    "checkpointing": {"grad_checkpointing": True},
    "compiled": {"torchcompile": True},
}

CASES = [(variant, way) for variant in VARIANTS for way in list(WAYS)[: 5 if variant in ("vit", "deepvit") else 2]]
"""Both precisions of every variant; compiling takes half a minute each."""


@functools.cache
def log_on_the_cpu(variant, folder):
    return run_training(folder / variant, config(model=f"{variant}_16_digits", **STEPS), 360).log[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cpu")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize(("variant", "way"), CASES)
def test_thirty_steps_on_a_gpu_follow_those_of_the_cpu(variant, way, tmp_path, folder, gpu, monkeypatch):
    if gpu.type == "cpu":  # where the compiler needs a minute per model
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    options = config(model=f"{variant}_16_digits", **STEPS, **{**WAYS[way], "device": str(gpu)})
    result, expected = run_training(tmp_path, options, 360), log_on_the_cpu(variant, folder)
    for name in ("train_loss", "val_loss"):
        assert result.log[-1][name] == pytest.approx(expected[name], rel=0.03), name
    saved = load_file(result.run.checkpoint(1) / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values() if tensor.is_floating_point())


@pytest.mark.gpu
def test_a_training_batch_is_halved_when_a_gpu_runs_out_of_memory(tmp_path, gpu, monkeypatch):
    """A batch of 12 is cut into parts of 6, 3 and 2 until the device can hold one."""
    plain, build = {**STEPS, "device": str(gpu), "amp": False, "model": "vit_16_digits"}, test_loop.build_model
    whole = run_training(tmp_path / "whole", config(**plain), 36)

    def of_little_memory(*args, **options):
        model = build(*args, **options)
        model.patch_embed.register_forward_pre_hook(
            lambda module, args: allocate_too_much(module, args) if module.training else None
        )
        return model

    monkeypatch.setattr(test_loop, "build_model", of_little_memory)
    with pytest.warns(UserWarning, match="out of memory: continuing with parts"):
        parts = run_training(tmp_path / "parts", config(**plain, auto_batch=True), 36)
    assert parts.log[-1]["train_loss"] == pytest.approx(whole.log[-1]["train_loss"], rel=1e-3)


@pytest.mark.gpu
def test_one_process_under_torchrun_trains_as_one_without(tmp_path, gpu):
    """On a GPU its collectives are NCCL's."""
    model = ["--set", "model_kwargs={depth: 2, embed_dim: 24, num_heads: 2}"]
    short = ["--set", "epochs=1", "--set", "warmup_epochs=0", "--set", f"device={gpu.type}", "--set", "amp=false"]
    launchers = {"torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"], "alone": []}
    losses = []
    for name, launcher in launchers.items():
        command = [sys.executable, *launcher, "-m", "attnprobe", "train", "digits_vit_16", "-o", str(tmp_path / name)]
        done = subprocess.run(
            [*command, *model, *short], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses.append(float(Run(tmp_path / name).log.read_text().splitlines()[1].split(",")[2]))
    assert json.loads((tmp_path / "torchrun" / "status.json").read_text())["exit_code"] == 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
