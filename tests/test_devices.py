"""Without a GPU: nothing mixes devices, and nothing waits for the device, where training and capture are fast on one.

`FakeTensorMode` has tensors that claim to be on "cuda", without values: operations that mix devices fail, and so do
those that need a value on the host (`item`, boolean indexing), for which a GPU would have to be waited for. Where
random draws on the CPU are needed, tensors of the device "meta" do the same.
"""

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import attnprobe as ap
import attnprobe.models  # registers the models
from attnprobe.capturing.places import responses
from attnprobe.core.devices import in_float64, numbered
from attnprobe.core.images import InputSpec
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.core.outputs import tensors_of
from attnprobe.metrics import METRICS
from attnprobe.metrics.engine import collect, linear_algebra
from attnprobe.models.variants import VARIANTS
from attnprobe.training import TrainConfig
from attnprobe.training.augment import Augmentation
from attnprobe.training.mix import Mix
from attnprobe.training.objective import classification_loss

BY_DESIGN = {
    "map_overlap_matched": "the Hungarian method runs on the CPU",
    "attention_flow": "maximum flow runs on the CPU",
}
"""Metrics that need values on the host, and why; none of them is cheap anywhere."""

WAITS = {
    "softmax by hand": "rows are compared with 1, which says whether it was a softmax",
    "softmax copied before the product": "it is compared with the softmax, which says whether it was changed",
    "nn.MultiheadAttention of two tensors": "queries and keys are compared, which says whether it is cross-attention",
}
"""Where recording waits for the device, once for each such layer, and why. Everything else waits for nothing."""

SPEC = InputSpec((32, 32))


