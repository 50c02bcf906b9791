"""Models that are not timm's come by name, see the pixels they were made for, and can be captured."""

from importlib.metadata import EntryPoint

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer

from attnprobe.capturing import capture
from attnprobe.core.errors import CheckpointError, InputError
from attnprobe.core.images import InputSpec
from attnprobe.models import build_model, elsewhere, input_spec, load_model
from attnprobe.models.describe import resolve_model

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}


def kinds(model, size):
    return {maps.kind for maps in capture(model, torch.randn(2, 3, size, size))}


def test_torchvision_by_name_and_from_a_file(tmp_path):
    model, facts = resolve_model("torchvision:swin_t", img_size=56, initial=True, seed=3)
    assert facts.sha256 == "" and facts.options == {"img_size": 56, "num_classes": 1000}
    assert input_spec(model).size == (56, 56) and input_spec(model).mean == (0.485, 0.456, 0.406)
    assert "window" in kinds(model, 56)
    same = build_model(facts.model, seed=3, **facts.options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "x.safetensors")
    loaded = load_model(tmp_path / "x.safetensors", model="torchvision:swin_t")
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_a_vit_of_torchvisions_of_its_own_size_is_named_by_torchvisions_options(tmp_path):
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96}
    theirs = VisionTransformer(**sizes, num_classes=7).eval()
    nn.init.normal_(theirs.heads.head.weight)
    save_file(theirs.state_dict(), tmp_path / "own.safetensors")
    name = "torchvision:vit_b_16:" + ",".join(f"{key}={value}" for key, value in sizes.items())
    ours, pixels = load_model(tmp_path / "own.safetensors", model=name).eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(pixels), theirs(pixels)) and input_spec(ours).size == (32, 32)
    with pytest.raises(InputError, match="no weights of vit_b_16 with other sizes"):
        build_model(name, pretrained=True)
    with pytest.raises(CheckpointError, match=r"vit_b_16:hidden_dim=256,num_heads=4"):
        load_model(tmp_path / "own.safetensors", model="torchvision:vit_b_16")


def test_unknown_names_are_one_line():
    with pytest.raises(InputError, match="torchvision has no model 'swin_q'.*Did you mean"):
        build_model("torchvision:swin_q")
    with pytest.raises(InputError, match="no model and no file named 'no_such_model'"):
        build_model("no_such_model")


def test_a_model_that_cannot_be_fetched_names_the_way_without_a_network(monkeypatch):
    def offline(*_, **__):
        raise FileNotFoundError("no connection.")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(InputError, match=r"'hf-hub:a/b' cannot be fetched: no connection\. .*local-dir:FOLDER"):
        build_model("hf-hub:a/b")


class Plugin(nn.Module):
    def __init__(self, width=8, pretrained=False):
        super().__init__()
        self.attention, self.pretrained = nn.MultiheadAttention(width, 2, batch_first=True), pretrained
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.input_spec = InputSpec((32, 32), mean=(0.1, 0.2, 0.3))

    def forward(self, pixels):
        x = self.embed(pixels).flatten(2).mT
        return self.attention(x, x, x)[0].mean(1)


def test_packages_add_names(monkeypatch):
    entry = EntryPoint("my_vit", "tests.models.test_elsewhere:Plugin", elsewhere.GROUP)
    monkeypatch.setattr(elsewhere, "entry_points", lambda group: [entry] if group == elsewhere.GROUP else [])
    model, facts = resolve_model("my_vit")
    assert model.pretrained and facts.variant == "Plugin" and facts.sha256
    assert build_model("my_vit", width=16).embed.out_channels == 16
    assert input_spec(model).mean == (0.1, 0.2, 0.3) and kinds(model, 32) == {"self"}


class TestHuggingFace:
    @pytest.fixture
    def folder(self, tmp_path):
        torch.manual_seed(0)
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY, num_labels=5)).eval()
        model.save_pretrained(tmp_path)
        processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
        processor.save_pretrained(tmp_path)
        return tmp_path, model

    def test_a_folder_gives_its_weights_its_pixels_and_its_classes(self, folder):
        path, theirs = folder
        model, facts = resolve_model(f"hf:{path}")
        assert facts.variant == "ViTForImageClassification" and facts.options == {"num_classes": 5} and facts.sha256
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in theirs.state_dict().items())
        assert input_spec(model).mean == (0.1, 0.2, 0.3) and input_spec(model).interpolation == "bilinear"
        maps = next(iter(capture(model, pixels := torch.randn(2, 3, 32, 32))))
        with torch.inference_mode():
            assert torch.equal(maps.outcome.prediction, theirs(pixels).logits.argmax(-1))
        fresh = build_model(facts.model, seed=9, **facts.options)
        assert not torch.equal(fresh.classifier.weight, model.classifier.weight)

    def test_its_folder_without_the_prefix_says_which(self, folder):
        with pytest.raises(CheckpointError, match="name it hf:"):
            load_model(folder[0])

    def test_of_two_towers_the_one_that_sees(self, tmp_path):
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
        pair = transformers.CLIPModel(transformers.CLIPConfig(vision_config=dict(TINY), text_config=text))
        pair.save_pretrained(tmp_path)
        model, _ = resolve_model(f"hf:{tmp_path}")
        theirs = pair.vision_model.state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(value, theirs[name.removeprefix("vision_model.")])

    def test_weights_that_are_not_there_are_named(self, folder):
        path, _ = folder
        state = transformers.ViTForImageClassification.from_pretrained(path).state_dict()
        save_file({k: v for k, v in state.items() if "classifier" not in k}, path / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip
        with pytest.raises(InputError, match="no weights for 2 parameters, such as 'classifier.bias'"):
            resolve_model(f"hf:{path}")
