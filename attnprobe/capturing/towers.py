"""The tower that a layer belongs to: student or teacher, encoder or decoder, one view of the images or another.

Question: when are layers of one shape not one trunk? Choice: by module path and by what goes in. Layers belong together
if the outermost numbered modules around them stand in one list, digits in its name aside (`block1`, `block2` are one
trunk), inside the innermost module that is given the images. A module that is given the images again, or a stem that
is, begins another view of them; so does one that is given another frame, or others of their channels. A block that is
called again inside one pass of these is one more layer: its weights are shared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attnprobe.capturing.call_stack import Call


@dataclass(frozen=True, slots=True, order=True)
class Tower:
    """A trunk of its own.

    Attributes:
        owner: path of the module that holds the lists of its blocks; `blocks` is the name of that list.
        view: 1 for the first time that it is given the images in a forward pass.
    """

    owner: str = ""
    blocks: str = ""
    view: int = 1


def tower_of(layer: str, calls: Sequence[Call] = (), stem_runs: int = 0) -> Tower:
    """The tower of a layer.

    Args:
        calls: the modules that run, outermost first.
        stem_runs: how often a convolution was given the images.
    """
    inner = next((call for call in reversed(calls[1:-1]) if takes_images(call, calls[0])), None)
    inside = inner.name if inner is not None else ""
    rest = layer.partition("#")[0].removeprefix(f"{inside}.").split(".")
    at = next((i for i, part in enumerate(rest) if part.isdigit()), 0)
    path = [re.sub(r"\d+$", "", part) for part in rest[:at]]
    owner = ".".join([*filter(None, [inside]), *path[:-1]])
    return Tower(owner, path[-1] if path else "", max(1, stem_runs, inner.times if inner is not None else 1))


def takes_images(call: Call, root: Call) -> bool:
    """True if a module is given tensors like the images that the model is given."""
    return call.given is not None and _are_images(call.given, root.given)


def is_stem(args: Sequence[Any], root: Call) -> bool:
    """True if these arguments of a convolution begin with tensors like the images of the model, and a weight."""
    if len(args) < 2 or not all(isinstance(x, Tensor) for x in args[:2]):
        return False
    return _are_images(args[0], root.given) and args[0].shape[1] == args[1].shape[1]


def _are_images(given: Tensor, images: Tensor | None) -> bool:
    """True of tensors like the images of a model, or like a part of them: a frame of a video, some of the channels."""
    if images is None or images.ndim < 4:
        return False
    if given.ndim == images.ndim and given.shape[1] == images.shape[1]:
        return True
    if given.ndim < 4 or given.shape[-2:] != images.shape[-2:]:
        return False
    if given.ndim == images.ndim:
        return given.shape[1] < images.shape[1]
    return given.ndim == images.ndim - 1 and given.shape[1] in images.shape[1:3]


def tower_names(stages: Sequence[tuple[object, Tower]]) -> list[str]:
    """A name for the tower of each stage, given as (what its layers have in common, tower); "" where there is one.

    Towers are told apart by their owners and views, and by their lists where one owner has several of like layers.
    """
    owners = {tower.owner for _, tower in stages}
    views = {tower.view for _, tower in stages}
    lists: dict[tuple[object, str], set[str]] = {}
    for shape, tower in stages:
        lists.setdefault((shape, tower.owner), set()).add(tower.blocks)
    by_list = any(len(blocks) > 1 for blocks in lists.values())
    names = []
    for _, tower in stages:
        path = tower.owner.split(".") if len(owners) > 1 else []
        path += [tower.blocks] if by_list or path == [""] else []
        path += [f"view{tower.view}"] if len(views) > 1 else []
        names.append("_".join(filter(None, path)))
    return names
