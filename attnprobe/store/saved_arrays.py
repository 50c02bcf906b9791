"""Attention maps that other programs saved: arrays of .npy, .npz, .safetensors and .pt files, and of plain pickles.

Nothing in a file is run: numpy and torch read with their safe options, and of a pickle only the functions that rebuild
arrays and tensors are called, each listed in `REBUILDERS`.
"""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.io import fs
from attnprobe.io.pickles import NUMPY, load_tensors, require_bounded

ENDINGS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".pkl", ".pickle")

MOST_BYTES = 16 << 30
"""Largest size of a file, which is read into memory as a whole."""

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

MOST_EXPANSION = 20
"""Maximum size of what an archive holds, as a multiple of its own; attention that deflate packs tighter is constant."""

MOST_ENTRIES = 100_000
"""Maximum number of entries of all containers of a file, counted as often as they are reached."""

LONGEST_NAME = 1000
"""Maximum number of characters of an array's dotted name."""

REBUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    **NUMPY,
    ("__builtin__", "bytes"): lambda: b"",  # none, as protocol 2 has them
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,  # pyright: ignore
    ("torch.storage", "_load_from_bytes"): lambda data: load_tensors(io.BytesIO(data)),
    ("collections", "OrderedDict"): OrderedDict,
}  # type: ignore[dict-item]
"""Everything a pickle may name, and what is called for it."""


def read_arrays(path: Path) -> dict[str, Tensor]:
    """{name: array} of all floating-point arrays of at least three axes in a file, in its order.

    Nested containers give dotted names, such as "layers.0.3".

    Raises:
        InputError: another kind of file, a damaged one, one that names more than arrays, or one without such arrays.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{path}: maps are imported from {', '.join(ENDINGS)}; got {path.suffix or 'no ending'!r}.")
    try:
        data = fs.read_regular(path, MOST_BYTES)
        tree = _read(path.suffix.lower(), data)
        arrays = _named_arrays(path, tree, len(data))
    except InputError:
        raise
    except Exception as error:  # damaged files raise any of a dozen types
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read: {first:.200}") from error
    arrays = {name: tensor for name, tensor in arrays.items() if tensor.ndim >= 3 and tensor.numel()}
    if not arrays:
        raise InputError(f"{path} holds no array of numbers with three axes or more.")
    return arrays


def _read(ending: str, data: bytes) -> Any:
    if zipfile.is_zipfile(file := io.BytesIO(data)):
        entries = zipfile.ZipFile(file).infolist()
        if sum(entry.file_size for entry in entries) > MOST_EXPANSION * max(len(data), 1 << 20):
            raise InputError("it would expand far beyond its size; refused as a decompression bomb")
    if ending == ".npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    if ending == ".npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if ending == ".safetensors":
        arrays = load_safetensors(data)  # the format keeps no order, so names must tell it
        return {name: arrays[name] for name in sorted(arrays, key=by_number)}
    if ending in (".pt", ".pth"):
        return load_tensors(io.BytesIO(data))
    require_bounded(file := io.BytesIO(data))
    file.seek(0)
    return _ArrayUnpickler(file).load()


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A tensor whose numbers are all in the file.

    Raises:
        InputError: sparse, float8, or larger than its storage.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in FLOATS
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{name} {tuple(tensor.shape)} is no plain array of floats; save it as one.")
    return tensor


def by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts block2 before block10."""
    return [(int(digits or -1), text) for text, digits in re.findall(r"(\D*)(\d*)", name)]


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds arrays, tensors and plain containers, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """The function that stands for a name of the pickle.

        Raises:
            InputError: it is none of `REBUILDERS`.
        """
        if (found := REBUILDERS.get((module, name))) is None:
            raise InputError(f"the pickle wants to call {module}.{name}; nothing was run. Save the arrays as .npz.")
        return found


def _named_arrays(path: Path, tree: Any, n_bytes: int) -> dict[str, Tensor]:
    """{name: array} of all floating-point arrays in nested containers.

    A small file may name one container, or one large array, many times; each time counts.

    Args:
        n_bytes: size of the file that holds them.

    Raises:
        InputError: more entries, longer names or more numbers than a file of this size holds.
    """
    arrays: dict[str, Tensor] = {}
    left = MOST_EXPANSION * max(n_bytes, 1 << 20)
    for count, (name, value) in enumerate(_entries("", tree)):
        if count == MOST_ENTRIES or len(name) > LONGEST_NAME:
            raise InputError(
                f"{path}: its containers hold more than {MOST_ENTRIES} entries, or names of more than {LONGEST_NAME} "
                "characters; refused. Save the arrays alone."
            )
        if (tensor := _tensor(value)) is None or not tensor.is_floating_point():
            continue
        arrays[name or "maps"] = _plain(name or "maps", tensor)
        left -= tensor.numel() * tensor.element_size()
        if left < 0:
            raise InputError(f"{path}: its arrays would expand far beyond its size; refused. Save each array once.")
    return arrays


def _tensor(value: Any) -> Tensor | None:
    """An array of floats, or any tensor, as a tensor; None of everything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(value))
    return value if isinstance(value, Tensor) else None


def _entries(name: str, tree: Any, depth: int = 8) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested containers, the containers among it.

    Raises:
        InputError: they are nested deeper than `depth`, as lists that hold one another would be.
    """
    if depth == 0:
        raise InputError("its containers are nested too deeply; save the arrays alone")
    yield name, tree
    if isinstance(tree, Mapping | tuple | list):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _entries(f"{name}.{key}" if name else str(key), value, depth - 1)