class Waits(TorchDispatchMode):
    """Counts the operations that need a value on the host."""

    OPERATIONS = ("_local_scalar_dense", "allclose", "equal", "is_nonzero", "nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in self.OPERATIONS
        return function(*args, **(kwargs or {}))


class OneLayer(nn.Module):
    """Self-attention in which a map comes about in one of the ways of `WAITS`, or as usual."""

    def __init__(self, way):
        super().__init__()
        self.way, self.qkv, self.heads = way, nn.Linear(16, 48), 2
        self.multi = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        if self.way.startswith("nn.Multi"):
            return self.multi(x, x.clone(), x, need_weights=False)[0]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / 8**0.5
        if self.way == "softmax by hand":
            power = (scores - scores.amax(-1, keepdim=True)).exp()
            weights = power / power.sum(-1, keepdim=True)
        else:
            weights = scores.softmax(-1)
        weights = weights.clone() if "copied" in self.way else weights
        return (weights @ v).transpose(1, 2).flatten(2)


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 on a device, as MPS does."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (leaf.dtype, leaf.device.type) == (torch.float64, self.device):
                raise TypeError(f"{self.device} has no float64: {function}")
        return made


def on_fake_gpu(model):
    """A model whose parameters and buffers claim to be on a GPU; called where `FakeTensorMode` is in force."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    held[key] = nn.Parameter(fake) if held is module._parameters else fake
    return model


def config(**options):
    return TrainConfig(model="vit_16", dataset="digits", **options)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_a_variants_forward_mixes_no_devices_and_waits_for_none(name, training):
    model = timm.create_model(f"{name}_16_digits", num_classes=10, depth=2).train(training)
    with FakeTensorMode(), torch.no_grad():
        outputs = on_fake_gpu(model)(torch.empty(2, 3, 32, 32, device="cuda"))
        loss = classification_loss(outputs, torch.empty(2, dtype=torch.long, device="cuda"), config())
    assert loss.device.type == "cuda" and loss.shape == ()


def test_refiners_dense_head_and_mixed_tokens_wait_for_no_device():
    model = timm.create_model("refiner_16_digits", num_classes=10, depth=2, dense=True, mix_token=True)
    with torch.no_grad():
        outputs = model.train().to("meta")(torch.empty(2, 3, 32, 32, device="meta"))
        loss = classification_loss(outputs, torch.empty(2, 10, device="meta"), config())
    assert loss.device.type == "meta"


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_mixes_no_devices_and_waits_for_none(name):
    shapes = {"tokens": (2, 3, 17, 8), "value_vectors": (2, 3, 4, 17, 8)}
    with FakeTensorMode():
        more = {what: torch.empty(shape, device="cuda") for what, shape in shapes.items()}
        maps = AttentionMaps(torch.empty(2, 3, 4, 17, 17, device="cuda"), ("a", "b"), TokenGrid(4, 4), **more)
        if name in BY_DESIGN:  # a reason that no longer holds leaves the list
            with pytest.raises((DataDependentOutputException, RuntimeError)):
                METRICS[name].per_image(maps)
        else:
            assert METRICS[name].per_image(maps).device.type == "cuda"


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.7, 1.0)},
        {"scale": (0.7, 1.0), "train_interpolation": "bicubic"},
        {"hflip": 0.5, "vflip": 0.5},
        {"reprob": 0.5},
        {"reprob": 0.5, "remode": "rand", "recount": 3},
        {"reprob": 0.5, "remode": "const"},
    ],
)
def test_augmentation_waits_for_no_device(options):
    assert Augmentation(config(**options), SPEC)(torch.empty(8, 3, 32, 32, device="meta")).device.type == "meta"


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix_minmax": (0.2, 0.8)}])
def test_mixing_waits_for_no_device(mode, options):
    mix = Mix(config(mixup_mode=mode, **options), 10)
    pixels, targets = mix(torch.empty(8, 3, 32, 32, device="meta"), torch.empty(8, dtype=torch.long, device="meta"))
    assert pixels.device.type == targets.device.type == "meta"


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", ["vit_16_digits", "deepvit_16_digits", "richvit_16_digits"])
def test_recording_a_forward_pass_waits_for_no_device(name):
    model = timm.create_model(name, num_classes=10, depth=2).eval()
    with FakeTensorMode(), torch.no_grad():
        on_fake_gpu(model)
        with ap.record(model) as recorder:
            model(torch.empty(2, 3, 32, 32, device="cuda"))
        (maps,) = recorder.take()
        assert maps.values.device.type == "cuda" and maps.values.shape == (2, 2, 6, 17, 17)


@pytest.mark.parametrize("way", ["as usual", *WAITS])
def test_a_traced_layer_is_waited_for_where_that_has_a_reason(way):
    model, x = OneLayer(way).eval(), torch.randn(2, 5, 16)
    with torch.no_grad(), ap.record(model) as recorder, Waits() as waits:
        model(x)
        (maps,) = recorder.take()
    assert maps.values.shape == (2, 1, 2, 5, 5) and waits.count == (way in WAITS)


def test_singular_values_of_a_gpu_are_computed_on_the_cpu(monkeypatch):
    """CUDA decomposes the matrices of a batch one after the other."""
    devices, original = [], torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda x: devices.append(x.device.type) or original(x))
    with FakeTensorMode():
        values = linear_algebra.singular_values(torch.empty(2, 3, 5, 7, device="cuda"))
    assert devices == ["cpu"] and (values.device.type, values.dtype, values.shape) == ("cuda", torch.float64, (2, 3, 5))


def test_a_gpu_with_and_without_its_number_is_one_device():
    with FakeTensorMode():
        assert numbered("cuda") == numbered("cuda:0") == torch.device("cuda", 0)
    assert numbered("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", VARIANTS)
def test_training_a_variant_needs_no_float64(name):
    model = timm.create_model(f"{name}_16_digits", num_classes=10, depth=2).train()
    model.to("meta")
    with WithoutFloat64("meta"):
        outputs = model(torch.empty(2, 3, 32, 32, device="meta"))
        loss = classification_loss(outputs, torch.empty(2, dtype=torch.long, device="meta"), config())
        loss.backward()
    assert loss.device.type == "meta"


@pytest.mark.parametrize("mixed", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix_minmax": (0.2, 0.8)}])
def test_augmentation_and_mixing_need_no_float64_on_the_device(mixed):
    options = config(scale=(0.7, 1.0), train_interpolation="random", hflip=0.5, reprob=0.5, recount=2, **mixed)
    pixels, labels = torch.empty(8, 3, 32, 32, device="meta"), torch.empty(8, dtype=torch.long, device="meta")
    with WithoutFloat64("meta"):
        mixed_pixels, targets = Mix(options, 10)(Augmentation(options, SPEC)(pixels), labels)
    assert mixed_pixels.shape == (8, 3, 32, 32) and mixed_pixels.device.type == targets.device.type == "meta"


@pytest.mark.parametrize("lacking", [True, False])
def test_metrics_are_computed_where_there_is_float64(lacking, monkeypatch):
    """A GPU passes for Apple's, whose tensors PyTorch cannot even fake elsewhere."""
    monkeypatch.setattr(collect, "with_float64", lambda device: torch.device("cpu") if lacking else device)
    with FakeTensorMode():
        maps = AttentionMaps(torch.empty(2, 3, 4, 17, 17, device="cuda"), ("a", "b"), TokenGrid(4, 4))
        places = [piece.values.device.type for piece in collect._pieces(maps)]
    assert places == ["cpu" if lacking else "cuda"]


def test_tests_of_a_capture_leave_a_device_without_float64():
    with FakeTensorMode(), WithoutFloat64("mps"):
        tokens, classes = torch.empty(17, 8, device="mps"), torch.empty(2, dtype=torch.long, device="mps")
        assert responses(*[tokens] * 4).moved.device.type == "cpu"
        assert tensors_of({"classes": classes})[0].device.type == in_float64(tokens).device.type == "cpu"


def test_the_check_finds_what_it_looks_for():
    with FakeTensorMode():
        gpu, cpu = torch.empty(3, device="cuda"), torch.empty(3)
        with pytest.raises(DataDependentOutputException):
            bool((gpu > 0).any())
        with pytest.raises(RuntimeError, match="device"):
            gpu + cpu
    with pytest.raises(RuntimeError):
        torch.empty(3, device="meta").sum().item()
    with pytest.raises(TypeError, match="no float64"), WithoutFloat64("meta"):
        torch.empty(3, device="meta").double()
