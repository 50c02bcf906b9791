"""Maps of positions against what the model's own attention does with them."""

import pytest
import timm
import torch

from attnprobe.core.errors import ShapeError
from attnprobe.metrics import METRICS, measure
from attnprobe.models.initialisers import initialise, position_maps, target_maps, use_sinusoidal_positions
from attnprobe.models.initialisers.positions import pseudo_input, sinusoidal_positions
from attnprobe.plots import plot


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(16, 24), patch_size=4, embed_dim=48, depth=2, num_heads=3,
        class_token=False, global_pool="avg",
    )  # fmt: skip
    use_sinusoidal_positions(model)
    model.impulses = initialise(model)
    return model


def test_with_biases_they_are_what_the_layer_computes_on_positions(model):
    layer = model.blocks[1].attn
    layer.fused_attn = False
    seen = []
    handle = layer.attn_drop.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    layer(pseudo_input("P", sinusoidal_positions(4, 6, 48))[None])
    handle.remove()
    maps = position_maps(model, with_bias=True)
    torch.testing.assert_close(maps.values[0, 1], seen[0][0])
    assert (maps.values - position_maps(model).values).abs().max() > 1e-4


def test_targets_lie_where_the_offsets_say(model):
    maps = target_maps(model, model.impulses.offsets)
    assert maps.values.shape == (1, 2, 3, 24, 24) and not maps.stochastic
    assert (maps.grid.rows, maps.grid.cols, maps.grid.prefix, maps.grid.patch) == (4, 6, (), (4, 4))
    query = 2 * 6 + 3
    assert maps.values[0, 0, :, query].argmax(-1).tolist() == [query, query - 6, query + 1]


def test_metrics_and_plots_take_them(model):
    measured = measure([position_maps(model)], [METRICS["attention_distance"], METRICS["row_entropy"]])
    assert measured["attention_distance"].mean.shape == (2, 3)
    figure = plot(measured["row_entropy"]).figure
    import matplotlib.pyplot as plt

    plt.close(figure)


def test_offsets_of_other_axes_are_refused(model):
    with pytest.raises(ShapeError, match=r"\[layer, head, 2\], got \(3, 2\)"):
        target_maps(model, model.impulses.offsets[0])
