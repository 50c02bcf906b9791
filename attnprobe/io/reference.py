"""References to images in files: which data sets a maps file or a run may open, and which only the user may.

A maps file names the images it is about, and a run those it was trained on. Both often come from elsewhere, and the
name of a data set chooses code: webdataset hands a URL to a shell, torchvision unpickles, and a folder may hold
anybody's photographs, which a report would embed. So a file opens only what needs nothing from this machine (digits, a
bounded number of fractals) and what came with it (a folder inside the run's own folder). The user names the rest.
"""

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, option
from attnprobe.core.text import visible
from attnprobe.io.config import from_mapping

MAX_CLASSES, MAX_IMAGES = 1_000, 100_000
"""Fractals that a file may ask for: their classes take seconds to draw, their ids 10 MB."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Images by name, as `load_images` takes them.

    Attributes:
        data, split: which set, and which part of it.
        data_dir: where it lies; None for the set's own place.
        images: a class-balanced subset of this many; None for all.
    """

    data: str
    split: str = "val"
    data_dir: str | None = None
    images: int | None = None

    @classmethod
    def from_file(cls, values: Any, source: str) -> "ImageReference":
        """The reference that a file holds, its types checked.

        Raises:
            InputError: anything but names and a number.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{source}: expected the names of its images, got {type(values).__name__}.")
        return from_mapping(cls, values, source=source)


@dataclass(frozen=True, slots=True)
class UserImages:
    """The images as the user names them, on the command line or in a call; None where not given."""

    data: str | None = None
    data_dir: Path | None = None


NOT_SAID = UserImages()


def allowed(values: Any, source: str, home: Path | None, user: UserImages = NOT_SAID) -> ImageReference:
    """The images that a file names, or those the user names instead.

    Args:
        values: as `ImageReference`, from the file that messages call `source`.
        home: the folder of the run that the file belongs to; None if it belongs to none.

    Raises:
        InputError: no such values, or a set that only the user may choose.
    """
    reference = ImageReference.from_file(values, source)
    folder = None if user.data_dir is None else str(user.data_dir)
    if user.data is not None:
        return replace(reference, data=user.data, data_dir=folder)
    if folder is None:
        return _harmless(reference, home)
    reference = replace(reference, data_dir=folder)
    return reference if reference.data == "folder" else _harmless(reference, home)


def _harmless(reference: ImageReference, home: Path | None) -> ImageReference:
    """The images of a file, if it may choose them; a folder by its whole path, which is the name of nothing else.

    Raises:
        InputError: it may not.
    """
    name = reference.data
    if name == "digits":
        return reference
    if fractals := re.fullmatch(r"fractals(?::(\d{1,9})(?::(\d{1,9}))?)?", name):
        classes, per_class = int(fractals[1] or 20), int(fractals[2] or 500)
        most = classes * per_class if reference.images is None else min(classes * per_class, reference.images)
        if classes <= MAX_CLASSES and most <= MAX_IMAGES:
            return reference
    folder = Path(os.path.expanduser(reference.data_dir if name == "folder" and reference.data_dir else name))
    if home is not None and folder.is_dir() and _keeps_inside(folder, home):
        return replace(reference, data=str(folder.resolve()), data_dir=None)
    inside = reference.data_dir
    where = "" if inside is None else f" --data-dir {shlex.quote(inside)}"
    call = f"data={name!r}{'' if inside is None else f', data_dir={inside!r}'} (user=UserImages(...) of ap.examine)"
    raise InputError(
        f"the images are {visible(name)!r}, which a file does not get to open by itself (only digits, at most "
        f"{MAX_IMAGES:,} fractals, and folders inside the run are). If you trust it, name them: "
        f"{option('data', shlex.quote(name) + where, python=call)}"
    )


def _keeps_inside(folder: Path, home: Path) -> bool:
    """True if a folder is inside `home` and holds no link, which could lead out of it."""
    real = folder.resolve()
    if not real.is_relative_to(home.resolve()):
        return False
    inside = (os.path.join(here, name) for here, folders, files in os.walk(real) for name in (*folders, *files))
    return not any(map(os.path.islink, inside))
