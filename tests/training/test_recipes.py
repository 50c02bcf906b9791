"""Shipped recipes can be trained and name their source; files for timm's train.py are read, or refused by name."""

import warnings
from dataclasses import fields

import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.io.config import from_mapping
from attnprobe.models import MODELS, build_model
from attnprobe.training import RECIPES, TrainConfig, read_recipe
from attnprobe.training.optimisation import build_optimizer, build_schedule
from attnprobe.training.timm_args import DEFAULTS, from_timm

KNOWN = {field.name for field in fields(TrainConfig)}

ARGS = """
aa: rand-m9-mstd0.5-inc1
amp: true
aug_splits: 0
batch_size: 32
bn_eps: null
channels_last: false
clip_grad: null
color_jitter: 0.4
cooldown_epochs: 10
cos_reg_component: 12
cutmix: 0.0
data: {folder}
decay_epochs: 30
dist_bn: ''
drop: 0.0
drop_block: null
drop_path: 0.2
epochs: 300
gp: null
img_size: null
jsd: false
local_rank: 0
log_interval: 50
lr: 0.0005
lr_noise: null
mixup: 0.1
mixup_off_epoch: 0
model: deepvit_patch16_224_re_attn_32b
model_ema: true
model_ema_decay: 0.99996
num_classes: 1000
opt: adamw
opt_betas: null
opt_eps: null
output: ''
pretrained: false
reprob: 0.25
sched: cosine
seed: 42
smoothing: 0.1
tta: 0
warmup_epochs: 5
warmup_lr: 1.0e-06
weight_decay: 0.05
min_lr: 1.0e-05
workers: 8
"""


def read(tmp_path, text, **more):
    (tmp_path / "args.yaml").write_text(text)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*without effect here")
        return from_mapping(TrainConfig, read_recipe(tmp_path / "args.yaml", **more))


def test_an_authors_file_is_accepted_as_it_is(tmp_path):
    config = read(tmp_path, ARGS.replace("{folder}", str(tmp_path)))
    assert (config.model, config.dataset, config.data_dir) == (
        "deepvit_patch16_224_re_attn_32b",
        "folder",
        str(tmp_path),
    )
    assert (config.lr, config.cooldown_epochs, config.cos_reg_component, config.mixup) == (5e-4, 10, 12, 0.1)
    assert (config.amp_dtype, config.sched_on_updates, config.model_ema_warmup) == ("float16", False, False)
    assert config.scale == (0.08, 1.0) and config.hflip == 0.5  # not in the file: timm's defaults


def test_what_the_file_does_not_mention_is_timms_default():
    options, note = from_timm({"model": "vit_16", "log_interval": 50, "pin_mem": True}, KNOWN, source="x")
    assert {name: options[name] for name in DEFAULTS} == DEFAULTS
    assert note == (
        "x is read as arguments of timm's train.py, whose defaults hold for what it leaves out; without effect here: "
        "log_interval, pin_mem."
    )


def test_one_name_of_timms_does_not_turn_a_file_of_ours_into_timms():
    for ours in ({"model": "vit_16", "lr": 1e-3}, {"model": "vit_16", "pin_mem": True, "probe_every": 1}):
        options, note = from_timm({**ours, "log_interval": 50}, KNOWN, source="x")
        assert options == {name: value for name, value in ours.items() if name != "pin_mem"}
        assert note.startswith("x: without effect here: log_interval")


@pytest.mark.parametrize("text", ["pretrained: true", "jsd_loss: true", "bce_loss: true", "tta: 2", "no_aug: true"])
def test_what_cannot_be_had_is_refused_rather_than_left_out(tmp_path, text):
    name = text.partition(":")[0]
    with pytest.raises(InputError, match=f"does not exist here: {name}="):
        read(tmp_path, f"model: vit_16\n{text}\n")


def test_unknown_names_are_all_listed_and_dropped_on_request(tmp_path):
    text = (
        "model: vit_16\nlog_interval: 3\nlocal_rank: 0\nmy_option: 1\nlearning_rate: 2\nepochs: 4\nwarmup_epochs: 1\n"
    )
    with pytest.raises(InputError, match=r"'learning_rate', 'my_option'.*ignore_unknown=True"):
        read(tmp_path, text)
    with pytest.warns(UserWarning, match="left out, since unknown: learning_rate, my_option"):
        assert read_recipe(tmp_path / "args.yaml", ignore_unknown=True)["epochs"] == 4


def test_options_of_the_model_reach_it(tmp_path):
    text = "model: refiner_s\nlog_interval: 1\nlocal_rank: 0\nreturn_dense: true\nmix_token: true\ngp: avg\n"
    config = read(tmp_path, text + "model_kwargs: {class_token: false}\n")
    assert config.model_kwargs == {"dense": True, "mix_token": True, "global_pool": "avg", "class_token": False}


def test_our_own_files_are_left_alone():
    values = {"model": "vit_16", "dataset": "digits", "lr": 1e-3}
    assert from_timm(values, KNOWN, source="x") == (values, "")


def test_torchcompiles_backend_switches_compiling_on(tmp_path):
    assert read(tmp_path, "model: vit_16\ntorchcompile: inductor\nlog_interval: 1\nlocal_rank: 0\n").torchcompile
    assert not read(tmp_path, "model: vit_16\ntorchcompile: null\nlog_interval: 1\nlocal_rank: 0\n").torchcompile


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_model_optimiser_and_schedule_can_be_built(name):
    config = from_mapping(TrainConfig, read_recipe(name), source=name)
    with torch.device("meta"):
        model = build_model(config.model, num_classes=10, drop_path_rate=config.drop_path, **config.model_kwargs)
    optimizer = build_optimizer(model, config, images_per_step=config.batch_size)
    _, epochs = build_schedule(optimizer, config, updates=10)
    assert epochs == config.epochs + config.cooldown_epochs and config.model in MODELS
    if config.cos_reg_component:
        assert len(model.blocks) > config.cos_reg_component


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command_and_its_source(name):
    lines = RECIPES[name].path.read_text().splitlines()
    assert lines[0].startswith(f"# attnprobe train {name} ") and max(map(len, lines)) <= 120
    if not name.startswith(("digits", "fashion")):
        header = " ".join(line for line in lines if line.startswith("#"))
        assert "Source: " in header and "Not run by us" in header
