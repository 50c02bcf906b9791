"""Is what we captured what the model computed?

Question: trust the hooks, or prove them? Choice: prove them once per capture on the first images, per layer:
the rows of the softmax sum to 1, A times V is what the layer passes on, and the model's output is what it
is without us. A fused kernel that a hook missed, or a changed layer, fails here and not in a figure.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.capture.layers import AttentionLayer, find_layers, unfused, unwrap
from attnprobe.capture.recorder import record
from attnprobe.core.errors import CaptureError
from attnprobe.core.maps import AttentionMaps

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Largest allowed deviation, relative to the largest value compared; a wrong matrix is off by 0.1 and more."""


@dataclass(frozen=True, slots=True)
class LayerProof:
    """What was checked on one layer.

    Attributes:
        layer, route: which layer, read how.
        row_sum_error: largest |row sum - 1| of its softmax.
        value_error: largest |A V - what the layer computed| relative to the largest value; None if the layer
            has no `qkv` and `proj` to check against.
    """

    layer: str
    route: str
    row_sum_error: float
    value_error: float | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof that goes into the file and the report.

    Attributes:
        layers: one `LayerProof` each.
        output_equal: the model's output with hooks equals the output without, bit for bit.
        fused_difference: largest |output of the explicit softmax - output as the user runs it|, relative.
        n_images: how many images it was checked on.
    """

    layers: tuple[LayerProof, ...]
    output_equal: bool
    fused_difference: float
    n_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def certify(model: nn.Module, pixels: Tensor) -> Certificate:
    """Run the checks on `pixels` ([image, 3, row, col], two images are enough).

    Raises:
        CaptureError: what would be captured is not what the model computes; names the layer.
    """
    inner = unwrap(model)
    layers = find_layers(inner)
    with torch.inference_mode():
        as_run = _logits(inner(pixels))
        with unfused(layers):
            unhooked = _logits(inner(pixels))
        with record(inner, sites=("weights", "effective")) as recorder, _values_of(layers) as flows:
            hooked = _logits(inner(pixels))
            taken = recorder.take()
    scale = unhooked.abs().max().clamp_min(1e-12)
    tolerance = TOLERANCE[taken[0].values.dtype]
    output_error = ((hooked - unhooked).abs().max() / scale).item()
    fused_difference = ((as_run - unhooked).abs().max() / scale).item()
    for told, error in (("with hooks", output_error), ("with an explicit softmax", fused_difference)):
        if not error <= tolerance:
            raise CaptureError(
                f"the model's output {told} is off by {error:.1e} of its size (allowed {tolerance:.0e}); "
                "is the model in eval mode, and deterministic?"
            )
    proofs = tuple(_prove(layer, i, taken, flows.get(layer.name), tolerance) for i, layer in enumerate(layers))
    return Certificate(proofs, bool(torch.equal(hooked, unhooked)), fused_difference, len(pixels))


def _prove(
    layer: AttentionLayer, index: int, taken: list[AttentionMaps], flow: dict[str, Tensor] | None, tolerance: float
) -> LayerProof:
    weights, effective = taken[0].values[:, index], taken[-1].values[:, index]
    row_sum_error = (weights.float().sum(-1) - 1).abs().max().item()
    if not row_sum_error <= max(tolerance, 1e-3):
        raise CaptureError(
            f"{layer.name}: rows of its softmax sum to 1 only within {row_sum_error:.1e}; this layer is not a softmax."
        )
    value_error = None
    if flow and flow.keys() == {"qkv", "out"}:
        heads, tokens = effective.shape[1], effective.shape[-1]
        v = flow["qkv"][..., -flow["out"].shape[-1] :]  # V comes last, or alone where the map is another layer's
        v = v.unflatten(-1, (heads, -1)).transpose(1, 2)  # [image, head, token, width]
        ours = (effective.to(v.dtype) @ v).transpose(1, 2).reshape(len(v), tokens, -1)
        value_error = ((ours - flow["out"]).abs().max() / flow["out"].abs().max().clamp_min(1e-12)).item()
        if not value_error <= tolerance:
            raise CaptureError(
                f"{layer.name}: the captured map times V is off by {value_error:.1e} from what the layer computed "
                f"(allowed {tolerance:.0e}); its attention is not the captured matrix."
            )
    return LayerProof(layer.name, layer.route, row_sum_error, value_error)


@contextmanager
def _values_of(layers: list[AttentionLayer]) -> Iterator[dict[str, dict[str, Tensor]]]:
    """What goes into and comes out of A V in each layer that has timm's names for them."""
    flows: dict[str, dict[str, Tensor]] = {}
    with ExitStack() as stack:
        for layer in layers:
            qkv, proj = getattr(layer.module, "qkv", None), getattr(layer.module, "proj", None)
            norm = getattr(layer.module, "norm", None)
            before = proj if norm is None or isinstance(norm, nn.Identity) else norm
            gated = getattr(layer.module, "gate", None) is not None
            if qkv is None or proj is None or before is None or gated:
                continue
            flow = flows.setdefault(layer.name, {})
            hooks = (
                qkv.register_forward_hook(lambda _m, _args, out, flow=flow: flow.update(qkv=out)),
                before.register_forward_pre_hook(lambda _m, args, flow=flow: flow.update(out=args[0])),
            )
            for hook in hooks:
                stack.callback(hook.remove)
        yield flows


def _logits(output: Tensor | tuple | dict) -> Tensor:
    """The first tensor of whatever a model returns."""
    if isinstance(output, dict):
        output = tuple(output.values())
    return output if isinstance(output, Tensor) else _logits(output[0])
