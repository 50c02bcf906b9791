"""A capture without a model: maps that are there already go into a file, as `pipeline` would write them."""

import os

from attnprobe.store import CapturePlan, MapWriter
from attnprobe.store import layout as layout_module

CERTIFICATE = {"output_equal": True}


def plan_for(maps, **fields):
    fields = {"model": "vit", "config": {"depth": 3, "heads": 2}, "settings": {"what": ["weights"]}, **fields}
    return CapturePlan(image_ids=maps[0].image_ids, **fields)


def capture(path, maps, *, plan=None, batch=3, **options):
    """Append every pending image of `maps`, all stages and sites together, in batches; returns what close gave."""
    with MapWriter(path, plan or plan_for(maps), **options) as writer:
        for positions in writer.pending():
            for start in range(positions.start, positions.stop, batch):
                stop = min(start + batch, positions.stop)
                writer.append([m.images(start, stop) for m in maps])
        return writer.close(CERTIFICATE)


def shrink_shards(monkeypatch, images_bytes=2400):
    """Chunks of a few small images, and one chunk of images per shard."""
    monkeypatch.setattr(layout_module, "SEVERAL_MAPS", images_bytes)
    monkeypatch.setattr(layout_module, "SHARD_BYTES", 1)


def forked(work):
    """Wait status of a copy of this process that does `work`, and what it said: "" or the kind and text of an error.

    It has torch loaded already: a fresh process would need seconds for that.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as said:
        text = said.read().decode()
    return os.waitpid(child, 0)[1], text
