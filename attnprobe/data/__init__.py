"""Data sets: `load_images(name)` opens a name or a path as an `ImageSource`.

Question: who resizes and normalises, and where? Choice: files are decoded, resized and cropped by timm's own
evaluation transform in worker processes, so a checkpoint sees the pixels it was validated on (equal to the bit on
the CPU), and travel as bytes. Division and normalisation happen on the device.

Question: which sets stay on the device? Choice: those whose images all have one square size, no larger than the
model's input, and fit in `resident_bytes` (2 GiB): CIFAR, SVHN, MNIST, Tiny-ImageNet, any such folder. They are
resized there, batch by batch, by Pillow's own integer sums, so evaluation still sees timm's pixels to the bit, and
training, which crops after that, loses no detail. A training split is shown to its borders: crop_pct is for
evaluation. Larger images are decoded every time, since a training crop needs their full size. Keeping evaluation
sets of any files, resized, was left out: 224 px take 150 kB an image, 7,000 images fill 1 GiB. Reconsider if
validation after every epoch waits for the decoders.

Question: when are bad images found? Choice: before the work, by decoding each file once (JPEG at 1/8 size): 0.8 ms
for a 500 x 375 JPEG, 2.6 ms for a PNG, on one core. Structure checks are 10 times faster, but missed 199 of 201
truncated JPEGs. A capture does not (`scan=False`): it reads each file once, keeps what is finished, and so loses little
when it meets a bad one; of a million files the scan would take an hour, in every process. Its fingerprint, of names,
sizes and labels, is the same.

Question: random generators or hashes for splits, subsets and fractals? Choice: hashes (SHA-256 of ids, splitmix64
of indices), because library generators may change between versions. Fractals: 650 images/s at 64 px, 75 at
224 px, 1,000 classes set up in 1 s, on one CPU core.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, check_choice, did_you_mean, nearest, option
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.core.registry import Registry, UnknownName
from attnprobe.data.decode import BadImages
from attnprobe.data.digits import digits
from attnprobe.data.fractals import fractals
from attnprobe.data.image_files import READING, Reading, load_files
from attnprobe.data.remote_folder import load_remote_folder
from attnprobe.data.tar_shards import load_tar_shards
from attnprobe.data.timm_named import PACKAGES, TORCH_SETS, timm_named
from attnprobe.io import fs
from attnprobe.io.remote import RemotePath, place

__all__ = ["DATASETS", "DataSet", "load_images"]


@dataclass(frozen=True, slots=True)
class DataSet:
    """One kind of image source: `load(name, split, *, spec, ...)` with the settings it has."""

    name: str
    summary: str
    load: Callable[..., ImageSource]


DATASETS = Registry(
    "data set",
    DataSet("digits", "1,797 handwritten digits, 8 x 8, in scikit-learn; nothing to download", digits),
    DataSet(
        "fractals",
        "fractals:CLASSES or fractals:CLASSES:PER_CLASS, procedural, at any size; nothing to download",
        fractals,
    ),
    DataSet(
        "folder", "a path: train/CLASS/ and val/CLASS/, CLASS/, images without classes, or Tiny-ImageNet", load_files
    ),
    DataSet(
        "remote", "a URL (s3://, gs://, hf://) of a folder that is arranged like one on a disk", load_remote_folder
    ),
    DataSet("tar", "a path or URL of tar files as WebDataset has them: shards-{000..011}.tar, *.tar", load_tar_shards),
    DataSet("list", "a path: a text file with one image per line, and a tab and a class if known", load_files),
    DataSet("torch", "torch/cifar10, torch/cifar100, torch/svhn, torch/imagenet ... of torchvision", timm_named),
    DataSet("hfds", "hfds/NAME, Hugging Face data sets (pip install datasets)", timm_named),
    DataSet("hfids", "hfids/NAME, the same as a stream (pip install datasets)", timm_named),
    DataSet("wds", "wds/NAME, WebDataset shards as a stream (pip install webdataset)", timm_named),
    DataSet("tfds", "tfds/NAME, TensorFlow data sets as a stream (pip install tensorflow-datasets)", timm_named),
)


def kind_of(name: str) -> str:
    """The name in `DATASETS` of a name or path; "./digits" is a folder, "digits" is not.

    Raises:
        UnknownName: neither a path nor the name of a data set.
    """
    if name in ("digits", "fractals") or name.startswith("fractals:"):
        return name.partition(":")[0]
    if name.endswith(".tar"):
        return "tar"
    if isinstance(place(name), RemotePath):
        return "remote"
    prefix, slash, _rest = name.partition("/")
    if slash and prefix in PACKAGES:
        return prefix
    path = os.path.expanduser(name)
    if os.path.isfile(path) or name.endswith(".txt"):
        return "list"
    if os.path.isdir(path) or name.startswith((".", "~", "/")):
        return "folder"
    if name in DATASETS:  # the kind without its rest, whose message says what is missing
        return name
    near = nearest(name, ("digits", "fractals", *(f"torch/{one}" for one in TORCH_SETS), *fs.beside(Path(path))))
    raise UnknownName(
        f"no folder and no data set named {name!r}.{near} Known: a folder, a list of files, digits, fractals, "
        f"torch/{'|'.join(TORCH_SETS)}, and what `attnprobe list data` describes."
    )


SHARED = ("seed", "download")
"""Options that any set accepts, and only some use."""


def load_images(
    name: str,
    split: str = "val",
    *,
    spec: InputSpec | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    bad_images: BadImages = "refuse",
    workers: int = 0,
    **options: Any,
) -> ImageSource:
    """Open a data set by name or path; `DATASETS` lists what there is.

    Besides the attributes of `ImageSource`, every source has `bad`, the ids of the images it skipped.

    Args:
        name: an entry of `DATASETS` as its summary writes it, or a path; "folder" for the path `data_dir`.
        split: "train" or "val"; some sets have more.
        spec: size and normalisation of the pixels, and timm's evaluation crop, as `input_spec(model)` gives them.
        data_dir: the folder of sets of torch, hfds ..., or of images.
        limit: at most so many images: the same ones every time, classes balanced.
        bad_images: "refuse" the whole set if an image cannot be read, or "skip" such images.
        workers: processes that decode files.
        options: seed=0, of the classes of fractals; download=False, to fetch a set that is not on disk;
            resident_bytes=2 GiB, up to which a set of small images is decoded once and kept on the device (0 keeps
            none); scan=False, to open no file before its turn comes, and a `Shared` list of files, which the first
            process makes for others; classes= and per_class= of fractals.

    Raises:
        InputError: an unknown name, split or option, no image, unreadable ones, or no `spec`.
    """
    if not isinstance(spec, InputSpec):
        raise InputError(f"load_images needs spec=ap.input_spec(model), the pixels it wants, got {spec!r:.60}.")
    resident_bytes = options.pop("resident_bytes", READING.resident_bytes)
    scan, shared = options.pop("scan", True), options.pop("shared", None)
    if limit is not None and limit < 1:
        asked = option("images", limit, python=f"limit={limit}")
        raise InputError(f"{asked} must be at least 1; without it all images are taken.")
    if resident_bytes < 0:
        raise InputError(f"resident_bytes={resident_bytes} must be a number of bytes, or 0 to keep no set.")
    check_choice("bad_images", bad_images, ("refuse", "skip"))
    if name in ("folder", "list") and data_dir is not None:
        name = str(data_dir)
    kind = kind_of(name)
    name = str(place(name)) if kind in ("folder", "list") else name  # file:// names a path
    load = DATASETS[kind].load
    accepted = set(inspect.signature(load).parameters) - {"name", "split"}
    for given in options:
        if given not in accepted and given not in SHARED:
            raise InputError(f"{name!r} has no option {given!r}.{did_you_mean(given, accepted - {'reading'})}")
    reading = Reading(bad_images, workers, resident_bytes, scan, shared)
    settings = {"spec": spec, "data_dir": data_dir, "limit": limit, "reading": reading, **options}
    return load(name, split, **{key: value for key, value in settings.items() if key in accepted})
