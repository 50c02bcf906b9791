"""The list of images of a job: made by one of its processes, and read by the others.

Question: who lists a folder of a million images, for 64 processes? Choice: whoever comes first; the others wait for the
file that it leaves, `listed_once`. No image is opened for it: what cannot be read is met when it is decoded; except
where a plan must not name what cannot be read: then that one process tries every image, and the list says which fail.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, InUse
from attnprobe.data.listing import Listing
from attnprobe.io import fs
from attnprobe.io.lock import FileLock

FORMAT = "attnprobe list of images 1"

WAIT = 0.1
"""Seconds between two looks whether the list is there."""

Named = tuple[str, Listing]
"""The name of the images, such as "photos/val", and their files."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The place of a list that is made once.

    Attributes:
        path: the file.
        request: what it is a list of; one of another request, which an earlier job may have left, is not used.
    """

    path: Path
    request: str


def listed_once(shared: Shared, make: Callable[[], Named]) -> Named:
    """The list in a file, which the first process that asks makes; the others wait for it, or for its end.

    Raises:
        InputError: the file is damaged; or what `make` raises, in every process.
    """
    path, request = shared.path, shared.request
    fs.make_folder(path.parent)
    lock_path = path.with_name(f"{path.name}.lock")
    while not path.exists():
        try:
            lock = FileLock(lock_path)
        except InUse:
            time.sleep(WAIT)
            continue
        try:
            if path.exists():
                break
            name, listing = make()
            listing = replace(listing, known=listing.fingerprint())
            with suppress(FileExistsError):  # where the file system has no locks
                fs.write_file(path, written(request, name, listing))
            return name, listing
        finally:
            with suppress(OSError):
                lock_path.unlink()
            lock.release()
    return read(path, request) or make()


def written(request: str, name: str, listing: Listing) -> bytes:
    """A list as bytes: a line of JSON, then ids, labels, and paths where these are not the ids in one folder."""
    root = _root_of(listing)
    columns = [*listing.ids, *map(str, listing.labels)]
    body = "\0".join(columns).encode()
    if root is None:
        body += b"\0" + b"\0".join(map(os.fsencode, listing.files))
    header = {
        "format": FORMAT,
        "request": request,
        "name": name,
        "root": root,
        "n": len(listing.ids),
        "class_names": listing.class_names,
        "fingerprint": listing.fingerprint(),
        "unreadable": listing.unreadable,
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + body


def read(path: Path, request: str) -> Named | None:
    """The list in a file; None if it is of another request.

    Raises:
        InputError: it is damaged.
    """
    try:
        line, _, body = fs.read_regular(path).partition(b"\n")
        header: dict[str, Any] = fs.parse_json(line)
        if header["request"] != request:
            return None
        n, root = header["n"], header["root"]
        if header["format"] != FORMAT or len(body) != header["bytes"]:
            raise ValueError("it is cut short, or of another version")
        if hashlib.sha256(body).hexdigest() != header["sha256"]:
            raise ValueError("it does not match its own hash")
        parts = body.split(b"\0", 2 * n) if root is None else body.split(b"\0")
        del body
        ids = [part.decode() for part in parts[:n]]
        labels = [int(part) for part in parts[n : 2 * n]]
        files = [f"{root}{name}" for name in ids] if root is not None else _files(parts[2 * n])
        unreadable = header.get("unreadable")  # not in lists of old
        if unreadable is not None:
            unreadable = {name: str(unreadable[name]) for name in unreadable}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is damaged: {error}. Remove it and run the same command again.") from error
    return header["name"], Listing(files, ids, labels, tuple(header["class_names"]), header["fingerprint"], unreadable)


def _files(joined: bytes) -> list[str]:
    return [os.fsdecode(part) for part in joined.split(b"\0")]


def _root_of(listing: Listing) -> str | None:
    """What stands before the id in every path; None where paths are others, as of names that are no UTF-8."""
    root = listing.files[0].removesuffix(listing.ids[0])
    same = all(file == root + name for file, name in zip(listing.files, listing.ids, strict=True))
    return root if same and root.isascii() else None
