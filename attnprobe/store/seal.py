"""The seal of a file, by which it is known to be ours and whole before libhdf5 reads it.

The first 512 bytes, which HDF5 leaves to us (its "user block"): a magic number, then canonical JSON

    {"data": [[start, stop], ...], "outside": ..., "part": 3, "plan": <plan_id>, "sha256": ..., "size": ..., "v": 1}

padded with zeros; part is null in a merged file. "sha256" is over that JSON with both hashes empty, a zero byte, and
everything after the block, so every byte of the file is covered. Merged files may be too large to do that whenever
they are opened, so they have "outside" as well: over that JSON, only itself empty, a zero byte, and all that is not in
the ranges "data", which hold nothing but compressed chunks, each with a checksum of its own. (With checks of structure
in its place, libhdf5 looped forever on 21 of 7,000 files with one bit flipped, all in the heap of strings.) A hash
proves damage, not origin: see `structure`.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from attnprobe.core.errors import MapsFileError
from attnprobe.io import fs
from attnprobe.io.config import from_mapping
from attnprobe.store.layout import SCHEMA_VERSION
from attnprobe.store.opening import ANY_SIZE
from attnprobe.store.plan import canonical, require_known_schema

BLOCK = 512
MAGIC = b"ATPROBE\x01"
HASH_AT_ONCE = 256 << 20
"""Files up to this size are hashed whole whenever they are opened."""
MOST_RANGES = 4

_STEP = 8 << 20


@dataclass(frozen=True, slots=True)
class Seal:
    """Content of the first 512 bytes. `part`: number of the shard, None in a merged file; `v`: the schema."""

    part: int | None
    plan: str
    size: int
    data: tuple[tuple[int, int], ...] = ()
    sha256: str = ""
    outside: str = ""
    v: int = SCHEMA_VERSION

    def block(self) -> bytes:
        """The first bytes of the file."""
        block = (MAGIC + canonical(asdict(self)).encode()).ljust(BLOCK, b"\0")
        assert len(block) == BLOCK, "two hashes, an id and a few ranges fit"
        return block


def seal_shard(plan_id: str, part: int, file: memoryview) -> Seal:
    """The seal of a shard, from its bytes."""
    unsigned = Seal(part, plan_id, len(file))
    return replace(unsigned, sha256=_sha256(unsigned, [file[BLOCK:]]))


def seal_merged(plan_id: str, file: BinaryIO, chunks: Iterable[tuple[int, int]]) -> Seal:
    """The seal of an open merged file, whose chunks lie in the ranges `chunks`, start and stop."""
    largest = sorted(sorted(joined(chunks), key=lambda r: r[0] - r[1])[:MOST_RANGES])  # the others count as outside
    unsigned = Seal(None, plan_id, file.seek(0, io.SEEK_END), tuple(largest))
    signed = replace(unsigned, sha256=_sha256(unsigned, _steps(file, unsigned, skip=False)))
    return replace(signed, outside=_sha256(signed, _steps(file, signed, skip=True)))


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges in order, those that touch made one."""
    result: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if result and start == result[-1][1]:
            start = result.pop()[0]
        result.append((start, stop))
    return result


def read_seal(path: Path) -> Seal:
    """The seal of a file: its length is checked here, its content is not.

    Raises:
        MapsFileError: not ours, truncated, damaged in its first bytes, or of a newer schema.
    """
    with _readable(path), fs.open_regular(path, ANY_SIZE) as file:
        return _parse(path, file.read(BLOCK), file.seek(0, io.SEEK_END))


def read_checked(path: Path) -> tuple[Seal, io.BytesIO | None]:
    """The seal of a file whose hash is right; and its content, if small, so that what was hashed is what is used.

    Raises:
        MapsFileError: as `read_seal`, or the hash does not match.
    """
    seal = read_seal(path)
    if seal.size > HASH_AT_ONCE:
        return verify(path, whole=seal.part is not None), None
    with _readable(path):
        content = io.BytesIO(fs.read_regular(path, HASH_AT_ONCE))
    seal = _parse(path, content.read(BLOCK), content.getbuffer().nbytes)
    _compare(path, seal, content, whole=True)
    return seal, content


def verify(path: Path, *, whole: bool = True) -> Seal:
    """Hash the file on the disk, or only all that is outside its chunks.

    Raises:
        MapsFileError: as `read_checked`.
    """
    seal = read_seal(path)
    with _readable(path), fs.open_regular(path, ANY_SIZE) as file:
        _compare(path, seal, file, whole=whole)
    return seal


def _steps(file: BinaryIO, seal: Seal, skip: bool) -> Iterator[bytes]:
    """All of a file after the block, a few megabytes at a time; without its ranges of chunks if `skip`."""
    edges = [BLOCK, *(edge for r in seal.data if skip for edge in r), seal.size]
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        file.seek(start)
        while start < stop and (data := file.read(min(_STEP, stop - start))):
            start += len(data)
            yield data


def _sha256(seal: Seal, body: Iterable[Any]) -> str:
    hasher = hashlib.sha256(canonical(asdict(seal)).encode() + b"\0")
    for data in body:
        hasher.update(data)
    return hasher.hexdigest()


def _compare(path: Path, seal: Seal, file: BinaryIO, *, whole: bool) -> None:
    signed = replace(seal, outside="")
    outside = _sha256(signed, _steps(file, seal, skip=True)) if seal.part is None else ""
    unsigned = replace(signed, sha256="")
    if outside != seal.outside or (whole and _sha256(unsigned, _steps(file, seal, skip=False)) != seal.sha256):
        raise MapsFileError(f"{path} is damaged: its SHA-256 does not match its content. Restore it or capture again.")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MapsFileError(f"{path} cannot be read: {error.strerror or error}.") from None


def _in_its_place(path: Path, block: bytes) -> str:
    """What a file is that holds no maps, and how to make some."""
    if block.startswith((b"PK", b"\x80")) or path.suffix == ".safetensors":
        return (
            f"is no maps file but a model's weights, it seems: capture its maps first, `attnprobe capture {path} "
            "--data FOLDER -o maps.h5`, and name its model where the file does not say it."
        )
    what = "HDF5 of another program" if block.startswith(b"\x89HDF") else "something else" if block else "empty"
    return (
        f"is no maps file of attnprobe but {what}. Make maps of a model with `attnprobe capture`, of saved arrays with "
        "`attnprobe import`."
    )


def _parse(path: Path, block: bytes, size: int) -> Seal:
    if block[:8] != MAGIC:
        raise MapsFileError(f"{path} {_in_its_place(path, block)}")
    damaged = MapsFileError(f"{path} is damaged or truncated in its first {BLOCK} bytes. Restore it or capture again.")
    try:
        data = fs.parse_json(block[8:].rstrip(b"\0"))
        version = data["v"]
    except (ValueError, TypeError, KeyError):
        raise damaged from None
    require_known_schema(path, version)
    try:
        seal = from_mapping(Seal, data)
        edges = [edge for start_stop in seal.data for edge in start_stop]
        if edges != sorted(edges) or not all(BLOCK <= edge <= seal.size for edge in edges) or (seal.part or 0) < 0:
            raise damaged
    except (TypeError, ValueError, KeyError, OverflowError):
        raise damaged from None
    if (MAGIC + canonical(asdict(seal)).encode()).ljust(BLOCK, b"\0") != block:  # only one spelling is ours
        raise damaged
    if seal.size != size:
        raise MapsFileError(f"{path} is truncated or grew: expected {seal.size} bytes, got {size}. Restore it.")
    return seal
