"""What a checkpoint says about its model is data."""

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from safetensors.torch import save_file

from attnprobe.core.errors import AttnprobeError, CheckpointError, InputError
from attnprobe.models import build_model, load_model
from attnprobe.models.describe import config_json, resolve_model
from attnprobe.models.file_options import OPTIONS, checked_cfg, checked_options, is_architecture
from attnprobe.models.presets import MODELS

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 32, "patch_size": 8, "num_classes": 4}


class Canary:
    """Touches a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def server():
    """A server on this machine that remembers what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def folder(tmp_path):
    """A sound model folder, and a function that changes its config.json."""
    model = build_model("vit_16_digits", **SMALL)
    where = tmp_path / "model"
    where.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, where / "model.safetensors")
    config = config_json("vit_16_digits", model, SMALL)

    def write(**changes):
        (where / "config.json").write_text(json.dumps({**config, **changes}))
        return where

    write.config = config
    write()
    return write


def evil_pth(tmp_path):
    with open(tmp_path / "evil.pth", "wb") as file:
        pickle.dump({"state_dict": Canary(tmp_path / "CANARY")}, file)
    return tmp_path / "evil.pth"


@pytest.mark.parametrize(
    "args",
    [
        {"checkpoint_path": "EVIL"},
        {"pretrained": True, "pretrained_cfg": {"file": "EVIL"}},
        {"pretrained_cfg": {"url": "URL/w.pth"}, "pretrained": True},
        {"pretrained_cfg_overlay": {"url": "URL/w.pth"}, "pretrained": True},
        {"cache_dir": "URL"},
        {"features_only": True},
        {"scriptable": True},
        {"depth": 10**7},
        {"embed_dim": 65536, "num_heads": 1, "depth": 12},
        {"img_size": 8192, "patch_size": 1},
        {"depth": "16"},
        {"img_size": [10**6, 10**6]},
        {"qkv_bias": "no"},
        {"weight_init": "../../x"},
        {"of": "hf-hub:x/y"},
    ],
    ids=str,
)
def test_options_out_of_the_list_are_refused_and_nothing_runs_or_is_fetched(folder, tmp_path, server, args):
    url, asked = server
    evil = str(evil_pth(tmp_path))
    text = json.dumps(args).replace("EVIL", evil).replace("URL", url)
    where = folder(model_args={**folder.config["model_args"], **json.loads(text)})
    for load in (load_model, resolve_model, lambda path: build_model(f"local-dir:{path}", pretrained=True)):
        with pytest.raises(CheckpointError) as caught:
            load(where)
        assert "\n" not in str(caught.value)
    assert not asked and not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    "name",
    ["hf-hub:timm/vit_tiny_patch16_224", "hf:a/b", "local-dir:/tmp", "torchvision:vit_b_16", "no/such", ""],
)
def test_an_architecture_that_is_an_address_is_not_followed(folder, server, monkeypatch, name):
    url, asked = server
    monkeypatch.setenv("HF_ENDPOINT", url)
    where = folder(architecture=name, model_args={})
    assert not is_architecture(name)
    with pytest.raises(AttnprobeError, match="none of timm's or ours|does not say|heads"):
        build_model(f"local-dir:{where}")
    loaded = None
    try:
        loaded = load_model(where)
    except CheckpointError as error:
        assert "model" in str(error)
    assert loaded is None or type(loaded).__module__.startswith(("timm", "attnprobe"))
    assert not asked


def test_a_training_scripts_args_name_no_address(tmp_path, server, monkeypatch):
    url, asked = server
    monkeypatch.setenv("HF_ENDPOINT", url)
    state = dict(build_model("deepvit_16_digits", **SMALL).state_dict())
    torch.save({"state_dict": state, "args": {"model": "hf-hub:x/y", "num_classes": 4}}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="taken for deepvit_16|positions are read as"):
        load_model(tmp_path / "a.pth")  # recognised by its parameters
    torch.save({"state_dict": {"x": torch.zeros(2)}, "arch": "hf-hub:x/y"}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="calls its model 'hf-hub:x/y'.*model="):
        load_model(tmp_path / "b.pth")
    assert not asked


def test_a_pickled_model_folder_loads_its_tensors_and_runs_nothing(folder, tmp_path):
    where = folder()
    state = load_model(where).state_dict()
    (where / "model.safetensors").unlink()
    torch.save(state, where / "pytorch_model.bin")
    for opened in (load_model(where), build_model(f"local-dir:{where}", pretrained=True)):
        assert all(torch.equal(opened.state_dict()[key], value) for key, value in state.items())
    with open(where / "pytorch_model.bin", "wb") as file:
        pickle.dump(Canary(tmp_path / "CANARY"), file)
    for load in (
        load_model,
        lambda path: resolve_model(f"local-dir:{path}"),
        lambda path: build_model(f"local-dir:{path}"),
    ):
        with pytest.raises(CheckpointError, match="nothing was run|not a PyTorch checkpoint"):
            load(where)
    assert not (tmp_path / "CANARY").exists()


def test_every_option_our_own_models_are_saved_with_is_in_the_list():
    saved = {name for preset in MODELS.values() for name in preset.options} | {"of", "heads"}
    assert saved - {*OPTIONS} <= {"of"}
    for preset in MODELS.values():
        assert checked_options(json.loads(json.dumps(dict(preset.options)))), preset.name


def test_addresses_of_weights_are_left_out_of_a_pretrained_cfg():
    given = {
        "url": "http://x",
        "file": "/x",
        "hf_hub_id": "x/y",
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "tag": 1,
    }
    assert checked_cfg(given) == {"input_size": [3, 32, 32], "mean": [0.5] * 3}
    with pytest.raises(InputError, match="input_size"):
        checked_cfg({"input_size": [3, 10**6, 10**6]})


def test_a_folder_of_transformers_fetches_no_backbone(tmp_path, server, monkeypatch):
    from huggingface_hub import constants

    url, asked = server
    monkeypatch.setattr(constants, "ENDPOINT", url)
    config = {"model_type": "dpt", "architectures": ["DPTModel"], "backbone": "some/backbone", "hidden_size": 24}
    config |= {"use_pretrained_backbone": True, "use_timm_backbone": False, "num_hidden_layers": 2, "image_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for pretrained in (False, True):
        with pytest.raises(InputError, match="offline mode"):
            build_model(f"hf:{tmp_path}", pretrained=pretrained)
    assert not asked and not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "vit", "attn_implementation": "some/kernel"},
        {"model_type": "clip", "vision_config": {"_attn_implementation": "some/kernel"}},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:x/y"},
        {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "x"}},
    ],
    ids=str,
)
def test_a_folder_of_transformers_names_no_code(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="names code|local-dir"):
        build_model(f"hf:{tmp_path}")
