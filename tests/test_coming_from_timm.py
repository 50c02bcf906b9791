"""The page for users of timm's train.py: each of its commands is one that the program takes."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from attnprobe.cli import app
from attnprobe.core.errors import InputError
from attnprobe.io.config import from_mapping, parse_settings
from attnprobe.models.file_options import checked_options
from attnprobe.training import TrainConfig, read_recipe
from attnprobe.workflows.train import _built, _model_options
from tests.training.timm_options import OPTIONS

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from_timm.md").read_text()
COMMANDS = list(
    dict.fromkeys(re.findall(r"^(?:torchrun .*? -m )?attnprobe .*|(?<=`)[^`\n]*attnprobe [^`\n]*", PAGE, re.M))
)


def config_of(options):
    """The options of a run and its model, without memory, as a start would have them."""
    config = from_mapping(TrainConfig, options, source="page")
    checked_options(config.model_kwargs)
    with torch.device("meta"):
        return config, _built(config, _model_options(config))


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_understood(line, monkeypatch):
    name, *arguments = shlex.split(line.partition("attnprobe ")[2])
    given = {}

    @functools.wraps(app.COMMANDS[name])
    def instead(*positional, **named):
        given.update(named)

    monkeypatch.setitem(app.COMMANDS, name, instead)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    app.main([name, *arguments])  # it would exit with 2 for what it does not know
    assert given
    if name == "train" and given["recipe"] != "args.yaml":
        directory = {"data_dir": str(given["data_dir"])} if given["data_dir"] else {}
        recipe = read_recipe(given["recipe"])
        config, model = config_of({**recipe, **parse_settings(given["set"]), **directory})
        assert config.model and sum(p.numel() for p in model.parameters()) > 0


def test_the_page_has_every_command_that_stands_in_it():
    assert len(COMMANDS) > 30 and sum("attnprobe train" in line for line in COMMANDS) > 20


REFINER = {
    "aa": "rand-m9-mstd0.5-inc1", "amp": True, "native_amp": False, "apex_amp": False, "bn_tf": False,
    "cooldown_epochs": 10, "cos_reg_component": 12, "cutmix": 1.0, "mixup": 0.8, "data": "IMAGENET", "data_dir": None,
    "drop_path": 0.2, "img_size": 224, "model": "Refiner_ViT_L", "model_ema": True, "model_ema_decay": 0.99996,
    "num_classes": 1000, "opt": "adamw", "lr": 5e-4, "min_lr": 1e-5, "use_lmdb": True, "use_repeated_aug": False,
    "relabel": False, "return_dense": False, "mix_token": False, "relabel_size": 14, "dense_weight": 0.5,
    "relabel_data": None, "dist_bn": "", "jsd": False, "validation_batch_size_multiplier": 1, "weight_decay": 0.05,
    "backup": "", "finetune": "", "sam_rho": 0.0, "sam_ratio": 1.0, "annealing_weight": False, "cls_weight": 1.0,
    "dense_avg_pool": False,
}  # fmt: skip

STRUCTURED = {
    "data_dir": "~/cifar", "dataset": "torch/CIFAR10", "dataset_download": True, "num_classes": 10,
    "input_size": [3, 32, 32], "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616],
    "model": "vit_tiny_patch2_32", "gp": "avg", "batch_size": 512, "workers": 8, "opt": "adamw", "epochs": 200,
    "model_kwargs": {"embed_dim": 192, "depth": 12, "num_heads": 3, "weight_init": "impulse3", "class_token": False,
                     "no_embed_class": True, "sin_pe": True},
    "lr": 1e-3, "min_lr": 1e-6, "warmup_epochs": 10, "opt_eps": 1e-3, "clip_grad": 3.0, "weight_decay": 0.01,
    "amp": True, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "crop_pct": 1.0, "aa": "rand-m9-mstd0.5-inc1",
}  # fmt: skip


def read(folder, values):
    """The configuration and model of a whole file, in which everything else stands at timm's default."""
    path = folder / "args.yaml"
    path.write_text(yaml.safe_dump({**OPTIONS, **values}))
    with pytest.warns(UserWarning, match="is read as arguments of timm's train.py"):
        return config_of(read_recipe(path))


def test_the_file_of_refiners_script_is_its_recipe(tmp_path):
    config, model = read(tmp_path, REFINER)
    assert type(model).__name__ == "Refiner" and config.amp and config.data_dir == "IMAGENET"
    shipped = from_mapping(TrainConfig, read_recipe("refiner_l"), source="recipe")
    same = ("drop_path", "mixup", "cutmix", "lr", "min_lr", "weight_decay", "model_ema_decay", "aa", "cooldown_epochs")
    assert [getattr(config, name) for name in same] == [getattr(shipped, name) for name in same]


def test_the_command_of_structured_initialisation_is_its_recipe_with_its_pixels(tmp_path):
    config, model = read(tmp_path, STRUCTURED)
    assert (config.img_size, config.download, config.crop_pct, config.num_classes) == (32, True, 1.0, 10)
    assert model.pretrained_cfg["mean"] == (0.4914, 0.4822, 0.4465)
    shipped = from_mapping(TrainConfig, read_recipe("structured_cifar10"), source="recipe")
    _, ours = config_of({"model": shipped.model, "dataset": "digits", "model_kwargs": shipped.model_kwargs})
    sizes = [{name: p.shape for name, p in m.named_parameters() if "head." not in name} for m in (model, ours)]
    assert sizes[0] == sizes[1]
    same = ("lr", "min_lr", "opt_eps", "clip_grad", "weight_decay", "scale", "ratio", "epochs", "batch_size", "aa")
    assert [getattr(config, name) for name in same] == [getattr(shipped, name) for name in same]


def test_a_plain_vit_with_an_option_of_the_structured_one_is_that_one(tmp_path):
    _, model = read(tmp_path, {"model": "vit_tiny_patch16_224", "model_kwargs": {"sin_pe": True}, "data_dir": "x"})
    assert type(model).__name__ == "StructuredViT"
    _, model = read(tmp_path, {"model": "vit_tiny_patch16_224", "data_dir": "x"})
    assert type(model).__name__ == "VisionTransformer"


def test_a_word_that_is_no_flag_is_named(tmp_path):
    kwargs = {**STRUCTURED["model_kwargs"], "no_embed_class": "Ture"}
    with pytest.raises(InputError, match="no_embed_class='Ture'"):
        read(tmp_path, {**STRUCTURED, "model_kwargs": kwargs})
