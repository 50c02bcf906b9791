"""A forward pass of a model for its proof: V of every layer and, if asked for, products and outputs of blocks."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attnprobe.capturing.call_stack import Call, tokens_in
from attnprobe.capturing.hooks import block_names
from attnprobe.capturing.product import Product
from attnprobe.capturing.tracing import Tracing


@dataclass(slots=True)
class Pass:
    """Values of one forward pass and, if asked for, products and block outputs; by the names of layers and blocks."""

    values: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def observed(model: nn.Module, pixels: Tensor, only: str = "", moving: str = "", whole: bool = False) -> Pass:
    """One forward pass, with V of every layer.

    Args:
        only: the one layer of which V is kept; all if "".
        moving: a parameter that is another one in this pass.
        whole: keep the products, too, and the output of the block around each; they take several times the memory.
    """
    seen = Pass()
    blocks: set[str] = set()

    def keep(product: Product) -> None:
        if product.value is not None and only in ("", product.layer):
            seen.values[product.layer] = product.value.clone()  # often a view of queries, keys and values in one
        if not whole:
            return
        seen.products[product.layer] = _light(product)
        names = {call.name for call in product.calls}
        blocks.add(next((name for name in block_names(product.layer) if name in names), ""))

    def keep_output(call: Call, out: Any) -> None:
        tokens = tokens_in(out, call.given) if call.name in blocks else None
        if tokens is not None and tokens.ndim == 3:
            seen.outputs[call.name] = tokens

    with Tracing(model, keep, on_leave=keep_output, extras={"value"}, allow_missing=True):
        if moving:
            parameter = dict([*model.named_parameters(), *model.named_buffers()])[moving]
            functional_call(model, {moving: parameter + 0.1 * torch.ones_like(parameter).cumsum(-1).sin()}, (pixels,))
        else:
            model(pixels)
    return seen


def _light(product: Product) -> Product:
    """The product without its map's memory: an expanded tensor of the same shape."""
    shape = product.effective.shape
    empty = product.effective.new_empty(()).expand(shape)
    none = dict.fromkeys(("weights", "value", "error_of", "scores", "factors"))
    return replace(product, effective=empty, **none)
