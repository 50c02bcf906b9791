"""Every shipped recipe is one that can be trained, and says where it comes from."""

import pytest
import torch

from attnprobe.io.config import from_mapping
from attnprobe.models import MODELS, build_model
from attnprobe.training import RECIPES, TrainConfig, read_recipe
from attnprobe.training.optimisation import build_optimizer, build_schedule


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
    if not name.startswith("digits"):
        header = " ".join(line for line in lines if line.startswith("#"))
        assert "Source: " in header and "Not run by us" in header
