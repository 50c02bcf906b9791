"""Blocks of a repeated structure whose attention was not captured, although that of their siblings was.

Question: which modules should have a map? Choice: a repeated structure is a list of numbered modules. Where one member
has a map, a sibling without one is missing it if it looks alike (its class and the shapes of its parameters), if what
stands in the place of the attention module calls itself attention and has queries, or if it computes like attention (a
softmax, a product of two activations, or a script, which hides what it computes) and hands on tensors of the same
shape. A block of convolutions, pooling or a mixing MLP does none of these, so that hybrids are whole.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attnprobe.capturing.call_stack import is_attention
from attnprobe.core.errors import CaptureError

NUMBERED = re.compile(r"^(.*?)(\d+)$")


@dataclass(slots=True)
class Ran:
    """The modules of one forward pass.

    Attributes:
        modules: by name, those that ran, and scripts, of which nobody knows.
        shapes: of the output of each, where that is a tensor and known.
        unread: name of the last function of those that computed a softmax, or a product of two activations, of which no
            map was read.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, module: nn.Module, out: object) -> None:
        """A module has ended."""
        first = out[0] if isinstance(out, tuple | list) and out else out
        self.modules[name] = module
        if isinstance(first, Tensor):
            self.shapes[name] = first.shape


def missing_siblings(ran: Ran, layers: Iterable[str], around: Collection[str] = ()) -> dict[str, str]:
    """Modules that should have maps as their siblings have: name -> what stands in their place in such a sibling.

    Args:
        layers: names of the captured layers.
        around: names of the modules that were running when a map was captured. Of an attention module that several
            blocks share, only the first block is in the layers' names.
    """
    captured = list(dict.fromkeys(layer.partition("#")[0] for layer in layers))
    missing: dict[str, str] = {}
    for layer in captured:
        for place, counterpart in _counterparts(layer, ran):
            known = place in missing or place in around or _has_map(place, captured)
            if not known and _should_have_map(ran, place, counterpart):
                missing[place] = counterpart
    return missing


def refuse_missing(missing: dict[str, str], ran: Ran) -> None:
    """Raise CaptureError that names the modules without a map, if there are any."""
    if not missing:
        return
    names = ", ".join(list(missing)[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    name, layer = next(iter(missing.items()))
    unread = next((last for inner, last in ran.unread.items() if f"{inner}.".startswith(f"{name}.")), "")
    why = f" ({type(ran.modules[name]).__name__}: what it computes ends in {unread!r})" if unread else ""
    raise CaptureError(
        f"{len(missing)} of the blocks next to {layer} show no attention map: {names}{why}. Measurements would pass "
        "over them; go on without them by --allow-missing (allow_missing=True)."
    )


def _counterparts(layer: str, ran: Ran) -> Iterator[tuple[str, str]]:
    """Modules in the place of a layer in the siblings of the numbered modules around it.

    With each comes the module that it corresponds to. Where a sibling has nothing in the place of the layer, it stands
    itself, beside the numbered module.
    """
    parts = layer.split(".")
    for i in (i for i, part in enumerate(parts) if NUMBERED.match(part)):
        stem, inside = NUMBERED.sub(r"\1", parts[i]), parts[i + 1 :]
        for name in ran.modules:
            steps = name.split(".")
            if len(steps) != i + 1 or steps[:i] != parts[:i] or steps[i] == parts[i]:
                continue
            if NUMBERED.match(steps[i]) and NUMBERED.sub(r"\1", steps[i]) == stem:
                place = ".".join([*steps, *inside])
                if place in ran.modules:
                    yield place, layer
                else:
                    yield name, ".".join(parts[: i + 1])


def _has_map(place: str, captured: Iterable[str]) -> bool:
    return any(f"{layer}.".startswith(f"{place}.") or f"{place}.".startswith(f"{layer}.") for layer in captured)


def _should_have_map(ran: Ran, place: str, counterpart: str) -> bool:
    module, other = ran.modules[place], ran.modules.get(counterpart)
    if other is None:
        return False
    if type(module) is type(other) and _parameters(module) == _parameters(other) != []:
        return True
    if is_attention(module, place.rpartition(".")[2]):
        return True
    computes = any(f"{name}.".startswith(f"{place}.") for name in ran.unread)
    computes = computes or any(isinstance(inner, torch.jit.ScriptModule) for inner in module.modules())
    return computes and ran.shapes.get(place, ran.shapes.get(counterpart)) == ran.shapes.get(counterpart)


def _parameters(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in module.named_parameters()]
