"""Functional tracing: the effective attention of layers of unknown code, found by following their calls to PyTorch.

Every call a model makes to PyTorch passes a `TorchFunctionMode`. A softmax begins a trail; what is computed from it
(dropout, mixing of heads, normalisation, other shapes) is on the trail, too; and where something on the trail is
multiplied with something of the image along the axis the softmax ran over, that is the product with V, and the factor
on the trail is the effective map. Fused calls hide both, so their softmax is computed once more, from their own q and
k. Nothing the model computes is changed: its results are those of an untraced run, bit for bit.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attnprobe.capturing import joining
from attnprobe.capturing.axes import (
    Factors,
    Layout,
    error_of_product,
    flex_scores_of,
    of_einsum,
    of_matmul,
    scaled_factors,
    scores_of,
    softmax_of,
)
from attnprobe.capturing.call_stack import Call, CallStack, is_attention
from attnprobe.capturing.layouts import (
    folded_of_three,
    is_context,
    known_of,
    layout_of,
    of_all_heads,
    refuse_another_form,
    refuse_factorised,
    refuse_linear,
)
from attnprobe.capturing.multi_head import fields_of_multi_head
from attnprobe.capturing.pieces import Pieces
from attnprobe.capturing.product import Product
from attnprobe.capturing.siblings import Ran
from attnprobe.capturing.softmax_trails import (
    GATES,
    MATRIX_PRODUCTS,
    SOFTMAXES,
    WRITES,
    Trail,
    Trails,
    same_storage,
    tensors,
    unseen,
)
from attnprobe.capturing.towers import is_stem, tower_of
from attnprobe.core.errors import CaptureError


class Tracing(TorchFunctionMode):
    """Reports every product of an attention map with V that a model computes, while this mode is entered.

    Args:
        on_product: called with every product of a map with V.
        on_enter, on_leave: called for every module that begins and ends.
        extras: the optional fields of `Product` to fill, some of "value", "error_of", "scores" and "factors".
        allow_missing: pass over linear attention, which has no map.
    """

    def __init__(
        self,
        model: nn.Module,
        on_product: Callable[[Product], None],
        *,
        on_enter: Callable[[Call], None] = lambda call: None,
        on_leave: Callable[[Call, Any], None] = lambda call, out: None,
        extras: Collection[str] = (),
        allow_missing: bool = False,
    ) -> None:
        super().__init__()
        self.calls = CallStack(model)
        self._fixed = (*model.parameters(), *model.buffers())
        self.n_images = 0
        self._on_product, self._on_enter, self._on_leave = on_product, on_enter, on_leave
        self._extras, self._allow_missing = frozenset(extras), allow_missing
        self._trails = Trails()
        self._made, self._n_products = Pieces(), 0  # of the products of the call that is running; of all of a run
        self._outputs = Pieces()  # of modules that may be heads of the one around them, by the number of their product
        self._refused: CaptureError | None = None
        self._depends = False
        self._result: Tensor | None = None
        self._occurrences: dict[str, int] = {}
        self._stems: Counter[int] = Counter()
        self.silent: dict[str, tuple[nn.Module, str]] = {}
        self.ran = Ran()

    def __enter__(self) -> Self:
        self._trails = Trails(self._fixed)  # their memory may be another since the last pass
        self.calls.attach(self._enter, self._leave)
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self.calls.detach()
        self._trails = Trails()

    def new_pass(self) -> None:
        """Forget the last forward pass."""
        self.n_images = 0
        self._occurrences.clear()
        self._stems.clear()
        self.silent.clear()
        self.ran = Ran()
        self._made.clear()  # an error, as of memory, may have ended the last pass in the middle of a layer
        self._outputs.clear()
        self._refused = None

    def _raise_refused(self) -> None:
        """Raise CaptureError if a module that has ended was refused."""
        if self._refused is not None:
            error, self._refused = self._refused, None
            raise error

    def _enter(self, call: Call) -> None:
        if not self.n_images and call.given is not None:
            self.n_images = call.given.shape[0]
        call.earlier = self._trails.n_softmaxes
        self._on_enter(call)

    def _leave(self, call: Call, out: Any) -> None:
        if self.calls.running:
            self.calls.running[-1].products += call.products
        if not call.products and is_attention(call.module):
            self.silent[call.name] = (call.module, call.last_use)
        self.ran.note(call.name, call.module, out)
        if call.unread and not call.products:
            self.ran.unread[call.name] = call.last_use or call.unread
        self._hand_on(call, out)  # before the end of the block is reported, whose output belongs to these layers
        if not self.calls.running and sys.exc_info()[0] is None:  # else another error ends the pass
            self._raise_refused()
        self._on_leave(call, out)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # an exported program calls `softmax.int`
        if name != "__get__":  # an attribute, which hooks read, too
            self._raise_refused()
        if name == "scaled_dot_product_attention":
            return self._fused(func, args, kwargs)
        if name == "flex_attention":
            return self._flex(func, args, kwargs)
        if name == "multi_head_attention_forward":
            return self._multi_head(func, args, kwargs)
        found = self._trails.among((args, kwargs)) if self._trails else []
        # Before the call: afterwards an in-place function (dropout_, masked_fill_) has overwritten the softmax itself.
        if (
            (found or ("scores" in self._extras and self._trails))
            and WRITES.match(name)
            and isinstance(args[0], Tensor)
        ):
            self._trails.before_write(args[0])
        result = func(*args, **kwargs)
        if name.startswith("conv") and self.calls.running and is_stem(args, self.calls.running[0]):
            self._stems[id(args[1])] += 1
        for pieces in filter(None, (self._made, self._outputs)):
            pieces.follow(name, args, kwargs, result)
        # A product ends a trail, so it is looked for before following: otherwise the output of this layer could pass
        # for a map in a product of the next one.
        if name in SOFTMAXES:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if self.calls.running:
                self.calls.running[-1].last_use = name
                self.calls.running[-1].unread = name if result.ndim > 2 else self.calls.running[-1].unread
            logits = (args[0] if args else kwargs["input"]) if "scores" in self._extras else None
            self._trails.begin(result, axis, logits)
        elif found and not self._is_product(name, args, kwargs, result):
            self._trails.follow(found, (args, kwargs), result)
            if self.calls.running and self.calls.running[-1].last_use and isinstance(result, Tensor):
                self.calls.running[-1].last_use = name
        elif not found:
            if (name in MATRIX_PRODUCTS or name == "einsum") and self._trails.of_activations(args):
                refuse_factorised(args, self._result, self._made, self.calls.running, self._allow_missing)
            is_product = (name in MATRIX_PRODUCTS or name == "einsum") and self._trails.of_activations(args)
            if is_product and self.calls.running:
                self.calls.running[-1].unread = name
            self._trails.note_logits(name, args, result, is_product)
            if name in GATES and self._trails.are_logits(args):
                self._trails.begin(result, -1, args[0] if "scores" in self._extras else None, by_hand=True)
        return result

    def _is_product(self, name: str, args: Any, kwargs: Any, result: Any) -> bool:
        """True if this call was a product of a map and V, which is then reported."""
        if name not in MATRIX_PRODUCTS and name != "einsum":
            return False
        operands = list(tensors((args, kwargs)))
        if name == "baddbmm":
            operands = operands[1:]  # what it is added to is checked with the product
        if name == "einsum" and len(operands) == 3:
            args, operands = folded_of_three(args, operands, self._trails)
        if len(operands) != 2 or not isinstance(result, Tensor):
            return False
        if name == "__rmatmul__":
            operands.reverse()
        if self.calls.running and self._trails.are_maps(operands, self.calls.running[-1].earlier):
            self._trails.begin_product(result)
            return True
        # A map times a parameter mixes heads or keys and goes on being a map; V is made of the image.
        candidates = [
            (self._trails.get(t), i) for i, t in enumerate(operands) if not self._trails.is_fixed(operands[1 - i])
        ]
        # Where both operands come from softmaxes, the later one is the map of this layer.
        for trail, i in sorted(((t, i) for t, i in candidates if t is not None), key=lambda pair: -pair[0].number):
            with unseen():
                if name == "einsum":
                    equation = next((x for x in args if isinstance(x, str)), "")
                    known = known_of(self.calls.running, self.n_images)
                    factors = of_einsum(equation, operands[i], operands[1 - i], result, i == 0, known)
                elif min(operands[0].ndim, operands[1].ndim) < 2:
                    factors = None
                else:
                    factors = of_matmul(operands[0], operands[1], result, map_is_left=i == 0)
                if factors is not None and (factors.map.shape[-1] == trail.n_keys or trail.is_cut(factors.map)):
                    if is_context(operands[1 - i], self._result, self._made, self.calls.running):
                        refuse_linear(self.calls.running[-1], self._allow_missing)
                        return False
                    self._depends = any(operand in self._made for operand in operands)
                    self._emit_product(factors, trail)
                    self._begin(result)
                    self._result = factors.result
                    return True
        return False

    def _emit_product(self, factors: Factors, trail: Trail) -> None:
        layer = self.calls.running[-1] if self.calls.running else None
        if layer is None:
            return
        if trail.number in layer.softmaxes:
            refuse_another_form(factors, layer, self.n_images)
            return  # a second use of one map, as for the values of relative positions
        layer.softmaxes.add(trail.number)
        factors = of_all_heads(factors)
        layout = layout_of(layer, factors.map, factors.value, self.n_images)
        effective = layout.unfold(factors.map)
        weights: Tensor | None = effective
        if trail.several or trail.n_keys != factors.map.shape[-1]:
            weights = None
        elif trail.by_hand:
            sums = factors.map.sum(-1)
            weights = effective if torch.allclose(sums, torch.ones_like(sums), atol=1e-3) else None
        elif trail.weights is not None:
            softmax = trail.weights.movedim(trail.axis, -1)
            if not (same_storage(softmax, factors.map) and softmax.numel() == factors.map.numel()):
                weights = layout.unfold(softmax) if softmax.numel() == effective.numel() else None
                if weights is not None and weights.shape != effective.shape:
                    weights = None
                elif weights is not None and torch.equal(weights, effective):
                    weights = effective
        scores = None
        if trail.scores is not None and weights is not None:
            scores = layout.unfold(trail.scores.movedim(trail.axis, -1))
        by_hand = trail.by_hand and weights is None
        self._emit(factors, layout, by_hand=by_hand, weights=weights, effective=effective, scores=scores)

    def _fused(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)  # the model's own, before anything of ours: it goes on exactly as without us
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k, v = given["query"], given["key"], given["value"]
        with unseen():
            mask, causal, scale = given.get("attn_mask"), given.get("is_causal", False), given.get("scale")
            found: dict[str, Any] = {}
            if "factors" in self._extras and mask is None and not causal and q.shape[:-2] == k.shape[:-2]:
                found["factors"] = scaled_factors(q, k, scale)
            self._emit_softmax(scores_of(q, k, mask, is_causal=causal, scale=scale), (q, k, v), result, **found)
        return result

    def _flex(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        names = ("q", "k", "value", "score_mod", "block_mask", "scale", "options", "score_buffers", "mask_buffers")
        given = dict(zip(names, args, strict=False)) | kwargs
        with unseen():
            buffers = (given.get("score_buffers", ()), given.get("mask_buffers", ()))
            q, k, v = given["q"], given["k"], given["value"]
            functions = (given["score_mod"], given["block_mask"][-1])
            self._emit_softmax(flex_scores_of(q, k, *functions, given["scale"], buffers), (q, k, v), result[0])
        return result

    def _emit_softmax(
        self, scores: Tensor, operands: tuple[Tensor, Tensor, Tensor], result: Tensor, **found: Any
    ) -> None:
        """Report a fused product from its scores and its queries, keys and values."""
        value = operands[2]
        if value.ndim > 2 and value.shape[-3] != operands[0].shape[-3]:
            value = value.repeat_interleave(operands[0].shape[-3] // value.shape[-3], -3)
        weights = softmax_of(scores)
        layout = layout_of(self._layer(), weights, value, self.n_images)
        maps = layout.unfold(weights)
        if "scores" in self._extras:
            found["scores"] = layout.unfold(scores)
        if "factors" in found:
            found["factors"] = tuple(map(layout.unfold, found["factors"]))
        del scores  # as large as the maps: not held while those are copied
        self._depends = any(operand in self._made for operand in operands)
        self._emit(Factors(weights, value, result), layout, weights=maps, effective=maps, **found)
        self._begin(result)

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
        given.apply_defaults()
        call = given.arguments
        call.update(need_weights=True, average_attn_weights=False)
        with unseen():
            _, weights = F.multi_head_attention_forward(*given.args, **given.kwargs)
            assert weights is not None, "need_weights was set"
            maps = weights.reshape(-1, 1, *weights.shape[-3:])  # one image may come without an axis of its own
            shape = (maps.shape[-1], call["embed_dim_to_check"] // call["num_heads"])
            found: dict[str, Any] = {"weights": maps, "effective": maps, "value": None, "error_of": None}
            if self._extras:
                found |= fields_of_multi_head(call, result[0], self._extras)
            query, key = call["query"], call["key"]
            crosses = not same_storage(query, key) and (query.shape != key.shape or not torch.equal(query, key))
            self._report("mha", **found, value_shape=shape, is_cross=crosses)
        return result

    def _layer(self) -> Call:
        if not self.calls.running:
            raise CaptureError("attention was computed outside of every module of the model that is traced.")
        return self.calls.running[-1]

    def _emit(self, of: Factors, layout: Layout, **found: Any) -> None:
        value, error_of = None, None
        if self._extras & {"value", "error_of"}:
            value = layout.unfold(of.value.expand(*of.map.shape[:-2], -1, -1))
            if "error_of" in self._extras:
                error_of = partial(error_of_product, value, layout.unfold(of.result))
        shape = (of.value.shape[-2], of.value.shape[-1])
        found |= {"value_shape": shape, "value": value, "error_of": error_of, "factor": of.value}
        self._report("functional", **found)

    def _report(self, route: Literal["functional", "mha"], **found: Any) -> None:
        layer = self._layer()
        occurrence = self._occurrences.get(layer.name, 0)
        self._occurrences[layer.name] = occurrence + 1
        layer.products += 1
        self._n_products += 1
        calls = tuple(self.calls.running)
        tower = tower_of(layer.name, calls, max(self._stems.values(), default=0))
        number = {"number": self._n_products, "depends": self._depends, "tower": tower}
        layer.found.append(Product(calls, occurrence, route, **found, **number))
        joining.refuse_parts_of_keys(layer.found)

    def _begin(self, result: Tensor) -> None:
        """Follow the result of the product that was reported last."""
        found = self.calls.running[-1].found[-1:] if self.calls.running else []
        self._made.begin(result, self._n_products, sum(map(joining.rows_of_heads, found)))

    def _hand_on(self, call: Call, out: Any) -> None:
        """Report what a module that ends has computed; what may be a head waits for its neighbours."""
        if call.waiting:
            self._flush(call, out)
        try:
            products = joining.joined_in_module(call.found, self._made, out) if call.found else []
        except CaptureError as error:  # a hook that raises lets the others of the module raise as well, with a warning
            self._refused, products = error, []
        if products:
            self._made.clear()
            self._result = None
        around = self.calls.running[-1] if self.calls.running and len(products) == 1 else None
        if around is not None and joining.may_wait(products[0], around):
            if around.waiting and not joining.are_beside(around.waiting[0].calls[-1], call, self._outputs):
                self._flush()
            around.waiting += products
            for output in list(tensors(out))[:1]:
                self._outputs.begin(output, products[0].number, joining.rows_of_heads(products[0], around))
        elif products:
            self._flush()
            self._report_all(products)
        call.found = []

    def _flush(self, ended: Call | None = None, out: Any = None) -> None:
        """Report the heads that wait in the modules that are running, and in one that has just ended, with its output;
        the outermost first."""
        for call in (*self.calls.running, *([] if ended is None else [ended])):
            waiting, call.waiting = call.waiting, []
            try:
                self._report_all(joining.joined_modules(waiting, self._outputs, out if call is ended else None))
            except CaptureError as error:
                self._refused = self._refused or error
        self._outputs.clear()

    def _report_all(self, products: Sequence[Product]) -> None:
        for product in products:
            self._on_product(replace(product, factor=None))
