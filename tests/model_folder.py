"""A small model with random weights as a folder in timm's layout, for tests that open a checkpoint."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from attnprobe.models import build_model
from attnprobe.models.describe import config_json


def model_folder(folder: Path, name: str = "deepvit_16_digits", **options: Any) -> Path:
    """The folder, made, with the named model of these options; three blocks of width 24 for digits without any."""
    options = options or {"depth": 3, "embed_dim": 24, "num_classes": 10}
    model = build_model(name, seed=1, **options)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json(name, model, options)))
    return folder
