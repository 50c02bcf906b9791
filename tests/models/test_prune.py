"""A pruned model computes what the whole one does without those blocks and heads, and timm opens it."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models import build_model, input_spec, load_model
from attnprobe.models.describe import config_json
from attnprobe.models.parts import Removal
from attnprobe.models.prune import pruned, written_down

TINY = {"depth": 4, "embed_dim": 24, "num_heads": 3, "img_size": 16, "patch_size": 8, "num_classes": 5}
ALONE = ("vit", "attnscale", "featscale", "gated", "qknorm", "layerscale", "registers")
MIXED = ("deepvit", "refiner", "richvit", "talkingheads", "differential", "sigmareparam", "realformer")


def whole(variant, **options):
    model = build_model(f"{variant}_16_digits", seed=0, **{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():  # nothing at 0 or 1, where a mistake would not show
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def images(n=3):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def without(model, blocks=(), heads=()):
    """The reference: the whole model with branches of blocks and outputs of heads set to zero by hand."""
    handles = []
    for block in blocks:
        handles.append(model.blocks[block - 1].register_forward_hook(lambda _m, args, _out: args[0]))
    for block, head in heads:
        width = model.blocks[block - 1].attn.head_dim

        def hook(_m, args, head=head, width=width):
            y = args[0].clone()
            y[..., (head - 1) * width : head * width] = 0
            return (y,)

        handles.append(model.blocks[block - 1].attn.proj.register_forward_pre_hook(hook))
    with torch.inference_mode():
        out = model(images())
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize("variant", ALONE)
def test_it_computes_what_the_whole_model_does_without_them(variant):
    model = whole(variant)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = pruned(model, Removal(blocks=[2], heads={1: [3], 4: [1, 2]}))
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images()), without(model, [2], [(1, 3), (4, 1), (4, 2)]))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert [block.attn.num_heads for block in smaller.blocks] == [2, 3, 1]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(("blocks", "heads"), [([2, 3], {}), ([1], {2: [1]}), ([], {1: [1], 2: [1], 3: [2], 4: [3]})])
def test_timm_and_attnprobe_open_what_was_written(blocks, heads, tmp_path):
    model = whole("vit")
    smaller = pruned(model, Removal(blocks=blocks, heads=heads))
    name, options, rebuilt = written_down(model, smaller, "vit_16_digits", TINY, blocks)
    assert name == ("pruned_vit" if heads else "vit_16_digits")
    save_file(rebuilt.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_json(name, rebuilt, options)))
    assert input_spec(build_model(name, **options)) == input_spec(model)  # the same pixels, weights or not
    opened = [timm.create_model(f"local-dir:{tmp_path}", pretrained=True), load_model(tmp_path)]
    for other in opened:
        assert input_spec(other) == input_spec(model)
        with torch.inference_mode():
            torch.testing.assert_close(other.eval()(images()), smaller(images()))


def test_what_was_pruned_can_be_pruned_again(tmp_path):
    model = whole("vit")
    once = pruned(model, Removal(heads={1: [1], 2: [2]}))
    name, options, once = written_down(model, once, "vit_16_digits", TINY, [])
    twice = pruned(once.eval(), Removal(blocks=[3], heads={1: [1]}))
    name, options, rebuilt = written_down(once, twice, name, options, [3])
    assert (name, options["of"], options["heads"]) == ("pruned_vit", "vit_16_digits", [1, 2, 3])
    with torch.inference_mode():
        expected = without(model, [3], [(1, 1), (2, 2), (1, 2)])
        torch.testing.assert_close(rebuilt.eval()(images()), expected)


@pytest.mark.parametrize("variant", MIXED)
def test_heads_that_see_each_other_are_refused(variant):
    with pytest.raises(InputError, match="mixed, passed on or normalised together"):
        pruned(whole(variant, num_heads=2), Removal(heads={1: [1]}))


def test_dropped_blocks_keep_reattention_where_it_was():
    model = whole("deepvit", reattention=(2, 3))
    smaller = pruned(model, Removal(blocks=[1, 4]))
    _, options, rebuilt = written_down(model, smaller, "deepvit_16_digits", {**TINY, "reattention": (2, 3)}, [1, 4])
    assert options["reattention"] == [1]
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt.eval()(images()), without(model, [1, 4]))


def test_blocks_whose_place_matters_are_refused():
    model = whole("differential", num_heads=2)
    options = {**TINY, "num_heads": 2}
    with pytest.raises(InputError, match="depends on its place"):
        written_down(model, pruned(model, Removal(blocks=[2])), "differential_16_digits", options, [2])
    last = written_down(model, pruned(model, Removal(blocks=[4])), "differential_16_digits", options, [4])
    assert len(last[2].blocks) == 3
    rich = whole("richvit")
    with pytest.raises(InputError, match="different kinds"):
        written_down(rich, pruned(rich, Removal(blocks=[1])), "richvit_16_digits", TINY, [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": [5]}, "no block 5"),
        ({"blocks": [0]}, "no block 0"),
        ({"blocks": [1, 2, 3, 4]}, "leave one"),
        ({"heads": {1: [4]}}, "no head 4"),
        ({"heads": {1: [1, 2, 3]}}, "leave one, or drop the block"),
        ({"heads": {7: [1]}}, "no block 7"),
    ],
)
def test_what_is_not_there_or_would_leave_nothing_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        pruned(whole("vit"), Removal(**change))


def test_other_architectures_are_refused():
    with pytest.raises(InputError, match="not built like timm's VisionTransformer"):
        pruned(nn.Sequential(nn.Linear(2, 2)), Removal(blocks=[1]))


def test_fewer_heads_than_none_or_more_than_there_are_cannot_be_built():
    for heads in ([3, 3, 3], [-1, 3, 3, 3], [4, 3, 3, 3]):
        with pytest.raises(InputError, match="heads="):
            build_model("pruned_vit", of="vit_16_digits", heads=heads, **TINY)
