"""Data sets that timm knows by name (torch/cifar10, hfds/..., wds/...) as an `ImageSource`.

CIFAR's files are pickles, which could run anything. torchvision compares the MD5 of each with the published one before
it unpickles it, and refuses any other.
"""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnprobe.core.errors import InputError, WorkError, did_you_mean, option
from attnprobe.core.images import InputSpec
from attnprobe.core.registry import UnknownName
from attnprobe.data.decode import DecodedImages
from attnprobe.data.device_resident import DeviceResident, may_reside, shown_whole
from attnprobe.data.image_files import READING, Reading
from attnprobe.data.order import balanced_subset
from attnprobe.data.pillow import open_image
from attnprobe.data.streamed import StreamedImages
from attnprobe.io.fs import cache_folder

PACKAGES = {
    "torch": {},
    "hfds": {"datasets": "datasets"},
    "hfids": {"datasets": "datasets"},
    "wds": {"webdataset": "webdataset"},
    "tfds": {"tensorflow": "tensorflow", "tensorflow_datasets": "tensorflow-datasets"},
}
"""Prefix -> the modules it needs beyond torchvision, and their names for pip."""

TORCH_SETS = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "kmnist", "qmnist", "imagenet", "places365",
              "inaturalist")  # fmt: skip

FILES = {
    "cifar10": "the folder cifar-10-batches-py",
    "cifar100": "the folder cifar-100-python",
    "svhn": "train_32x32.mat or test_32x32.mat",
}
"""Files torchvision looks for without naming them in its error."""

SPLITS = {"train": ("train",), "val": ("validation", "val", "test"), "validation": ("validation",), "test": ("test",)}
"""Names of a split -> names to ask timm for, best first."""


def local_folder(name: str, data_dir: Path) -> Path:
    """The folder of a named set as an absolute path; webdataset would run a shell on anything like a URL.

    Raises:
        InputError: a pipe, a URL, or for wds not a folder on this machine.
    """
    root = Path(os.path.expanduser(data_dir))
    if not root.is_dir() and (name.startswith("wds/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", str(root))):
        raise InputError(
            f"{name!r} needs a folder on this machine as {option('data-dir')}, got {str(data_dir)!r}. Pipes and URLs "
            "are not opened, since they run commands; download the data first."
        )
    return root.resolve()


def open_named(name: str, split: str, root: Path | None, download: bool) -> Any:
    """timm's data set of that name.

    Raises:
        InputError: no such set or split, not on disk, or a missing package.
        WorkError: the download failed.
    """
    prefix, _, rest = name.partition("/")
    missing = [pip for module, pip in PACKAGES[prefix].items() if find_spec(module) is None]
    if missing:
        raise InputError(f"{name!r} needs {' and '.join(missing)}: pip install {' '.join(missing)}.")
    if prefix == "torch" and rest not in TORCH_SETS:
        known = [f"torch/{one}" for one in TORCH_SETS]
        raise UnknownName(f"no torchvision data set named {name!r}.{did_you_mean(name, known)}")
    if prefix == "torch" and split not in SPLITS:  # timm would take any other name for the test set
        raise InputError(f"{name!r} has no split {split!r}; ask for {', '.join(SPLITS)}.")
    if not rest or (prefix == "wds" and root is None):
        raise InputError(
            f"cannot open {name!r}: expected {prefix}/NAME, and for wds the folder of the shards "
            f"({option('data-dir')})."
        )
    first_error = None
    for asked in SPLITS.get(split, (split,))[: 1 if prefix == "torch" else None]:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some readers print
                if name == "torch/svhn":
                    from attnprobe.data.svhn import NamedSVHN

                    wanted = asked if asked in ("train", "extra") else "test"
                    return NamedSVHN(str(root), split=wanted, download=download)
                from timm.data import create_dataset  # late: it takes seconds, and other sets do without

                return create_dataset(name, root=root and str(root), split=asked, download=download)
        except Exception as error:  # each reader has its own
            first_error = first_error or error
    reason = (str(first_error).strip().splitlines() or [type(first_error).__name__])[0].rstrip(".")
    if download and isinstance(first_error, OSError):
        raise WorkError(
            f"could not download {name!r}: {reason}. Check the network, or give {option('data-dir')}."
        ) from first_error
    reason = reason.removesuffix(". You can use download=True to download it")
    what = f" for {FILES[rest]}" if rest in FILES and prefix == "torch" else ""
    hint = (
        f"looked in {root or 'its own cache'}{what}; name the folder that holds it by {option('data-dir')}, or fetch "
        "it: download=True of ap.load_images, --set download=true of train"
    )
    raise InputError(f"cannot open split {split!r} of {name!r}: {reason} ({hint}).") from first_error


