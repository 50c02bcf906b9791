"""ViTs of transformers without some of their blocks, or with fewer heads in all of them, as their library writes them.

A configuration of transformers says how many blocks there are and, of some models, how many heads of which width every
block has; not that blocks differ. So whole blocks can go, and as many heads from each block; `AutoModel` opens the
result.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models.elsewhere import without_network
from attnprobe.models.fewer_heads import cut_linear
from attnprobe.models.parts import Part, Removal, Smaller
from attnprobe.models.same import compute_alike

BLOCKS = ("layers", "layer", "encoder.layers", "encoder.layer")
ATTENTION = ("attention", "self_attn")
PROJECTION = ("o_proj", "out_proj", "output.dense")
"""Names of a model's blocks, of a block's attention and of its output projection, the first of which counts."""

OF_BACKBONES = ("out_features", "out_indices", "stage_names")
"""Entries of a configuration that number blocks, and follow from their number."""


class HuggingFace:
    """Vision transformers of transformers, taken apart; a `Family`."""

    def parts(self, model: Any) -> list[Part]:
        """The blocks.

        Raises:
            InputError: a model that is not built like transformers' ViT.
        """
        heads = getattr(model.config, "num_attention_heads", None)
        found = []
        for block in _blocks(model):
            attention = _first(block, ATTENTION)
            projection = None if attention is None else _first(attention, PROJECTION)
            if attention is None or projection is None or not isinstance(heads, int):
                raise _unknown(model)
            found.append(Part(block, attention, projection, heads))
        return found

    def smaller(self, model: Any, removal: Removal, name: str, options: Mapping[str, Any]) -> Smaller:
        """A copy without these blocks and heads; see `Family`."""
        kind = type(model.config).__name__
        removal.check(self.parts(model))
        if removal.attention:
            raise InputError(f"transformers' {kind} cannot say that a block has no attention; drop whole blocks.")
        copy: Any = deepcopy(model)
        parts = self.parts(copy)
        kept = [number for number in range(1, len(parts) + 1) if number not in removal.blocks]
        changed = {"num_hidden_layers": len(kept)}
        if removal.heads:
            changed |= self._heads_cut([parts[number - 1] for number in kept], kept, removal, kind)
        blocks = _blocks(copy)
        for number in sorted(removal.blocks, reverse=True):
            del blocks[number - 1]
        entries = {k: v for k, v in copy.config.to_dict().items() if k not in OF_BACKBONES} | changed
        config = type(copy.config).from_dict(entries)
        config.name_or_path = model.config.name_or_path
        refusal = f"transformers' {kind} cannot describe what is left; drop other blocks"
        try:
            with torch.random.fork_rng(devices=[]):
                rebuilt = type(model)(config).to(model.dtype).eval()
            rebuilt.load_state_dict(copy.state_dict(), strict=True)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{refusal} ({str(error).splitlines()[0]:.120}).") from error
        if hasattr(model, "input_spec"):
            rebuilt.input_spec = model.input_spec
        if not compute_alike(copy, rebuilt):
            raise InputError(f"{refusal}: what a block computes depends on its place.")
        return Smaller(rebuilt, name, options, lambda: _files(rebuilt))

    def _heads_cut(self, parts: Sequence[Part], numbers: Sequence[int], removal: Removal, kind: str) -> dict[str, int]:
        """The configuration's entries after heads were cut from these blocks, in place."""
        lost = {number: set(removal.heads.get(number, ())) for number in numbers}
        if len({len(heads) for heads in lost.values()}) > 1:
            raise InputError(
                f"transformers' {kind} has one number of heads for all blocks; remove as many from each, or drop "
                "blocks."
            )
        for number, part in zip(numbers, parts, strict=True):
            attention: Any = part.attention
            width = getattr(attention, "head_dim", None)
            if not all(hasattr(attention, layer) for layer in ("q_proj", "k_proj", "v_proj")) or width is None:
                raise InputError(f"heads of transformers' {type(attention).__name__} cannot be removed; drop blocks.")
            left = [head for head in range(part.heads) if head + 1 not in lost[number]]
            for layer in ("q_proj", "k_proj", "v_proj"):
                setattr(attention, layer, cut_linear(getattr(attention, layer), part.heads, left, axis=0))
            output = next(layer for layer in PROJECTION if getattr(attention, layer, None) is part.projection)
            setattr(attention, output, cut_linear(part.projection, part.heads, left, axis=1))
            for count in ("num_heads", "num_attention_heads"):
                if hasattr(attention, count):
                    setattr(attention, count, len(left))
        return {"num_attention_heads": len(left), "head_dim": width}


HUGGING_FACE = HuggingFace()


def _files(model: Any) -> dict[str, bytes]:
    """Files that save_pretrained writes, and the image processor's; config.json last."""
    import transformers  # takes seconds, and only its models come here

    with tempfile.TemporaryDirectory() as folder, without_network():
        model.save_pretrained(folder)
        with suppress(Exception):  # none there, or of a class that needs another package: opened as without one
            transformers.AutoImageProcessor.from_pretrained(model.config.name_or_path).save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return {**files, "config.json": files.pop("config.json")}


def _blocks(model: Any) -> Any:
    found = _first(model.base_model, BLOCKS)
    if not isinstance(found, nn.ModuleList):
        raise _unknown(model)
    return found


def _first(module: Any, names: Sequence[str]) -> Any:
    """The first of these submodules that is there; None if none is."""
    there = dict(module.named_modules())
    return next((there[name] for name in names if name in there), None)


def _unknown(model: Any) -> InputError:
    return InputError(
        f"{type(model).__name__} is not built like transformers' ViT (a list of layers, each with one attention), so "
        "its blocks cannot be removed."
    )
