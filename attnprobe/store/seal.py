"""How do we know that a file is ours and whole before libhdf5 looks at it?

The first 512 bytes, which HDF5 leaves to us (its "user block"): a magic number, then canonical JSON

    {"part": 3, "plan": <plan_id>, "sha256": ..., "size": ..., "v": 1}        part is null in a merged file

padded with zeros. The SHA-256 is over that JSON without its "sha256", a zero byte, and everything after
the block, so every byte of the file is covered. It proves damage, not origin: see `structure`.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attnprobe.core.errors import MapsFileError
from attnprobe.store.layout import SCHEMA_VERSION
from attnprobe.store.plan import canonical, require_known_schema

BLOCK = 512
MAGIC = b"ATPROBE\x01"
HASH_AT_ONCE = 256 << 20
"""Files up to this size are hashed whenever they are opened."""

_STEP = 8 << 20


@dataclass(frozen=True, slots=True)
class Seal:
    """What the first 512 bytes say. `part`: number of the shard, None in a merged file; `v`: the schema."""

    part: int | None
    plan: str
    sha256: str
    size: int
    v: int = SCHEMA_VERSION

    def block(self) -> bytes:
        return (MAGIC + canonical(asdict(self)).encode()).ljust(BLOCK, b"\0")


def seal(plan_id: str, part: int | None, size: int, body: Iterable[Any]) -> Seal:
    """The seal of a file of `size` bytes of which `body` gives all after the first 512."""
    unsigned = Seal(part, plan_id, "", size)
    return Seal(part, plan_id, _sha256(unsigned, body), size)


def read_seal(path: Path) -> Seal:
    """What the file says it is: its length is checked here, its content is not.

    Raises:
        MapsFileError: not ours, truncated, damaged in its first bytes, or of a newer schema.
    """
    try:
        with path.open("rb") as file:
            return _parse(path, file.read(BLOCK), path.stat().st_size)
    except OSError as error:
        raise MapsFileError(f"{path} cannot be read: {error.strerror or error}.") from None


def read_whole(path: Path) -> tuple[Seal, io.BytesIO | None]:
    """The seal, and the content if it is small enough to be hashed, which then happened on these very bytes.

    Raises:
        MapsFileError: as `read_seal`, or the hash does not match.
    """
    if read_seal(path).size > HASH_AT_ONCE:
        return read_seal(path), None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MapsFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    found = _parse(path, data[:BLOCK], len(data))
    _compare(path, found, [memoryview(data)[BLOCK:]])
    return found, io.BytesIO(data)


def verify(path: Path) -> Seal:
    """Hash the whole file, however large.

    Raises:
        MapsFileError: as `read_whole`.
    """
    found = read_seal(path)
    try:
        with path.open("rb") as file:
            _compare(path, found, steps(file))
    except OSError as error:
        raise MapsFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    return found


def steps(file: Any) -> Iterator[bytes]:
    """All of an open file after the block, a few megabytes at a time."""
    file.seek(BLOCK)
    while data := file.read(_STEP):
        yield data


def _sha256(unsigned: Seal, body: Iterable[Any]) -> str:
    fields = {name: value for name, value in asdict(unsigned).items() if name != "sha256"}
    hasher = hashlib.sha256(canonical(fields).encode() + b"\0")
    for data in body:
        hasher.update(data)
    return hasher.hexdigest()


def _compare(path: Path, found: Seal, body: Iterable[Any]) -> None:
    if _sha256(found, body) != found.sha256:
        raise MapsFileError(f"{path} is damaged: its SHA-256 does not match its content. Restore it or capture again.")


def _parse(path: Path, block: bytes, size: int) -> Seal:
    if block[:8] != MAGIC:
        raise MapsFileError(f"{path} is no maps file of attnprobe: expected {MAGIC!r} first, got {block[:8]!r}.")
    damaged = MapsFileError(f"{path} is damaged or truncated in its first {BLOCK} bytes. Restore it or capture again.")
    try:
        data = json.loads(block[8:].rstrip(b"\0"))
        version = data["v"]
    except (ValueError, TypeError, KeyError):
        raise damaged from None
    require_known_schema(path, version)
    try:
        found = Seal(**data)
    except TypeError:
        raise damaged from None
    if found.block() != block:  # only one spelling is ours
        raise damaged
    if found.size != size:
        raise MapsFileError(f"{path} is truncated or grew: expected {found.size} bytes, got {size}. Restore it.")
    return found
