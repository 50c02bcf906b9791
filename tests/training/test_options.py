"""Every option of the four papers' recipes changes what is learnt, and does not change it when it is off."""

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_loop import config, run_training

BASE = {"epochs": 2, "warmup_epochs": 1, "batch_size": 16, "lr": 1e-2, "drop_path": 0.0, "scale": (1.0, 1.0)}
MIXED = {"mixup": 0.8, "cutmix": 1.0}
CROPPED = {"scale": (0.3, 0.8)}

EFFECTS = [
    ({}, {"opt": "sgd"}),
    ({"opt": "sgd"}, {"momentum": 0.5}),
    ({}, {"lr": 5e-3}),
    ({"lr": None, "lr_base": 1e-2}, {"lr_base_size": 64}),
    ({"lr": None, "lr_base": 1e-2}, {"lr_base_scale": "linear"}),
    ({}, {"weight_decay": 0.5}),
    ({}, {"opt_eps": 1e-3}),
    ({}, {"opt_betas": (0.5, 0.9)}),
    ({}, {"layer_decay": 0.5}),
    ({}, {"clip_grad": 0.01}),
    ({"clip_grad": 0.01}, {"clip_mode": "value"}),
    ({}, {"grad_accum_steps": 2}),
    ({}, {"batch_size": 32}),
    ({}, {"sched": "step", "decay_epochs": 1.0}),
    ({"sched": "step", "decay_epochs": 1.0}, {"decay_rate": 0.5}),
    ({}, {"sched_on_updates": False}),
    ({}, {"warmup_epochs": 0}),
    ({}, {"warmup_lr": 5e-3}),
    ({}, {"min_lr": 5e-3}),
    ({}, {"cooldown_epochs": 1}),
    ({}, {"drop": 0.5}),
    ({}, {"drop_path": 0.5}),
    ({}, CROPPED),
    (CROPPED, {"ratio": (0.5, 2.0)}),
    (CROPPED, {"train_interpolation": "bicubic"}),
    ({}, {"hflip": 0.5}),
    ({}, {"vflip": 0.5}),
    ({}, {"color_jitter": 0.4}),
    ({"color_jitter": 0.4}, {"color_jitter_prob": 0.5}),
    ({}, {"aa": "rand-m9-mstd0.5-inc1"}),
    ({"aa": "rand-m9-mstd0.5-inc1"}, {"aa": "v0"}),
    ({}, {"aug_repeats": 3}),
    ({}, {"reprob": 0.5}),
    ({"reprob": 0.5}, {"remode": "const"}),
    ({"reprob": 0.5}, {"recount": 3}),
    ({}, {"smoothing": 0.0}),
    ({}, {"mixup": 0.8}),
    ({}, {"cutmix": 1.0}),
    ({}, {"cutmix_minmax": (0.2, 0.8)}),
    (MIXED, {"mixup_prob": 0.3}),
    (MIXED, {"mixup_switch_prob": 1.0}),
    (MIXED, {"mixup_mode": "elem"}),
    (MIXED, {"mixup_off_epoch": 1}),
    ({}, {"cos_reg_component": 1}),
    ({"cos_reg_component": 1}, {"cos_reg_dim": "key"}),
    ({"cos_reg_component": 1}, {"cos_reg_weight": 1.0}),
    ({}, {"model_ema": False}),
    ({}, {"model_ema_decay": 0.5, "model_ema_warmup": False}),
    ({}, {"model_ema_warmup": False}),
    ({}, {"seed": 43}),
    ({}, {"freeze": ("blocks.0.*",)}),
]  # fmt: skip


def learnt(path, options):
    run = run_training(path, config(**{**BASE, **options}), 48).run
    return load_file(run.latest_checkpoint() / "model.safetensors")


@pytest.mark.parametrize(("base", "option"), EFFECTS, ids=lambda value: ",".join(value) or "-")
def test_an_option_takes_effect(tmp_path, base, option):
    without, with_it = learnt(tmp_path / "without", base), learnt(tmp_path / "with", {**base, **option})
    assert any(not torch.equal(without[name], with_it[name]) for name in without)


def test_dense_and_class_weights_take_effect(tmp_path):
    import tests.training.test_loop as loop

    dense = {"model": "refiner_16_digits", "mixup": 0.0}
    options = {**loop.OPTIONS, "dense": True, "mix_token": True}
    original = dict(loop.OPTIONS)
    loop.OPTIONS.update(options)
    try:
        base = learnt(tmp_path / "base", dense)
        for name in ("dense_weight", "cls_weight"):
            other = learnt(tmp_path / name, {**dense, name: 0.1})
            assert any(not torch.equal(base[key], other[key]) for key in base)
    finally:
        loop.OPTIONS.clear()
        loop.OPTIONS.update(original)


def test_two_runs_of_the_same_options_are_equal(tmp_path):
    options = {**MIXED, **CROPPED, "aa": "v0", "reprob": 0.5, "drop_path": 0.3, "drop": 0.1}
    one, two = learnt(tmp_path / "one", options), learnt(tmp_path / "two", options)
    assert all(torch.equal(one[name], two[name]) for name in one)
