"""Import of attention maps that other programs saved, into a maps file that every other command reads."""

import re
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.spec import ImportOptions
from attnprobe.store import CapturePlan, MapWriter
from attnprobe.store.saved_arrays import by_number, read_arrays

LETTERS = {"I": "image", "L": "layer", "H": "head", "Q": "query", "K": "key"}
ORDER = ("image", "layer", "head", "query", "key")

ROW_SUM_ERROR = 1e-2
"""Largest |row sum - 1| of softmax maps; half precision rounds by that over some hundred keys."""

BATCH_BYTES = 256 << 20
"""Maps handed to the writer at a time."""


def import_maps(path: Path, out: Path, options: ImportOptions | None = None, *, overwrite: bool = False) -> Path:
    """Write the arrays of `path` as a maps file, without a certificate: that they are a model's maps is not proved.

    Arrays whose last two axes are not [query, key] of one size are left out where others are: a tuple of queries, keys,
    values and maps per layer gives its maps. Layers are in the order of the file, or of the numbers in their names
    where nothing else differs.

    Args:
        path: .npy, .npz, .pt, .safetensors, or a pickle of nested lists of arrays.
        out: the maps file, NAME.h5.

    Returns:
        `out`.

    Raises:
        InputError: the file cannot be read, or its arrays do not have these axes, this grid, or finite values.
    """
    options = options or ImportOptions()
    arrays = _in_order(_maps_among(read_arrays(path), options.axes))
    layers = [layer for name, array in arrays.items() for layer in _layers(name, array, options.axes)]
    shape = layers[0][1].shape
    if other := next((name for name, values in layers if values.shape != shape), None):
        raise InputError(
            f"{path}: {layers[0][0]} is {tuple(shape)} and {other} is another shape; import one at a time."
        )
    values = torch.stack([values for _, values in layers], 1)
    if not values.isfinite().all() and options.site != "scores":
        raise InputError(f"{path} holds values that are not finite, so it holds no attention weights.")
    grid = _grid(options, values.shape[-1])
    stochastic = bool(((values.sum(-1) - 1).abs() <= ROW_SUM_ERROR).all() and (values >= 0).all())
    if options.site == "weights" and not stochastic:
        raise InputError(
            f"{path}: rows of {layers[0][0]} {tuple(shape)} do not sum to 1, so these are no attention weights. Maps "
            "whose heads were mixed are imported with --site effective, logits with --site scores."
        )
    if not options.axes:
        sizes = ", ".join(f"{n} {axis}" for n, axis in zip(values.shape, ORDER, strict=True))
        warnings.warn(f"{path.name} is read as {sizes}; if that is wrong, say so with --axes.", stacklevel=2)
    maps = AttentionMaps(
        values=values,
        image_ids=tuple(str(i) for i in range(len(values))),
        grid=grid,
        site=options.site,
        is_effective=options.site != "scores",  # as far as a file can tell; the missing certificate says so
        stochastic=stochastic,
        layers=tuple(name for name, _ in layers),
        kind="self" if values.shape[-2] == values.shape[-1] else "cross",
    )
    plan = CapturePlan(
        image_ids=maps.image_ids,
        model=options.name or path.stem,
        variant="imported",
        versions={"attnprobe": version("attnprobe")},
        data=path.name,
        settings={"imported": path.name, "axes": options.axes},
    )
    with MapWriter(out, plan, dtype="float32", overwrite=overwrite) as writer:
        step = max(1, BATCH_BYTES // (values[0].numel() * 4))
        for part in writer.pending():  # all, or what an import that was killed has left
            for start in range(part.start, part.stop, step):
                writer.append([maps.images(start, min(start + step, part.stop))])
        return writer.close({})


def _maps_among(arrays: dict[str, Tensor], axes: str) -> dict[str, Tensor]:
    """The arrays that can be maps: with as many axes as are named, and square ones alone where there are such."""
    wanted = len(_named(axes)) if axes else None
    fitting = {name: a for name, a in arrays.items() if (a.ndim == wanted if wanted else a.ndim in (4, 5))}
    square = {name: a for name, a in fitting.items() if a.shape[-1] == a.shape[-2]}
    probable = {name: a for name, a in square.items() if ((a.float().sum(-1) - 1).abs() <= ROW_SUM_ERROR).all()}
    if not fitting:
        shapes = ", ".join(f"{name} {tuple(a.shape)}" for name, a in list(arrays.items())[:4])
        raise InputError(f"no array has {wanted or '4 or 5'} axes: {shapes}. Name the axes of each with --axes.")
    return (probable if len(probable) < len(square) else square) or square or fitting


def _in_order(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays by the numbers in their names where these alone differ, so that layer 2 comes before layer 10 of names
    that were sorted as text; else as in the file."""
    if len({re.sub(r"\d+", "", name) for name in arrays}) > 1:
        return arrays
    return {name: arrays[name] for name in sorted(arrays, key=by_number)}


def _named(axes: str) -> list[str]:
    """`image,head,query,key`, `IHQK` -> the axes.

    Raises:
        InputError: other names, one twice, or no query and key.
    """
    parts = [part.strip() for part in axes.split(",")] if "," in axes else list(axes.strip())
    names = [LETTERS.get(part.upper() if len(part) == 1 else part, part) for part in parts]
    if len(set(names)) < len(names) or not set(names) <= set(ORDER) or not {"query", "key"} <= set(names):
        raise InputError(
            f"--axes {axes!r} must name query and key, and of image, layer, head what there is, once each."
        )
    return names


def _layers(name: str, array: Tensor, axes: str) -> list[tuple[str, Tensor]]:
    """Name and [image, head, query, key] of every layer of an array."""
    named = _named(axes) if axes else list(ORDER if array.ndim == 5 else (a for a in ORDER if a != "layer"))
    whole = array.permute([named.index(axis) for axis in ORDER if axis in named])
    for position, axis in enumerate(ORDER):
        if axis not in named:
            whole = whole.unsqueeze(position)
    whole = whole.float()
    if whole.shape[1] == 1:
        return [(name, whole[:, 0])]
    return [(f"{name}.{i}", whole[:, i]) for i in range(whole.shape[1])]


def _grid(options: ImportOptions, n_keys: int) -> TokenGrid:
    """Grid of the keys; empty without --grid, and each token has a number for a name."""
    if not options.grid:
        return TokenGrid(0, 0, tuple(f"token{i}" for i in range(n_keys)), (1, 1))
    match = re.fullmatch(r"(\d{1,4})\s*[x,]\s*(\d{1,4})", options.grid.strip())
    if match is None:
        raise InputError(f"--grid {options.grid!r} must be rows and columns of patches, such as 14x14.")
    prefix = () if options.prefix in ("", "none") else tuple(part.strip() for part in options.prefix.split(","))
    grid = TokenGrid(int(match[1]), int(match[2]), prefix, (options.patch, options.patch))
    if grid.n_tokens != n_keys:
        raise InputError(
            f"--grid {options.grid} and --prefix {','.join(prefix) or 'none'} make {grid.n_tokens} tokens, and the "
            f"maps have {n_keys}; change one of them."
        )
    return grid
