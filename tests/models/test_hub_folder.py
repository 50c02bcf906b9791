"""A folder of transformers builds one of the library's models, of about the size of its weights, or is refused."""

import json
from typing import Any

import pytest
import torch
import transformers

from attnprobe.core.errors import InputError
from attnprobe.models import build_model

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIG = {"model_type": "vit", "architectures": ["ViTModel"], **TINY, "image_size": 32, "patch_size": 16}


def folder(path, weights=True, **changes):
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    if weights:
        torch.save({"a": torch.zeros(1)}, path / "pytorch_model.bin")
    return f"hf:{path}"


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 4096},
        {"hidden_size": 10**6},
        {"intermediate_size": 10**9},
        {"image_size": 10**6},
        {"image_size": 10**4, "patch_size": 10**4},
        {"num_labels": 10**9},
        {"model_type": "swin", "architectures": ["SwinModel"], "depths": [10**7]},
        {
            "model_type": "swin",
            "architectures": ["SwinModel"],
            "num_attention_heads": [3] * 4,
            "window_size": 10**4,
            "image_size": 10**5,
        },
        {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": {"hidden_size": 12 * 10**5}},
    ],
    ids=str,
)
def test_a_model_far_larger_than_its_weights_is_refused_before_it_is_built(tmp_path, changes, pretrained):
    with pytest.raises(InputError, match="expected at most|declares a model of more than") as caught:
        build_model(folder(tmp_path, **changes), pretrained=pretrained)
    assert "\n" not in str(caught.value)


NO_MODELS = ["pipeline", "Trainer", "logging", "models", "__dict__", "ViTConfig", "AutoTokenizer", "ViTPreTrainedModel"]


@pytest.mark.parametrize("name", NO_MODELS)
def test_only_a_model_of_the_library_counts_as_an_architecture(tmp_path, name):
    with pytest.raises(InputError, match=f"architecture '{name}', which is no model of transformers"):
        build_model(folder(tmp_path, architectures=[name]), pretrained=True)


@pytest.mark.parametrize(
    "changes", [{"architectures": ["BertModel"]}, {"vision_config": {"a": 1}}, {"vision_config": 7}]
)
def test_a_configuration_of_another_model_is_one_line(tmp_path, changes):
    with pytest.raises(InputError, match="does not fit|cannot be built|is of no model"):
        build_model(folder(tmp_path, weights=False, **changes))


def test_a_config_alone_is_built_with_initial_weights_as_the_library_makes_them(tmp_path):
    name = folder(tmp_path, weights=False)
    torch.manual_seed(0)
    theirs = transformers.ViTModel(transformers.ViTConfig.from_pretrained(tmp_path))
    ours = build_model(name, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_sound_folders_open_whatever_type_their_weights_are_of(tmp_path):
    config: Any = {**TINY, "image_size": 32, "patch_size": 16}
    model: Any = transformers.ViTModel(transformers.ViTConfig(**config))
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        model.to(kind).save_pretrained(tmp_path / str(kind))
        opened: Any = build_model(f"hf:{tmp_path / str(kind)}", pretrained=True)
        assert torch.equal(opened.embeddings.cls_token, model.embeddings.cls_token.float())
