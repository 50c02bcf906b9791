"""What every entry of VARIANTS can do, whoever wrote it: learn, be captured, compiled, copied, saved, resized."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3

from attnprobe.capturing import certify, record
from attnprobe.data.digits import digits
from attnprobe.models import VARIANTS, build_model, input_spec

DEPTH = 3
pytestmark = pytest.mark.parametrize("name", VARIANTS)


@functools.cache
def _built(name):
    return build_model(f"{name}_16_digits", num_classes=10, seed=0, depth=DEPTH)


def build(name):
    """A fresh model at three of its blocks; a copy, because some initialisations take a while."""
    return copy.deepcopy(_built(name))


@functools.cache
def handwriting():
    """32 digits as the models want them: [32, 3, 32, 32] and their labels."""
    batch = next(iter(digits(split="train", spec=input_spec(_built("vit")), limit=32).batches(32, device="cpu")))
    return batch.pixels, batch.labels


def gradients(model, pixels, labels):
    model.zero_grad()
    F.cross_entropy(model(pixels), labels).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_twenty_steps_lower_the_loss(name):
    torch.manual_seed(0)
    model, (pixels, labels) = build(name).train(), handwriting()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(21):
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses


def test_every_parameter_is_used(name):
    assert [n for n, grad in gradients(build(name).train(), *handwriting()).items() if grad is None] == []


def test_capture_sees_the_sites_the_variant_declares(name):
    model, pixels = build(name).eval(), handwriting()[0][:2]
    with torch.no_grad(), record(model, ("weights", "effective")) as recorder:
        model(pixels)
        taken = recorder.take()
    assert tuple(maps.site for maps in taken) == VARIANTS[name].sites
    assert len(taken[0].layers) == DEPTH
    assert certify(model, pixels).output_equal


def test_compiles_as_one_graph(name):
    torch.compiler.reset()
    model, (pixels, labels) = build(name).train(), handwriting()
    other = copy.deepcopy(model)
    F.cross_entropy(torch.compile(model, backend="eager", fullgraph=True)(pixels), labels).backward()
    for n, expected in gradients(other, pixels, labels).items():
        torch.testing.assert_close(model.get_parameter(n).grad, expected)


@pytest.mark.slow
def test_compiles_to_machine_code(name):
    torch.compiler.reset()
    model, (pixels, labels) = build(name).double().train(), handwriting()
    pixels, other = pixels.double(), copy.deepcopy(model)
    F.cross_entropy(torch.compile(model, fullgraph=True)(pixels), labels).backward()
    for n, expected in gradients(other, pixels, labels).items():
        torch.testing.assert_close(model.get_parameter(n).grad, expected, rtol=1e-8, atol=1e-10)


def test_bfloat16_autocast_is_close_to_float32(name):
    model, (pixels, labels) = build(name).train(), handwriting()
    exact = F.cross_entropy(model(pixels), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(pixels), labels)
    model.zero_grad()
    loss.backward()
    assert abs(loss.item() - exact.item()) < 0.02 * exact.item()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_close_to_float32(name, dtype):
    model, (pixels, labels) = build(name).eval(), handwriting()
    with torch.no_grad():
        exact = F.cross_entropy(model(pixels), labels)
        logits = model.to(dtype)(pixels.to(dtype))
    assert logits.dtype == dtype
    assert abs(F.cross_entropy(logits.float(), labels).item() - exact.item()) < 0.02 * exact.item()


def test_state_survives_the_round_trip(name):
    model, other = build(name).eval(), build_model(f"{name}_16_digits", num_classes=10, seed=1, depth=DEPTH).eval()
    pixels = handwriting()[0][:2]
    other.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(model(pixels), other(pixels))


def test_a_copy_is_equal_and_independent(name):
    model, pixels = build(name).eval(), handwriting()[0][:2]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(pixels)
        assert torch.equal(twin(pixels), before)
        for parameter in twin.parameters():
            parameter.add_(1)
        assert torch.equal(model(pixels), before)


def test_the_moving_average_of_constant_weights_is_the_model(name):
    """Buffers are averaged, too: of batch norms, and the singular vectors of sigmareparam, which still turn."""
    model, pixels = build(name).train(), handwriting()[0]
    average = ModelEmaV3(model, decay=0.9)
    with torch.no_grad():
        for _ in range(400):
            model(pixels[:4])
            average.update(model)
        model.eval()
        weights = dict(model.named_parameters())
        for n, parameter in average.module.named_parameters():
            torch.testing.assert_close(parameter, weights[n], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(average.module(pixels[:4]), model(pixels[:4]), rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(name):
    model, (pixels, labels) = build(name).double().train(), handwriting()
    pixels, other = pixels[:8].double(), copy.deepcopy(model)
    other.set_grad_checkpointing()
    expected = gradients(model, pixels, labels[:8])
    for n, grad in gradients(other, pixels, labels[:8]).items():
        torch.testing.assert_close(grad, expected[n])


def test_stochastic_depth_acts_in_training_only(name):
    dropping = build_model(f"{name}_16_digits", num_classes=10, depth=DEPTH, drop_path_rate=0.5)
    model, pixels = build(name), handwriting()[0]
    dropping.load_state_dict(model.state_dict(), strict=True)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(dropping.train()(pixels), dropping(pixels))
        dropping.load_state_dict(model.state_dict(), strict=True)  # batch norms have moved
        assert torch.equal(dropping.eval()(pixels), model.eval()(pixels))


def test_takes_other_sizes_channels_and_no_head(name):
    model = build_model(f"{name}_16_digits", num_classes=0, in_chans=1, depth=DEPTH, dynamic_img_size=True).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 32, 32)).shape == (2, 96)
        assert model(torch.randn(2, 1, 48, 32)).shape == (2, 96)


def test_register_tokens_work_everywhere(name):
    model = build_model(f"{name}_16_digits", num_classes=10, depth=DEPTH, reg_tokens=2).eval()
    pixels = handwriting()[0][:2]
    with torch.no_grad(), record(model) as recorder:
        assert model(pixels).shape == (2, 10)
        maps = recorder.take()[-1]
    assert maps.grid.prefix[-2:] == ("reg0", "reg1") and maps.grid.n_tokens == maps.values.shape[-1]


def test_builds_without_memory_at_full_size(name):
    with torch.device("meta"):
        model = build_model(f"{name}_16")
        shape = model(torch.empty(2, 3, 224, 224)).shape
    assert shape == (2, 1000) and all(p.is_meta for p in model.parameters())
