"""Folders in the layout of transformers: what their config.json may name, and how large a model it may declare.

A folder comes from elsewhere, so its config.json is data: it names one of the library's own models, and declares one of
about the size of the weights beside it. Everything is checked before memory is taken for the model.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registering

from attnprobe.core.errors import InputError
from attnprobe.io import fs

MOST_BYTES = 1 << 20
"""Maximum size of a config.json."""

SPARE = 10_000_000
"""Numbers that a model may have more than its weights have bytes: 40 MB."""

WITHOUT_WEIGHTS = 10_000_000_000
"""Numbers that a model may have in a folder of a config.json alone, which is built with initial weights."""

COUNTS = {re.compile(r"layer|depth|block|stage"): 4096, re.compile(r"num_labels|num_classes"): 1_000_000}
"""Names of entries that say how many of something to make, and the largest number of them."""


def check_config(folder: Path) -> None:
    """Refuse a folder whose config.json names code or other files, or counts what no model has so many of.

    Kernels of the hub and options of timm that load something are such names.

    Raises:
        InputError: such a name or count, or an unreadable file.
    """
    try:
        waiting = [fs.parse_json(fs.read_regular(folder / "config.json", MOST_BYTES))]
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no config.json that can be read: {error}.") from None
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            raise InputError(f"{folder}: config.json must hold names and values, got {type(part).__name__}.")
        waiting += [value for value in part.values() if isinstance(value, dict)]
        for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            if part.get(name) not in (None, "eager", "sdpa"):
                raise InputError(f"{folder}: {name}={part[name]!r:.60} names code to be loaded; use eager or sdpa.")
        if part.get("model_type") == "timm_wrapper":
            raise InputError(f"{folder} wraps a model of timm; open it as local-dir:{folder}, or by its name in timm.")
        for name, value in part.items():
            _check_count(folder, name, value)


def _check_count(folder: Path, name: str, value: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        most = next((most for names, most in COUNTS.items() if names.search(name)), None)
        if most is not None and isinstance(number, int | float) and abs(number) > most:
            raise InputError(
                f"{folder}: config.json has {name}={number!r:.30}; expected at most {most}. Download the folder again."
            )


def model_class(transformers: Any, ref: str, config: Any) -> Any:
    """The class that a configuration names; AutoModel where it names none that transformers has.

    Raises:
        InputError: something of transformers that is no model.
    """
    names = getattr(config, "architectures", None) or ()
    name = names[0] if isinstance(names, list | tuple) and names else names
    if not name or not hasattr(transformers, str(name)):
        return transformers.AutoModel
    kind = getattr(transformers, str(name))
    is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not is_model or kind.forward is nn.Module.forward:  # the latter of bases alone
        raise InputError(
            f"hf:{ref}: its config.json names the architecture {name!r:.60}, which is no model of transformers; "
            "expected one such as 'ViTModel'. Correct the entry, or leave it out."
        )
    return kind


def require_stored(folder: Path, build: Callable[[], Any]) -> None:
    """Raise if the model of a folder is far larger than the weights beside it, before memory is taken for it.

    Args:
        build: makes the model; called where tensors take no memory, and stopped at the first one that is too much.

    Raises:
        InputError: the folder declares a model that it does not hold.
    """
    files = [path for ending in ("safetensors", "bin") for path in folder.glob(f"*.{ending}")]
    n_bytes = sum(min(path.stat().st_size, path.stat().st_blocks * 512) for path in files)  # of a hole, none
    most = n_bytes + SPARE if files else WITHOUT_WEIGHTS
    said = f"for weights of {n_bytes:,} bytes" if files else "without weights"
    message = (
        f"hf:{folder}: its config.json declares a model of more than {most:,} numbers {said}; they do not belong "
        "together. Download the folder again."
    )
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), _at_most(most, message):
            build()
    except InputError:
        raise
    except Exception:  # some models compute while they are built, which nothing on meta can; their own error follows
        return


@contextmanager
def _at_most(numbers: int, message: str) -> Iterator[None]:
    """Raise InputError as soon as the modules that this thread makes have more numbers than so many."""
    left, mine = numbers, threading.get_ident()

    def count(_module: object, _name: str, value: Tensor | None) -> None:
        nonlocal left
        if value is None or threading.get_ident() != mine:
            return
        left -= max(value.numel(), 1)
        if left < 0:
            raise InputError(message)

    hooks = [
        registering.register_module_parameter_registration_hook(count),
        registering.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
