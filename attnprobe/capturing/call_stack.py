"""The modules of a model that are running, followed by hooks."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attnprobe.capturing.softmax_trails import tensors
from attnprobe.core.errors import CaptureError

ATTENTION = re.compile("attention|attn", re.IGNORECASE)
QUERY = re.compile(r"^(to_|in_|c_)?(q|k|v|kv|qk|qkv|query|key|value|in)(_?(proj|projection|linear|lin|conv|weight))?$")


@dataclass(slots=True)
class Call:
    """One running module.

    Attributes:
        name: dotted.
        given: the first tensor among its inputs; `version`: how often it had been changed in place by then.
        products, softmaxes: how many products with V it computed, and the numbers of the softmaxes in them.
        earlier: how many softmaxes there were before it.
        found: its products that are not reported yet; `waiting`: those of heads in it, until all are there.
        last_use: name of the function that last took something made of a softmax, and was no product.
        times: how often it has run in this pass, this run included.
        unread: name of the last softmax, or product of two activations, that was no product with V.
    """

    name: str
    module: nn.Module
    given: Tensor | None
    version: int = 0
    products: int = 0
    softmaxes: set[int] = field(default_factory=set)
    earlier: int = 0
    found: list[Any] = field(default_factory=list)
    waiting: list[Any] = field(default_factory=list)
    last_use: str = ""
    unread: str = ""
    times: int = 1


class CallStack:
    """The modules of a model that are running, outermost first; they are followed while hooks are attached.

    Args:
        model: its modules are followed; those of torch.nn without children are left out, they are never attention.

    Attributes:
        scripted: modules of TorchScript by name, which cannot be followed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.running: list[Call] = []
        self._times: Counter[str] = Counter()
        self._hooks: list[RemovableHandle] = []
        self._followed = [
            (name, module)
            for name, module in modules_by_name(model).items()
            if list(module.children()) or not type(module).__module__.startswith("torch.nn.modules.")
        ]
        self.scripted: dict[str, nn.Module] = {}

    def attach(self, on_enter: Callable[[Call], None], on_leave: Callable[[Call, Any], None]) -> None:
        """Hook the modules; `on_enter` and `on_leave` are called for every call, the latter with its output."""
        self._on_enter, self._on_leave = on_enter, on_leave
        for name, module in self._followed:
            try:
                self._hooks.append(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            except RuntimeError:  # of TorchScript, which takes no hooks, and hides what it computes
                if not isinstance(module, torch.jit.ScriptModule):
                    raise
                self.scripted[name] = module
                continue
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def detach(self) -> None:
        """Remove the hooks from the model, and release the callbacks: with them the last pass is freed at once."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.running.clear()
        del self._on_enter, self._on_leave

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if not self.running:  # of texts and images, the images are what is counted
            inputs.sort(key=lambda x: x.ndim < 4)
            _refuse_unequal(inputs)
            self._times.clear()
        given = next(iter(inputs), None)
        self._times[name] += 1
        version = 0 if given is None or given.is_inference() else given._version
        call = Call(name, module, given, version, times=self._times[name])
        self._on_enter(call)
        self.running.append(call)

    def _leave(self, module: nn.Module, _args: Any, out: Any) -> None:
        while self.running:  # after an exception some have ended without a hook
            call = self.running.pop()
            if call.module is module:
                self._on_leave(call, out)
                return


def _refuse_unequal(inputs: list[Tensor]) -> None:
    """Raise CaptureError for a number of texts that is not the number of images: which is whose cannot be told."""
    images = [x for x in inputs if x.ndim >= 4]
    for texts in (x for x in inputs if x.ndim == 2 and not x.is_floating_point()):
        if images and len(texts) != len(images[0]):
            raise CaptureError(
                f"{len(images[0])} images and {len(texts)} texts in one call; capture the vision tower alone, or give "
                "one text per image."
            )


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by dotted name; a compiled block has the name, and is the module, that was compiled."""
    return {name.replace("._orig_mod", ""): module for name, module in model.named_modules()}


def is_attention(module: nn.Module, name: str = "") -> bool:
    """True if a module calls itself attention, by its class or its name, and has queries.

    A run of it without a product with V hides its map.
    """
    if not (ATTENTION.search(type(module).__name__) or ATTENTION.search(name)):
        return False
    names = [name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))]
    return any(QUERY.match(name) for name in names)


def tokens_in(out: Any, given: Any) -> Tensor | None:
    """The tokens among all that a block returns: what has the shape of its input, or what comes first; None if that has
    neither three axes nor four."""
    found = list(tensors(out))
    alike = [tensor for tensor in found if isinstance(given, Tensor) and tensor.shape == given.shape]
    first = next(iter(alike or found), None)
    return first if first is not None and first.ndim in (3, 4) else None
