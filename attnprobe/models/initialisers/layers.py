"""Weights of queries, keys and values in a transformer, and how they are replaced."""

from typing import Any

from torch import Tensor

from attnprobe.core.errors import InputError


def attention_layers(model: Any) -> list[Any]:
    """The attention layer of every block; raises InputError unless q, k and v are rows of one layer `qkv`."""
    layers = [getattr(block, "attn", None) for block in getattr(model, "blocks", ())]
    for index, layer in enumerate(layers):
        weight = getattr(getattr(layer, "qkv", None), "weight", None)
        shape = None if weight is None else tuple(weight.shape)
        expected = (3 * getattr(layer, "num_heads", 0) * getattr(layer, "head_dim", 0), getattr(model, "embed_dim", 0))
        if shape != expected:
            raise InputError(
                f"structured initialisation writes rows of blocks[i].attn.qkv, of shape {expected}; block {index} of "
                f"{type(model).__name__} has {shape or 'no such layer'}."
            )
    if not layers:
        raise InputError(f"structured initialisation needs a model with blocks; {type(model).__name__} has none.")
    return layers


def write_query_key(layer: Any, q: Tensor, k: Tensor) -> None:
    """Write q [head, width, rank] and k [head, rank, width] into the first two thirds of qkv.

    If the rank is below the head width, the rest of Wq is zero and that of Wk stays as it is: the map is the same, and
    gradients still reach all of Wq.
    """
    rank = q.shape[-1]
    query, key = thirds(layer)[:2]
    query.zero_()
    query[:, :rank] = q.mT.to(query)
    key[:, :rank] = k.to(key)


def write_value_output(layer: Any, value: Tensor, output: Tensor) -> None:
    """Write weights of value and output projection, both [width, width]."""
    thirds(layer)[2].flatten(0, 1).copy_(value)
    layer.proj.weight.copy_(output)


def thirds(layer: Any) -> Tensor:
    """qkv.weight as a view [query key value, head, head width, width]."""
    return layer.qkv.weight.detach().unflatten(0, (3, layer.num_heads, layer.head_dim))
