"""Each option of timm's train.py is honoured, dropped where it changes nothing, or refused by name."""

import math
import re

import pytest
import torch
import yaml

from attnprobe.core.errors import InputError
from attnprobe.io.config import from_mapping
from attnprobe.training import TrainConfig, read_recipe
from attnprobe.training.optimisation import build_schedule
from attnprobe.training.timm_args import UNLESS, from_timm
from tests.training.timm_options import KNOWN, OF_PAPERS, OPTIONS, what_becomes_of


@pytest.mark.parametrize("name", [*OPTIONS, *OF_PAPERS])
def test_an_option_is_dealt_with_in_one_way(name):
    assert " AND " not in what_becomes_of(name) and what_becomes_of(name) != "NOTHING"


OTHERWISE = ("model", "data_dir", "dataset", "torchcompile", "interpolation")
"""Options whose default here is written otherwise, or that the file has been given."""


def test_a_complete_file_at_timms_defaults_is_read_as_timms(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text(yaml.safe_dump({**OPTIONS, "model": "vit_tiny_patch16_224", "data_dir": str(tmp_path)}))
    with pytest.warns(UserWarning, match="read as arguments of timm's train.py.*without effect here: .*log_interval"):
        config = from_mapping(TrainConfig, read_recipe(path), source="x")
    for name, default in OPTIONS.items():
        if name in KNOWN and name not in OTHERWISE and default is not None:
            value = getattr(config, name)
            assert (list(value) if isinstance(value, tuple) else value) == default, name
    assert (config.dataset, config.keep_checkpoints, config.torchcompile) == ("folder", 10, False)
    assert config.interpolation is None


ON = {"amp_impl": "apex", "aug_splits": 3, "bce_target_thresh": 0.2, "bn_eps": 1e-3, "bn_momentum": 0.9,
      "class_map": "map.txt", "drop_block": 0.1, "drop_connect": 0.1, "epoch_repeats": 2.0,
      "eval_metric": "loss", "gaussian_blur_prob": 0.1, "grayscale_prob": 0.1, "head_init_bias": -7.0,
      "head_init_scale": 1e-3, "input_img_mode": "L", "input_key": "img",
      "kd_model_name": "vit_base", "layer_decay_min_scale": 0.1, "layer_decay_no_opt_scale": 0.1, "lr_noise": [0.4],
      "model_dtype": "bfloat16", "opt_kwargs": {"eps": 1e-3}, "pretrained_path": "x.pth",
      "resume": "last.pth.tar", "start_epoch": 3, "target_key": "y",
      "torchcompile_mode": "max-autotune", "train_crop_mode": "rkrc", "train_split": "all", "tta": 2,
      "val_split": "minival", "bce_pos_weight": 2.0}  # fmt: skip


@pytest.mark.parametrize("name", UNLESS)
def test_what_would_change_the_result_is_refused_with_advice(name):
    with pytest.raises(InputError, match=f"does not exist here: {name}=.*: {re.escape(UNLESS[name][1])}"):
        from_timm({"model": "vit_16", name: ON.get(name, True)}, KNOWN, source="x")


@pytest.mark.parametrize("name", UNLESS)
@pytest.mark.parametrize("off", [None, False, 0, "", []])
def test_what_is_off_changes_nothing(name, off):
    values = {"model": "vit_16", "lr": 1e-3, "probe_every": 1}
    assert from_timm({**values, name: off}, KNOWN, source="x") == (values, "")


def rates(epochs=12, **options):
    config = from_mapping(
        TrainConfig,
        {"model": "vit_16", "dataset": "digits", "epochs": epochs, "warmup_epochs": 0, "min_lr": 0.0, "lr": 1.0,
         "sched_on_updates": False, **options},
        source="x",
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, total = build_schedule(optimizer, config, updates=5)
    found = []
    for epoch in range(total):
        scheduler.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_milestones_are_where_multistep_decays():
    found = rates(sched="multistep", decay_milestones=[3, 7], decay_rate=0.5)
    assert found == [1.0] * 2 + [0.5] * 4 + [0.25] * 6  # timm's schedule counts epochs from 1


def test_k_decay_cycles_and_the_prefix_change_the_cosine():
    plain = [0.5 * (1 + math.cos(math.pi * t / 12)) for t in range(12)]
    assert rates() == pytest.approx(plain)
    assert rates(lr_k_decay=2.0) == pytest.approx([0.5 * (1 + math.cos(math.pi * (t / 12) ** 2)) for t in range(12)])
    two = rates(lr_cycle_limit=2, lr_cycle_decay=0.25)
    assert len(two) == 24 and two[12:] == pytest.approx([0.25 * x for x in plain])
    prefix = rates(warmup_epochs=3, warmup_lr=0.0, warmup_prefix=True)
    assert len(prefix) == 15 and prefix[:3] == pytest.approx([0, 1 / 3, 2 / 3]) and prefix[3:] == pytest.approx(plain)
    beneath = rates(warmup_epochs=3, warmup_lr=0.0)
    assert len(beneath) == 12 and beneath[3:] == pytest.approx(plain[3:])


def test_an_input_size_is_the_image_size_and_the_channels():
    assert from_timm({"input_size": [3, 64, 64]}, KNOWN, source="x")[0] == {"img_size": 64}
    found, _ = from_timm({"input_size": [1, 64, 64], "model_kwargs": {"depth": 2}}, KNOWN, source="x")
    assert found == {"img_size": 64, "model_kwargs": {"depth": 2, "in_chans": 1}}
    with pytest.raises(InputError, match=r"input_size=\[3, 64, 32\] must be"):
        from_timm({"input_size": [3, 64, 32]}, KNOWN, source="x")


def test_mixed_precision_is_on_under_either_of_its_names():
    for amp, native, on in ((True, False, True), (False, True, True), (False, False, False)):
        options, _ = from_timm({"amp": amp, "native_amp": native, "log_interval": 50}, KNOWN, source="x")
        assert options["amp"] is on
    assert from_timm({"native_amp": True, "pin_mem": True}, KNOWN, source="x")[0]["amp"] is True


def test_repeats_may_be_written_as_timms_parser_writes_them():
    assert from_timm({"aug_repeats": 3.0}, KNOWN, source="x")[0] == {"aug_repeats": 3}


def test_a_papers_name_of_a_plain_vit_is_said_to_be_one():
    _, note = from_timm({"model": "vit_base_patch16_224_in21k", "log_interval": 50, "pin_mem": 1}, KNOWN, source="x")
    assert "is timm's plain ViT; its paper's rich heads are model richvit_b16, and the recipe richvit_imagenet" in note


def test_an_initialiser_among_the_models_arguments_is_refused_like_any_other_option():
    with pytest.raises(InputError, match="post_weight_init='impulse': use weight_init: impulse3"):
        from_timm({"model_kwargs": {"post_weight_init": "impulse"}}, KNOWN, source="x")


def test_an_authors_script_names_the_shipped_recipe():
    with pytest.raises(InputError, match="the recipe of that name is shipped: attnprobe train refiner_s"):
        read_recipe("scripts/refiner_s.yaml")
