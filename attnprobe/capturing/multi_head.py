"""Q, K, V and the scores of `nn.MultiheadAttention`, which computes all of them in one call."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnprobe.capturing.axes import scaled_factors, scores_of
from attnprobe.capturing.softmax_trails import unseen
from attnprobe.core.outputs import relative_error

Call = Mapping[str, Any]
"""Arguments of `F.multi_head_attention_forward` by name, defaults included."""


def fields_of_multi_head(call: Call, out: Tensor, extras: Collection[str]) -> dict[str, Any]:
    """V, and the fields `extras` of a `Product` that are not hidden; `out` is the result of the call."""
    qkv = factors_of_multi_head(call)
    if qkv is None:
        return {}
    q, k, v = qkv
    found: dict[str, Any] = {"value": v.unsqueeze(1)}
    if "error_of" in extras:
        found["error_of"] = partial(error_of_multi_head, call, v, out)
    if "scores" in extras and call["key_padding_mask"] is None:
        found["scores"] = scores_of(q, k, _mask(call, q)).unsqueeze(1)
    if "factors" in extras and call["key_padding_mask"] is None and call["attn_mask"] is None:
        found["factors"] = tuple(factor.unsqueeze(1) for factor in scaled_factors(q, k))
    return found


def factors_of_multi_head(call: Call) -> tuple[Tensor, Tensor, Tensor] | None:
    """Q, K and V, each [image, head, token, head width]; None where keys are added to those given."""
    if call["bias_k"] is not None or call["add_zero_attn"] or call["static_k"] is not None:
        return None
    width = call["embed_dim_to_check"]
    biases = (None,) * 3 if call["in_proj_bias"] is None else call["in_proj_bias"].split(width)
    weights = [call[f"{name}_proj_weight"] for name in "qkv"]
    if not call["use_separate_proj_weight"]:
        weights = call["in_proj_weight"].split(width)
    factors = []
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        given = call[name] if call[name].ndim == 3 else call[name].unsqueeze(1)  # [token, image, width]
        factors.append(F.linear(given, weight, bias).unflatten(-1, (call["num_heads"], -1)).permute(1, 2, 0, 3))
    q, k, v = factors
    return q, k, v


def _mask(call: Call, q: Tensor) -> Tensor | None:
    """The mask as `scores_of` takes it: there True shows a key, here it hides one."""
    mask = call["attn_mask"]
    if mask is None:
        return None
    mask = ~mask if mask.dtype == torch.bool else mask
    return mask if mask.ndim == 2 else mask.unflatten(0, q.shape[:2])


def error_of_multi_head(call: Call, v: Tensor, out: Tensor, maps: Tensor) -> float:
    """Relative error of maps times V, through the output projection of `nn.MultiheadAttention`, against its result."""
    with unseen():
        y = (maps[:, 0].to(v.dtype) @ v).permute(2, 0, 1, 3).flatten(-2)  # [query, image, width]
        bias = call["out_proj_bias"]  # in the precision of V, which under autocast is less than that of the weights
        y = F.linear(y, call["out_proj_weight"].to(y.dtype), None if bias is None else bias.to(y.dtype))
        return relative_error(y, out if out.ndim == 3 else out.unsqueeze(1))
