"""One layer from several products: heads that are modules of a list, heads or query chunks of a loop.

Products that do not depend on one another and belong to one attention module are parts of one map. Two cases are told
by what they share: chunks of the queries multiply the very same V; heads are given the same input, each with one map,
or multiply the same V with a map of all queries each.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnprobe.capturing.axes import heads_of
from attnprobe.capturing.product import Product
from attnprobe.core.errors import CaptureError

HEAD, QUERY, KEY = 2, 3, 4
"""Axes of [image, window, head, query, key]."""


def joined_in_module(products: Sequence[Product]) -> list[Product]:
    """The products of one call of one module: as one, if they are its heads or chunks of its queries."""
    first = products[0]
    if any(product.depends for product in products):
        return list(products)
    same_value = first.value_id is not None and all(p.value_id == first.value_id for p in products)
    same_shape = all(p.effective.shape[:QUERY] == first.effective.shape[:QUERY] for p in products)
    if len(products) > 1 and same_value and same_shape:
        return [_joined(products, HEAD if _of_all_queries(first) else QUERY)]
    if len(products) == heads_of(first.calls[-1].module) and _single_heads(products):
        return [_joined(products, HEAD)]
    return list(products)


def refuse_parts_of_keys(products: Sequence[Product]) -> None:
    """Raise CaptureError if the products of one call of one module are of all its queries, and of parts of its keys."""
    first = products[0]
    given, n_keys = first.calls[-1].given, sum(product.effective.shape[KEY] for product in products)
    same_queries = all(product.effective.shape[:KEY] == first.effective.shape[:KEY] for product in products)
    of_tokens = given is not None and given.ndim == 3 and n_keys == given.shape[1] and _of_all_queries(first)
    if len(products) > 1 and of_tokens and same_queries and not any(product.depends for product in products):
        raise CaptureError(
            f"{first.layer} attends to its {n_keys} keys in {len(products)} parts, each scaled apart, so no map of "
            "all of them is ever there (an online softmax); capture it with attention of all keys at once."
        )


def _of_all_queries(product: Product) -> bool:
    """True if a product has a query for each token of its module's input, so that another one is no further chunk."""
    given, (n_queries, n_keys) = product.calls[-1].given, product.effective.shape[-2:]
    return n_queries == (given.shape[1] if given is not None and given.ndim == 3 else n_keys)


def joined_modules(products: Sequence[Product]) -> list[Product]:
    """The products of neighbouring modules of a list that were given the same input: heads of the module around it."""
    if len(products) < 2 or not _single_heads(products):
        return list(products)
    whole = _joined(products, HEAD)
    return [replace(whole, calls=whole.calls[:-1])]


def _single_heads(products: Sequence[Product]) -> bool:
    """True if all are maps of one head and of one shape."""
    shape = products[0].effective.shape
    return len(products) > 1 and shape[HEAD] == 1 and all(p.effective.shape == shape for p in products)


def _joined(products: Sequence[Product], axis: int) -> Product:
    """Several products as one, side by side along the axis of heads or of queries."""
    first = products[0]
    effective = torch.cat([p.effective for p in products], axis)
    same = all(p.weights is p.effective for p in products)
    weights = effective if same else _cat([p.weights for p in products], axis)
    sizes = [p.effective.shape[axis] for p in products]

    def error_of(maps: Tensor) -> float:
        parts = zip(maps.split(sizes, axis), products, strict=True)
        return max(p.error_of(part) for part, p in parts if p.error_of is not None)

    factors = None
    if all(p.factors is not None for p in products):
        queries, keys = zip(*(p.factors for p in products if p.factors is not None), strict=True)
        factors = (torch.cat(queries, axis), keys[0] if axis == QUERY else torch.cat(keys, axis))
    return replace(
        first,
        weights=weights,
        effective=effective,
        value=first.value if axis == QUERY else _cat([p.value for p in products], axis),
        error_of=error_of if all(p.error_of is not None for p in products) else None,
        scores=_cat([p.scores for p in products], axis),
        factors=factors,
    )


def _cat(tensors: Sequence[Tensor | None], axis: int) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known, axis) if len(known) == len(tensors) else None
