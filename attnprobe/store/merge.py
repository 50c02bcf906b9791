"""One NAME.h5 made from the shards of NAME.parts.

libhdf5 writes the merged file, and on a full disk it would crash the process that does so. So that happens
in a child, `python -m attnprobe.store.merge PARTS TARGET`, into a temporary file; chunks are copied as they
are, compressed, and read back afterwards. The parent seals and commits the file.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from attnprobe.core.errors import WorkError
from attnprobe.io import fs
from attnprobe.io.remote import place
from attnprobe.store import hdf5, structure
from attnprobe.store.opening import open_hdf5
from attnprobe.store.parts import open_shard, read_certificate
from attnprobe.store.plan import Pinned, read_plan
from attnprobe.store.seal import BLOCK, joined, seal_merged


def merge(folder: Path, final: Path, pinned: Pinned, *, overwrite: bool) -> None:
    """Commit `final` from all shards of `folder`, which stay.

    Raises:
        FileExistsError: `final` is there and `overwrite` is False.
        MapsFileError: a shard is damaged.
        WorkError: the child failed, most often for want of space.
        OSError: the disk failed afterwards.
    """
    temporary = fs.temporary_in(folder)
    try:
        chunks = _run_child(folder, temporary)
        # The seal last: a file without one is not ours, so a merge that died in between cannot pass for a result.
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            with open(descriptor, "rb", closefd=False) as file:
                seal = seal_merged(pinned.plan_id, file, chunks)
            os.lseek(descriptor, 0, os.SEEK_SET)
            fs.write(descriptor, seal.block(), temporary)
            fs.fsync(descriptor, temporary)
        finally:
            os.close(descriptor)
        fs.publish(temporary, final, overwrite=overwrite)
    except BaseException:
        with suppress(OSError):
            fs.unlink(temporary)
        raise


def _run_child(folder: Path, target: Path) -> list[tuple[int, int]]:
    """Make `target`; returns where its chunks are, start and stop."""
    import attnprobe

    root = str(Path(attnprobe.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-P", "-m", "attnprobe.store.merge", str(folder.resolve()), str(target.resolve())]
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=same) as child:
        assert child.stdout is not None
        try:
            output = child.stdout.read()  # not communicate(): it would close stdin, by which the child knows we live
            child.wait()
        except BaseException:
            child.kill()
            raise
    last = (output.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
    if child.returncode:
        raise WorkError(
            f"merging the shards of {folder} failed: {last}. The shards stay; run the same command again, after "
            "freeing space if that was it."
        )
    return json.loads(last)


def _copy(folder: Path, target: Path) -> list[tuple[int, int]]:
    pinned, ids, _ = read_plan(folder)
    outcomes: dict[str, list[np.ndarray]] = {name: [] for name in hdf5.OUTCOMES}
    copied: list[tuple[str, tuple[int, ...], int]] = []
    merged: Any = hdf5.create(target, pinned, ids, certificate=read_certificate(folder))
    for number in range(pinned.n_shards):
        shard: Any
        with open_shard(folder, number, pinned.plan_id) as shard:
            for name, column in outcomes.items():
                there = shard[f"images/{name}"][:] if name in shard["images"] else None
                unknown = np.full(shard.attrs["n_images"], hdf5.UNKNOWN[name], hdf5.OUTCOMES[name])
                column.append(unknown if there is None else there)
            for path, here, there in _chunks(pinned, shard):
                data = shard[path].id.read_direct_chunk(here)[1]
                merged[path].id.write_direct_chunk(there, data)
                copied.append((path, there, zlib.crc32(data)))
    for name, column in outcomes.items():
        merged[f"images/{name}"][:] = np.concatenate(column)
    merged.close()
    with open_hdf5(target) as merged, target.open("rb") as raw:
        return joined(
            _found(raw, merged[path].id.get_chunk_info_by_coord(there), checksum) for path, there, checksum in copied
        )


def _found(raw: BinaryIO, chunk: Any, checksum: int) -> tuple[int, int]:
    """Start and stop of a chunk in the file, after it was read back."""
    for begin in (0, BLOCK):  # HDF5 before 1.14 counts from the end of the user block
        raw.seek(begin + chunk.byte_offset)
        if zlib.crc32(raw.read(chunk.size)) == checksum:
            return begin + chunk.byte_offset, begin + chunk.byte_offset + chunk.size
    raise OSError(f"the chunk at {chunk.chunk_offset} was not written as it was read")


def _chunks(pinned: Pinned, shard: Any) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Every chunk of a shard: dataset, where it begins in the shard, where in the merged file."""
    first = int(shard.attrs["first_image"])
    for path, layout in structure.datasets(pinned):
        for image in range(0, int(shard.attrs["n_images"]), layout.chunk[0]):
            for corner in layout.corners():
                yield path, (image, *corner), (first + image, *corner)


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main(arguments: list[str]) -> None:
    """The child: a finished file, where its chunks are as JSON, and exit status 0; or one line and 1."""
    folder, target = place(arguments[0]), Path(arguments[1])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    status = 0
    try:
        print(json.dumps(_copy(folder, target)), flush=True)
    except BaseException as error:
        full = shutil.disk_usage(target.parent).free < 1 << 20  # libhdf5 often loses the error number on its way
        print("no space left on the disk" if full else " ".join(str(error).split()), flush=True)
        status = 1
    os._exit(status)  # after a failed write libhdf5 would crash in its own clean-up


if __name__ == "__main__":
    main(sys.argv[1:])
