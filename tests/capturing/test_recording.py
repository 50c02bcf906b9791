"""Between two batches, and after the last, the process and the model are as before; the numbers are those of a capture
that nobody disturbs."""

import contextlib
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnprobe.capturing import Recording, capture, certify, record
from attnprobe.capturing.certificate import TOLERANCE
from attnprobe.core.tap import Tap
from attnprobe.models import build_model
from tests.capturing.oracle import no_trace

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "depth": 2, "num_classes": 4}
PIXELS = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0])


class Rotary(nn.Module):
    """A transformer of unknown code, whose layers compute a table of cosines in their first pass and keep it."""

    def __init__(self, width=12, heads=2, depth=2):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList(RotaryBlock(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, pixels):
        x = self.embed(pixels).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class RotaryBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = RotaryAttention(width, heads)

    def forward(self, x):
        return x + self.attn(x)


class RotaryAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.qkv, self.table = heads, nn.Linear(width, 3 * width), None

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.table is None:
            self.table = torch.outer(torch.arange(x.shape[1]).float(), torch.linspace(0.1, 1, q.shape[-1])).cos()
        return F.scaled_dot_product_attention(q * self.table, k * self.table, v).transpose(1, 2).flatten(2)


def hooked():
    """A model read by hooks on switched layers."""
    return build_model("vit_16_digits", seed=0, **TINY).train()


def tapped():
    """One read at its taps."""
    return build_model("talkingheads_16_digits", seed=0, **TINY).train()


def watched():
    """One whose calls to PyTorch are followed."""
    torch.manual_seed(0)
    return Rotary().train()


MODELS = pytest.mark.parametrize("build", [hooked, tapped, watched])


@contextmanager
def nothing_left(*models):
    """Checks that modes of the process, and the models' flags, switches and hooks, are as they were."""

    def process():
        return (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))

    def listening():
        return [m.listening for model in models for m in model.modules() if isinstance(m, Tap)]

    before = process(), listening(), torch._C._len_torch_function_stack()
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(no_trace(model))
        yield
    assert (process(), listening(), torch._C._len_torch_function_stack()) == before


def undisturbed(build, **options):
    """All maps of a capture that nothing comes between, [image, layer, head, query, key]."""
    return values(capture(build(), PIXELS, batch_size=2, **options))


def values(chunks):
    return torch.cat([maps.values for maps in chunks])


def gradients(model):
    """Of a step of training on the images."""
    model.zero_grad()
    F.cross_entropy(model(PIXELS), LABELS).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@MODELS
def test_two_captures_advance_by_turns(build):
    one, other = build(), hooked()
    pairs = []
    with nothing_left(one, other):
        for pair in zip(capture(one, PIXELS, batch_size=2), capture(other, PIXELS, batch_size=2), strict=True):
            with nothing_left(one, other):
                pairs.append(pair)
    for chunks, of in zip(zip(*pairs, strict=True), (build, hooked), strict=True):
        assert torch.equal(values(chunks), undisturbed(of))


@MODELS
def test_two_iterators_of_one_capture_advance_by_turns(build):
    capturing = capture(build(), PIXELS, batch_size=2)
    first, second = zip(*zip(capturing, capturing, strict=True), strict=True)
    assert torch.equal(values(first), undisturbed(build)) and torch.equal(values(second), undisturbed(build))


@MODELS
def test_an_iterator_may_be_kept_or_dropped_and_the_model_called(build):
    model = build()
    before = gradients(model)
    with nothing_left(model):
        kept = iter(capture(model, PIXELS, batch_size=2))
        first = next(kept)
        with nothing_left(model):
            assert all(map(torch.equal, before, gradients(model)))
        rest = list(kept)
        next(iter(capture(model, PIXELS, batch_size=2)))  # dropped
    assert torch.equal(values([first, *rest]), undisturbed(build))
    assert all(map(torch.equal, before, gradients(model)))


@MODELS
def test_the_model_is_trained_between_two_batches(build):
    model, twin = build(), build()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (model, twin)]
    chunks, expected = [], []
    for i, maps in enumerate(capture(model, PIXELS, batch_size=2)):
        chunks.append(maps)
        with nothing_left(model):
            expected.append(next(iter(capture(twin, PIXELS[2 * i : 2 * i + 2], batch_size=2))))
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            gradients(m)
            optimizer.step()
    assert len(chunks) == 3 and torch.equal(values(chunks), values(expected))
    assert not torch.equal(values(chunks)[2:], undisturbed(build)[2:])