class NamedReader:
    """A function from a position to an opened image and its label; `rows` are the positions in the data set."""

    def __init__(self, dataset: Any, rows: Sequence[int]) -> None:
        self.dataset, self.rows = dataset, rows

    def __call__(self, position: int) -> tuple[Image.Image, int]:
        row = self.rows[position]
        if hasattr(self.dataset, "reader"):  # timm's own __getitem__ puts a neighbour in place of a bad image
            file, label, *_features = self.dataset.reader[row]
            return open_image(file), -1 if label is None else int(label)
        image, label = self.dataset[row]
        return image, int(label)


def labels_of(dataset: Any) -> list[int] | None:
    """All labels, if the data set has them without opening images; else None."""
    iter_targets = getattr(getattr(dataset, "reader", None), "iter_targets", None)
    if iter_targets:
        return [-1 if label is None else int(label) for label in iter_targets()]
    targets = getattr(dataset, "targets", None)
    return None if targets is None else np.asarray(targets).reshape(len(targets), -1)[:, 0].tolist()


def class_names_of(dataset: Any) -> tuple[str, ...]:
    """The names of the classes, in label order; empty if unknown."""
    number = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    names = getattr(dataset, "classes", None) or sorted(number, key=number.__getitem__)
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def stored_pixels(dataset: Any, rows: Sequence[int]) -> Tensor | None:
    """Some images of a set that torchvision holds in memory, [image, channel, row, col], uint8; None for others."""
    data = getattr(dataset, "data", None)
    if not isinstance(data, np.ndarray | Tensor) or torch.as_tensor(data[:0]).dtype != torch.uint8:
        return None
    pixels = torch.as_tensor(data[rows])
    if pixels.ndim == 3:  # MNIST and its kin
        return pixels[:, None]
    return pixels.permute(0, 3, 1, 2).contiguous() if pixels.shape[-1] == 3 else pixels.contiguous()


def timm_named(
    name: str,
    split: str = "val",
    *,
    spec: InputSpec,
    data_dir: Path | None = None,
    limit: int | None = None,
    download: bool = False,
    reading: Reading = READING,
) -> DecodedImages | DeviceResident | StreamedImages:
    """A data set timm's `create_dataset` knows, or SVHN, with timm's evaluation transform.

    CIFAR, SVHN, MNIST and its kin live on the device (see `may_reside`); other sets of random access are decoded on
    demand; hfids, wds and tfds are streams, which cannot be shuffled and whose `limit` means the first images.

    Raises:
        InputError, WorkError: see `open_named`.
    """
    name = name.lower() if name.startswith("torch/") else name  # timm takes torch/CIFAR10, too
    root = local_folder(name, data_dir) if data_dir else cache_folder() if name.startswith("torch/") else None
    dataset = open_named(name, split, root, download)
    source, class_names = f"{name}/{split}", class_names_of(dataset)
    if isinstance(dataset, torch.utils.data.IterableDataset):
        bad = reading.bad_images
        return StreamedImages(source, spec, dataset, class_names=class_names, limit=limit, bad_images=bad)
    labels = labels_of(dataset)
    ids = [f"{source}/{row:07d}" for row in range(len(dataset))]
    rows = balanced_subset(ids, labels or [-1] * len(ids), limit)
    described = {
        "ids": [ids[row] for row in rows],
        "class_names": class_names,
        "fingerprint": f"{source} of {len(ids)} images={len(rows)}",
    }
    pixels = stored_pixels(dataset, rows)
    if labels and pixels is not None and may_reside(pixels.shape, spec, reading.resident_bytes):
        spec = shown_whole(spec, split)
        return DeviceResident(source, spec, pixels=pixels, labels=torch.tensor(labels)[rows], **described)
    read, options = NamedReader(dataset, rows), {"bad_images": reading.bad_images, "workers": reading.workers}
    known = [labels[row] for row in rows] if labels else ()
    return DecodedImages(source, spec, read=read, labels=known, **options, **described)
