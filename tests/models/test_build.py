"""Names -> models: sizes, options, and messages for what does not fit."""

import pytest
import timm
import torch
import transformers
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.data import load_images
from attnprobe.models import ALIASES, MODELS, build_model, input_spec

PARAMETERS = {  # counted from the authors' code, 1000 classes
    "vit_16": 24_423_784, "vit_24": 36_257_128, "vit_32": 48_090_472,
    "deepvit_16": 24_426_664, "deepvit_24": 36_261_448, "deepvit_32": 48_096_232,
    "refiner_s": 25_408_656, "refiner_m": 55_450_932, "refiner_l": 81_150_192,
    "refiner_s_384": 25_554_576, "refiner_m_384": 55_610_532, "refiner_l_384": 81_344_752,
    "deepvit_s": 27_312_632, "deepvit_l": 58_883_708, "deepvit_l_384": 59_043_308,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_authors(name):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("alias", ALIASES)
def test_the_authors_names_build_the_same_model(alias):
    with torch.device("meta"):
        theirs, ours = timm.create_model(alias), timm.create_model(ALIASES[alias])
    assert theirs.state_dict().keys() == ours.state_dict().keys()


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (build_model("deepvit_16_digits", num_classes=10, seed=3) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_timm_options_work_on_our_models():
    model = build_model("deepvit_16_digits", num_classes=7, img_size=48, in_chans=1, drop_path_rate=0.1, depth=3)
    assert model(torch.randn(2, 1, 48, 48)).shape == (2, 7)
    assert input_spec(model).size == (48, 48)


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("digits")])
def test_digits_presets_have_a_small_input(name):
    assert MODELS[name].options["img_size"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "deepvit_61"}, "no model and no file named 'deepvit_61'. Did you mean 'deepvit_16'?"),
        ({"name": "vit_16_digits", "img_size": 30}, r"not a multiple of the patch size \(8, 8\); use img_size=32"),
        ({"name": "vit_16_digits", "img_size": 4}, "multiple of the patch size"),
        ({"name": "vit_16_digits", "colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        build_model(**arguments)
    assert "\n" not in str(caught.value)


class Colours(nn.Module):
    """Makes grey of colours by itself."""

    def __init__(self):
        super().__init__()
        self.vit = build_model(GREY)

    def forward(self, x):
        return self.vit(x.mean(1, keepdim=True))


GREY = "vit_tiny_patch16_224:in_chans=1,depth=1,embed_dim=12,num_heads=3,img_size=32"


def test_a_model_of_one_channel_gets_grey_images():
    spec = input_spec(build_model(GREY))
    assert spec.mean == (0.5,) and spec.std == (0.5,)
    config = transformers.ViTConfig(hidden_size=12, num_attention_heads=3, intermediate_size=12, num_channels=1)
    assert len(input_spec(transformers.ViTModel(config)).mean) == 1
    assert len(input_spec(Colours()).mean) == len(input_spec(build_model("vit_16_digits")).mean) == 3
    images = load_images("digits", limit=2, spec=spec)
    assert next(images.batches(2)).pixels.shape == (2, 1, 32, 32)