@MODELS
def test_attention_computed_by_whoever_iterates_is_not_the_models(build):
    q = torch.randn(2, 2, 5, 4, requires_grad=True)
    chunks = []
    for maps in capture(build(), PIXELS, batch_size=2):
        F.scaled_dot_product_attention(q, q, q).sum().backward()
        chunks.append(maps)
    assert torch.equal(values(chunks), undisturbed(build))


def whole(model):
    model.compile(backend="eager")
    return model


def each_block(model):
    for block in model.blocks:
        block.compile(backend="eager")
    return model


def each_block_wrapped(model):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="eager")
    return model


def forward_replaced(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler asks a tensor inside the model for its own
@MODELS
@pytest.mark.parametrize("compiled", [whole, each_block, each_block_wrapped, forward_replaced])
def test_compiled_models_are_captured_as_they_were_written(build, compiled):
    torch.compiler.reset()
    model = compiled(build())
    model(PIXELS)  # compiled now, and not first inside the capture
    with nothing_left(model):
        capturing = capture(model, PIXELS, batch_size=2, tokens=True)
        chunks = list(capturing)
    plain = capture(build(), PIXELS, batch_size=2, tokens=True)
    assert torch.equal(values(chunks), values(plain))
    assert torch.equal(torch.cat([maps.tokens for maps in chunks]), torch.cat([maps.tokens for maps in plain]))
    assert chunks[0].layers == next(iter(plain)).layers
    assert capturing.certificate == plain.certificate
    assert all(map(torch.equal, gradients(model), gradients(build())))


def test_a_compiled_model_runs_uncompiled_in_a_pass_of_ones_own():
    torch.compiler.reset()
    model = whole(hooked().eval())
    model(PIXELS)
    with torch.no_grad(), record(model) as recorder:
        model(PIXELS)
        (maps,) = recorder.take()
    torch.testing.assert_close(maps.values, undisturbed(hooked))
    assert certify(model, PIXELS[:2]).output_equal


def test_a_table_the_model_keeps_takes_part_in_training_afterwards():
    model = watched()
    list(capture(model, PIXELS))
    assert model.blocks[0].attn.table is not None
    assert all(map(torch.equal, gradients(model), gradients(watched())))


@MODELS
def test_autocast_around_a_capture_changes_nothing(build):
    with torch.autocast("cpu", torch.bfloat16):
        capturing = capture(build(), PIXELS, batch_size=2, values=True)
        chunks = list(capturing)
        assert torch.is_autocast_enabled("cpu")
    plain = list(capture(build(), PIXELS, batch_size=2, values=True))
    assert chunks[0].values.dtype == torch.float32 and torch.equal(values(chunks), values(plain))
    assert torch.equal(chunks[0].value_vectors, plain[0].value_vectors)
    assert torch.equal(chunks[0].outcome.probability, plain[0].outcome.probability)
    assert capturing.certificate.fused_difference < TOLERANCE[torch.float32]


@MODELS
def test_what_fails_in_a_pass_leaves_nothing_behind(build):
    model = build()
    with nothing_left(model), pytest.raises(RuntimeError):
        Recording(model).run(PIXELS[:, :2])


@MODELS
def test_maps_are_taken_after_the_pass(build):
    recording = Recording(build(), tokens=True)
    for part in PIXELS.split(2):
        with nothing_left(recording.model):
            output = recording.run(part)
        (maps,) = recording.recorder.take()
        assert not output.requires_grad and not output.is_inference() and not maps.values.is_inference()
        assert torch.equal(output, recording.model.eval()(part)) or build is not watched
        recording.model.train()


def test_eval_mode_calls_no_methods_that_change_weights():
    class Merging(nn.Linear):
        """As adapters do, it writes into its weights when told to evaluate."""

        def train(self, mode=True):
            if self.training and not mode:
                self.weight.data.mul_(2)
            return super().train(mode)

    model = watched()
    model.head = Merging(12, 4)
    before = model.head.weight.clone()
    list(capture(model, PIXELS))
    assert torch.equal(model.head.weight, before)
