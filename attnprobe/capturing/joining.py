"""One layer from several products: heads that are modules of a list, heads or query chunks of a loop.

Products that do not depend on one another and belong to one attention module are parts of one map. Two cases are told
by what they share: chunks of the queries multiply the very same V; heads are given the same input, each with one map,
or multiply the same V with a map of all queries each, or have results that the model joins to one tensor.

Heads that share keys and values may be one product, too, whose rows are the queries of all heads. Which row is which
head's query is told by how the model cuts the rows of the result.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnprobe.capturing.axes import heads_of, tokens_of
from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.pieces import Pieces
from attnprobe.capturing.product import Product
from attnprobe.capturing.softmax_trails import same_storage, tensors
from attnprobe.core.errors import CaptureError

HEAD, QUERY, KEY = 2, 3, 4
"""Axes of [image, window, head, query, key]."""


def joined_in_module(products: Sequence[Product], pieces: Pieces, out: Any = None) -> list[Product]:
    """The products of one call of one module: as one, if they are its heads or chunks of its queries.

    Args:
        pieces: where their results went.
        out: what the module returns.

    Raises:
        CaptureError: they are parts of one map, and which of its rows or heads each one holds cannot be told.
    """
    first = products[0]
    if any(product.by_hand and product.number in pieces.scaled for product in products):
        raise CaptureError(
            f"{first.layer} multiplies V with weights whose rows do not sum to 1, and scales each row of the result "
            "afterwards, so that what multiplies V is no map; normalise them before the product."
        )
    products = [_unfolded(product, pieces, out) for product in products]
    first = products[0]
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
    if _in_one_tensor(products, pieces):
        n_heads = sum(product.effective.shape[HEAD] for product in products)
        stacked = pieces.places[first.number].axis is None
        if _single_heads(products) or n_heads == heads or (heads is None and not stacked):
            return [_joined(*_in_order(products, HEAD, pieces), HEAD)]
    elif _may_be_parts(products, pieces, heads):
        raise _of_unknown_order(products)
    return list(products)


def possibly_folded(product: Product, call: Call | None = None) -> int:
    """The number of heads that the rows of a product may hold: it has so many times as many rows as a module has
    tokens, which are its keys; 1 if it has not.

    Args:
        call: of that module; the layer itself if None.
    """
    n_queries, n_keys = product.effective.shape[-2:]
    given = (call or product.calls[-1]).given
    tokens = () if given is None or n_keys < 2 else tokens_of(given, len(product.effective))
    return n_queries // n_keys if n_keys in tokens and n_queries not in tokens and n_queries % n_keys == 0 else 1


def rows_of_heads(product: Product, call: Call | None = None) -> int:
    """The number of rows of a product, if they may be those of several heads, as `possibly_folded` says; 0 if not."""
    return product.effective.shape[-2] if possibly_folded(product, call) > 1 else 0


def _unfolded(product: Product, pieces: Pieces, out: Any, call: Call | None = None) -> Product:
    """A product whose rows are the queries of several heads, with these as heads.

    Args:
        pieces: how its rows were cut; `out` is what the module of `call` returns.

    Raises:
        CaptureError: whether heads or queries come first in its rows cannot be told.
    """
    n_heads, (n_rows, n_tokens) = possibly_folded(product, call), product.effective.shape[-2:]
    cuts = pieces.cuts.get(product.number, frozenset())
    told = (n_tokens in cuts) != (n_heads in cuts)
    if n_heads == 1 or any(
        n_rows in tokens_of(t, len(t)) for t in tensors(out) if t.ndim == 3 or (not told and t.ndim)
    ):
        return product  # as many tokens as there are rows leave the module
    if not told:
        raise CaptureError(
            f"{product.layer} has {n_rows} queries for {n_tokens} tokens: those of {n_heads} heads that share keys and "
            "values, in one axis; whether heads or tokens come first in it cannot be told. Give queries and heads axes "
            "of their own."
        )
    sizes = (n_heads, n_tokens) if n_tokens in cuts else (n_tokens, n_heads)

    def unfold(rows: Tensor) -> Tensor:
        split = rows.unflatten(QUERY, sizes)
        return (split if n_tokens in cuts else split.transpose(QUERY, KEY)).flatten(HEAD, QUERY)

    def fold(rows: Tensor) -> Tensor:
        split = rows.unflatten(HEAD, (-1, n_heads))
        return (split if n_tokens in cuts else split.transpose(QUERY, KEY)).flatten(QUERY, KEY)

    effective, weights, value, error_of = unfold(product.effective), product.weights, product.value, product.error_of
    return replace(
        product,
        effective=effective,
        weights=effective if weights is product.effective else None if weights is None else unfold(weights),
        value=None if value is None else value.repeat_interleave(n_heads, HEAD),
        error_of=None if error_of is None else lambda maps: error_of(fold(maps)),
        scores=None if product.scores is None else unfold(product.scores),
        factors=None
        if product.factors is None
        else (unfold(product.factors[0]), product.factors[1].repeat_interleave(n_heads, HEAD)),
    )


def _in_one_tensor(products: Sequence[Product], pieces: Pieces) -> bool:
    """True if products of all queries have their results side by side in one tensor, and not as further tokens."""
    places = [pieces.places.get(product.number) for product in products]
    known = [place for place in places if place is not None]
    if len(known) < len(products) or len({place.whole for place in known}) > 1:
        return False
    n_queries = products[0].effective.shape[QUERY]
    at = [position for place in known for position in place.at]
    along = any(place.is_along(n_queries) for place in known)
    return len(at) == len(set(at)) and not along and _alike(products)


def _alike(products: Sequence[Product]) -> bool:
    """True if all have maps of all queries, of the same shape but for the number of heads, and no windows."""
    shapes = {(p.effective.shape[:HEAD], p.effective.shape[QUERY:]) for p in products}
    return len(shapes) == 1 and products[0].effective.shape[1] == 1 and all(map(_of_all_queries, products))


def _may_be_parts(products: Sequence[Product], pieces: Pieces, heads: int | None) -> bool:
    """True if products are as heads or chunks of queries are, but it was not seen how their results are joined.

    Results that are added up, or joined as further tokens, are branches.
    """
    numbers = [product.number for product in products]
    wholes = {pieces.places[n].whole if n in pieces.places else None for n in numbers}
    if all(n in pieces.added for n in numbers) or (len(wholes) == 1 and None not in wholes):
        return False
    if heads != 1 and _single_heads(products) and _alike(products):
        return True
    groups = [[p for p in products if same_value(q, p.factor)] for q in products]
    return all(1 < len(group) < len(products) and not _of_all_queries(group[0]) for group in groups)


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
    in_channels = axis == HEAD and _single_heads(products) and len(at) == len(set(at))
    if at == sorted(set(at)) or in_channels:
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
    if given is None or given.ndim != 3:
        return n_queries == n_keys
    n_images = len(product.effective)
    return n_queries == given.shape[0 if given.shape[1] == n_images != given.shape[0] else 1]


def joined_modules(products: Sequence[Product], pieces: Pieces, out: Any = None) -> list[Product]:
    """The products of modules side by side as one, if they are heads of the module around them.

    They are if the modules are neighbours in a list and were given the same input, or are of one class and their
    outputs are joined to one tensor.

    Args:
        pieces: where the outputs of the modules went.
        out: what the module around them returns; None if it has not ended.

    Raises:
        CaptureError: the rows of one hold several heads, and which holds which cannot be told.
    """
    products = [
        _unfolded(p, pieces, out, p.calls[-2]) if p.number in pieces.cuts or out is not None else p for p in products
    ]
    if len(products) < 2 or not _single_heads(products):
        return list(products)
    calls = [product.calls[-1] for product in products]
    if len({type(call.module) for call in calls}) == 1 and _in_one_tensor(products, pieces):
        whole = _joined(*_in_order(products, HEAD, pieces), HEAD)
    elif all(is_numbered(call) and call.given is calls[0].given for call in calls):
        whole = _joined(products, None, HEAD)
    else:
        return list(products)
    return [replace(whole, calls=whole.calls[:-1])]


def are_beside(first: Call, call: Call, outputs: Pieces) -> bool:
    """True if a module may be a head as another is: it is given the same input, or a part of it, and nothing made of
    that one's output."""
    if first.given is None or call.given is None or call.given in outputs:
        return False
    return call.given is first.given or same_storage(call.given, first.given)


