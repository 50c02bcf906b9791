"""What is no file, and JSON of the wrong shape: kinds that every format has."""

import os
from collections.abc import Callable
from pathlib import Path

DEEP = b"[" * 100_000 + b"]" * 100_000


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def sparse(path: Path) -> None:
    """100 GB that take no room."""
    with path.open("wb") as file:
        file.truncate(100 << 30)


NO_FILES: dict[str, Callable[[Path], None]] = {"fifo": fifo, "device": device, "folder": folder, "sparse": sparse}

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "deep": DEEP,
    "deep_objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "list": b"[1, 2]",
    "number": b"7",
    "nan": b"NaN",
    "null": b"null",
    "text": b'"text"',
    "digits": b'{"epoch": ' + b"9" * 10_000 + b"}",
    "surrogate": b'{"\\ud800": 1}',
    "not_utf8": b"\xff\xfe{",
    "truncated": b'{"a": [1,',
}
"""Content of a JSON file that is none, or of another type."""

BAD_FILES: dict[str, Callable[[Path], object]] = {
    **NO_FILES,
    **{name: lambda path, data=data: path.write_bytes(data) for name, data in CONTENTS.items()},
}


def put(path: Path, kind: str) -> None:
    """Replace a file by a bad one."""
    path.unlink(missing_ok=True)
    BAD_FILES[kind](path)
