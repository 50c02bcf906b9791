"""A capture without a model: maps that are there already go into a file, as `pipeline` would write them."""

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
