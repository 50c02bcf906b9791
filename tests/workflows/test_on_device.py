"""Files, measurements and probes made on a GPU are those made on the CPU."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import attnprobe as ap
from attnprobe.core.images import InputSpec
from attnprobe.core.spec import CaptureSpec
from attnprobe.models.describe import config_json
from attnprobe.store import open_maps
from attnprobe.workflows.capture import capture_file, measure_live

OPTIONS = {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 16, "patch_size": 4, "num_classes": 10}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = ap.build_model("deepvit_16_digits", seed=0, **OPTIONS)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json("deepvit_16_digits", model, OPTIONS)))
    return folder


def spec(checkpoint, device):
    return CaptureSpec(checkpoint, data="digits", images=24, untrained=8, device=str(device), dtype="float32")


@pytest.mark.gpu
def test_a_file_captured_on_a_gpu_is_the_one_of_the_cpu(checkpoint, tmp_path, gpu):
    paths = [capture_file(spec(checkpoint, d), out=tmp_path / f"{k}.h5") for k, d in enumerate(("cpu", gpu))]
    for suffix in (".h5", ".untrained.h5"):
        with open_maps(paths[0].with_suffix(suffix)) as here, open_maps(paths[1].with_suffix(suffix)) as there:
            assert here.sites("trunk") == there.sites("trunk")
            for ours, theirs in zip(here, there, strict=True):
                assert ours.image_ids == theirs.image_ids
                torch.testing.assert_close(theirs.values, ours.values, rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(theirs.tokens, ours.tokens, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_maps_measured_on_a_gpu_without_being_stored_are_those_of_the_cpu(checkpoint, tmp_path, gpu):
    metrics = ["row_entropy", "layer_similarity", "head_divergence", "token_similarity"]
    here, there = (
        measure_live(spec(checkpoint, d), out=tmp_path / f"{k}", metrics=metrics, formats=("json",))[0][0].measurements
        for k, d in enumerate(("cpu", gpu))
    )
    assert list(here) == list(there)
    for name, expected in here.items():
        np.testing.assert_allclose(there[name].mean, expected.mean, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.gpu
def test_a_probe_on_a_gpu_sees_what_it_sees_on_the_cpu_and_leaves_training_alone(gpu):
    images = ap.load_images("digits", "val", spec=InputSpec((16, 16)), limit=16)
    model = ap.build_model("deepvit_16_digits", seed=0, **OPTIONS).train()
    histories = []
    for device in (torch.device("cpu"), gpu):
        module = copy.deepcopy(model).to(device)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        torch.manual_seed(0)
        drawn = torch.rand(3, device=device)
        torch.manual_seed(0)
        probe = ap.Probe(images, budget=1.0, n_images=8)
        probe(1, module)
        assert torch.equal(torch.rand(3, device=device), drawn) and module.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        histories.append(probe.history)
    for name, expected in histories[0].blocks.items():
        np.testing.assert_allclose(histories[1].blocks[name], expected, rtol=1e-3, atol=1e-3, err_msg=name)