def is_numbered(call: Call) -> bool:
    """True if a module is one of a list."""
    return call.name.rpartition(".")[2].isdigit()


def may_wait(product: Product, around: Call) -> bool:
    """True if a module with this product may be a head of the module around it, or have several in its rows."""
    single = product.effective.shape[1] == product.effective.shape[HEAD] == 1
    return single or is_numbered(product.calls[-1]) or possibly_folded(product, around) > 1


def _single_heads(products: Sequence[Product]) -> bool:
    """True if all are maps of one head and of one shape."""
    shape = products[0].effective.shape
    return len(products) > 1 and shape[HEAD] == 1 and all(p.effective.shape == shape for p in products)


def _joined(products: Sequence[Product], order: Tensor | None, axis: int) -> Product:
    """Several products as one, side by side along the axis of heads or of queries, which is then put in order.

    Heads of several widths have a map, and no V.
    """
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
        queries, keys = cat(queries), keys[0] if axis == QUERY else cat(keys)
        factors = None if queries is None or keys is None else (queries, keys)
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


def _cat(parts: Sequence[Tensor | None], axis: int, order: Tensor | None) -> Tensor | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or any(tensor.shape[axis + 1 :] != known[0].shape[axis + 1 :] for tensor in known):
        return None
    whole = torch.cat(known, axis)
    return whole if order is None else whole.index_select(axis, order)
