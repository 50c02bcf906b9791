"""One layer from several products: heads that are modules of a list, heads or query chunks of a loop.

Products that do not depend on one another and belong to one attention module are parts of one map. Two cases are told
by what they share: chunks of the queries multiply the very same V; heads are given the same input, each with one map,
or multiply the same V with a map of all queries each.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attnprobe.capturing.axes import heads_of
from attnprobe.capturing.pieces import Pieces
from attnprobe.capturing.product import Product
from attnprobe.core.errors import CaptureError

HEAD, QUERY, KEY = 2, 3, 4
"""Axes of [image, window, head, query, key]."""


def joined_in_module(products: Sequence[Product], pieces: Pieces) -> list[Product]:
    """The products of one call of one module: as one, if they are its heads or chunks of its queries.

    Args:
        pieces: where their results went.

    Raises:
        CaptureError: they are parts of one map, and which of its rows or heads each one holds cannot be told.
    """
    first = products[0]
    if any(product.by_hand and product.number in pieces.scaled for product in products):
        raise CaptureError(
            f"{first.layer} multiplies V with weights whose rows do not sum to 1, and scales each row of the result "
            "afterwards, so that what multiplies V is no map; normalise them before the product."
        )
    if len(products) < 2 or any(product.depends for product in products):
        return list(products)
    heads = heads_of(first.calls[-1].module)
    same_shape = all(p.effective.shape[:QUERY] == first.effective.shape[:QUERY] for p in products)
    if same_shape and all(same_value(first, product.factor) for product in products):
        if not _of_all_queries(first):
            return [_joined(*_in_order(products, QUERY, pieces), QUERY)]
        if first.effective.shape[HEAD] == heads or any(p.number in pieces.added for p in products):
            whole = replace(_joined(products, None, HEAD), added=True)
            return [whole if whole.weights is whole.effective else replace(whole, error_of=None)]
        return [_joined(*_in_order(products, HEAD, pieces), HEAD)]
    if len(products) == heads and _single_heads(products):
        return [_joined(*_in_order(products, HEAD, pieces), HEAD)]
    return list(products)


def same_value(product: Product, value: Tensor | None) -> bool:
    """True if a product multiplies this V, or a copy of it."""
    factor = product.factor
    if factor is None or value is None or factor.shape != value.shape:
        return False
    same = (factor.data_ptr(), factor.stride()) == (value.data_ptr(), value.stride())
    return same or torch.equal(factor, value)


def _in_order(products: Sequence[Product], axis: int, pieces: Pieces) -> tuple[list[Product], Tensor | None]:
    """Products as their results stand in the layer's output, and the order of the rows that they interleave, if any.

    Raises:
        CaptureError: the place of some cannot be followed, or they overlap.
    """
    places = [pieces.places.get(product.number) for product in products]
    known = [place for place in places if place is not None]
    if len(known) < len(places) or len({place.whole for place in known}) > 1:
        raise _of_unknown_order(products)
    order = sorted(range(len(known)), key=lambda i: known[i].at[0])
    products, lines = [products[i] for i in order], [known[i].at for i in order]
    at = [position for line in lines for position in line]
    if at == sorted(set(at)):
        return products, None
    if len(at) > len(set(at)) or any(len(x) != p.effective.shape[axis] for x, p in zip(lines, products, strict=True)):
        raise _of_unknown_order(products)
    return products, torch.tensor(at, device=products[0].effective.device).argsort()


def _of_unknown_order(products: Sequence[Product]) -> CaptureError:
    return CaptureError(
        f"{products[0].layer} multiplies V in {len(products)} parts, and where the result of each one goes in its "
        "output cannot be followed, so the order of rows or heads is not known; join them by torch.cat, or write each "
        "one to its place by an index."
    )


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
    whole = _joined(products, None, HEAD)
    return [replace(whole, calls=whole.calls[:-1])]


def _single_heads(products: Sequence[Product]) -> bool:
    """True if all are maps of one head and of one shape."""
    shape = products[0].effective.shape
    return len(products) > 1 and shape[HEAD] == 1 and all(p.effective.shape == shape for p in products)


def _joined(products: Sequence[Product], order: Tensor | None, axis: int) -> Product:
    """Several products as one, side by side along the axis of heads or of queries, which is then put in order."""
    first = products[0]
    cat = partial(_cat, axis=axis, order=order)
    effective = cat([p.effective for p in products])
    same = all(p.weights is p.effective for p in products)
    sizes = [p.effective.shape[axis] for p in products]

    def error_of(maps: Tensor) -> float:
        maps = maps if order is None else maps.index_select(axis, order.argsort())
        parts = zip(maps.split(sizes, axis), products, strict=True)
        return max(p.error_of(part) for part, p in parts if p.error_of is not None)

    factors = None
    if all(p.factors is not None for p in products):
        queries, keys = zip(*(p.factors for p in products if p.factors is not None), strict=True)
        factors = (cat(queries), keys[0] if axis == QUERY else cat(keys))
    assert effective is not None, "every product has an effective map"
    return replace(
        first,
        occurrence=min(p.occurrence for p in products),
        weights=effective if same else cat([p.weights for p in products]),
        effective=effective,
        value=first.value if axis == QUERY else cat([p.value for p in products]),
        error_of=error_of if all(p.error_of is not None for p in products) else None,
        scores=cat([p.scores for p in products]),
        factors=factors,
    )


def _cat(tensors: Sequence[Tensor | None], axis: int, order: Tensor | None) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    if len(known) < len(tensors):
        return None
    whole = torch.cat(known, axis)
    return whole if order is None else whole.index_select(axis, order)
