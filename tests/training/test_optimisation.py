"""Learning rates against timm's rules and closed forms."""

import math

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models import build_model
from attnprobe.training.config import TrainConfig
from attnprobe.training.optimisation import build_optimizer, build_schedule, freeze, peak_lr


def config(**options):
    return TrainConfig(**{"model": "vit_16_digits", "dataset": "digits", **options})


@pytest.mark.parametrize(
    ("options", "images", "expected"),
    [
        ({}, 64, 1e-3),
        ({"lr": 5e-4, "lr_base": 1.0}, 64, 5e-4),
        ({"lr_base": 0.1, "opt": "sgd"}, 512, 0.2),
        ({"lr_base": 0.1, "opt": "adamw"}, 1024, 0.2),
        ({"lr_base": 4e-3, "lr_base_size": 4096, "lr_base_scale": "linear"}, 1024, 1e-3),
        ({"lr_base": 0.1, "opt": "sgd", "lr_base_scale": "sqrt"}, 64, 0.05),
    ],
)
def test_the_peak_is_lr_or_scaled_from_lr_base(options, images, expected):
    assert peak_lr(config(**options), images) == pytest.approx(expected)


def test_options_reach_the_optimiser():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, config(opt_eps=1e-3, opt_betas=(0.8, 0.9), weight_decay=0.3), images_per_step=8)
    assert optimizer.defaults["eps"] == 1e-3 and optimizer.defaults["betas"] == (0.8, 0.9)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.3]
    sgd = build_optimizer(model, config(opt="sgd", momentum=0.5), images_per_step=8)
    assert sgd.param_groups[0]["momentum"] == 0.5


def test_layer_decay_falls_from_block_to_block():
    model = build_model("vit_16_digits", depth=4)
    scales = {
        group["lr_scale"] for group in build_optimizer(model, config(layer_decay=0.5), images_per_step=8).param_groups
    }
    assert scales == {0.5**i for i in range(6)}  # embedding, four blocks, head


@pytest.mark.parametrize("on_updates", [True, False])
def test_warm_up_then_cosine_then_cool_down(on_updates):
    options = config(
        lr=1.0, min_lr=0.1, warmup_lr=0.0, warmup_epochs=2, epochs=10, cooldown_epochs=3, sched_on_updates=on_updates
    )
    optimizer = create_optimizer_v2(nn.Linear(2, 2), opt="sgd", lr=1.0)
    scheduler, epochs = build_schedule(optimizer, options, updates=4)
    assert epochs == 13
    for epoch in range(epochs):
        scheduler.step(epoch)
        for step in range(4):
            scheduler.step_update(4 * epoch + step)
            t = epoch + step / 4 if on_updates else epoch
            expected = t / 2 if t < 2 else 0.1 + 0.9 * (1 + math.cos(math.pi * min(t, 10) / 10)) / 2
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_an_optimiser_timm_does_not_know_is_named():
    with pytest.raises(InputError, match="opt='nonsense' cannot be built"):
        build_optimizer(nn.Linear(2, 2), config(opt="nonsense"), images_per_step=8)


@pytest.mark.parametrize("sched", ["nonsense", "plateau"])
def test_a_schedule_that_does_not_exist_is_named(sched):
    with pytest.raises(InputError, match=sched):
        build_schedule(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1), config(sched=sched), updates=3)


def test_frozen_parameters_are_found_by_pattern():
    model = build_model("vit_16_digits", depth=3)
    freeze(model, ("patch_embed.*", "blocks.[01].*"))
    still = {
        name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad and name.startswith("blocks")
    }
    assert still == {"2"} and not model.patch_embed.proj.weight.requires_grad and model.head.weight.requires_grad


@pytest.mark.parametrize(("patterns", "message"), [(("block.*",), "no parameter matches"), (("*",), "nothing left")])
def test_freezing_nothing_or_everything_is_an_error(patterns, message):
    with pytest.raises(InputError, match=message):
        freeze(build_model("vit_16_digits", depth=2), patterns)
