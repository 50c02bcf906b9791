import itertools
import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.io.config import from_mapping
from attnprobe.store.layout import DatasetLayout, Layout, StageLayout, chunk_shape, shard_images

MAPS = st.tuples(*(st.integers(1, n) for n in (48, 32, 2000, 2000)))


@given(shape=MAPS, item_bytes=st.sampled_from([2, 4]))
@settings(max_examples=200, deadline=None)
def test_chunks_are_at_most_4_mib_fit_the_shape_and_hold_whole_rows(shape, item_bytes):
    images, *rest = chunk_shape(shape, item_bytes)
    assert rest[-1] == shape[-1], "a row over the keys is never cut"
    assert all(1 <= c <= n for c, n in zip(rest, shape, strict=True))
    assert item_bytes * images * math.prod(rest) <= 4 << 20
    assert images & (images - 1) == 0, "a power of two"


def test_chunks_of_known_models():
    assert chunk_shape((16, 12, 197, 197), 2) == (1, 1, 12, 197, 197)
    assert chunk_shape((24, 16, 1025, 1025), 2) == (1, 1, 1, 1025, 1025)
    assert chunk_shape((24, 16, 4097, 4097), 2) == (1, 1, 1, 456, 4097)
    assert chunk_shape((16, 3, 17, 17), 2) == (8, 16, 3, 17, 17)
    assert chunk_shape((16, 6, 65, 65), 2) == (1, 4, 6, 65, 65)


@pytest.mark.parametrize("shape", [(16, 3, 17, 17), (12, 6, 65, 65), (5, 2, 7, 7), (1, 1, 1, 1), (16, 12, 50, 50)])
def test_small_maps_share_a_chunk_until_it_is_worth_its_index_entry(shape):
    chunk = chunk_shape(shape, 2)
    n_bytes = 2 * math.prod(chunk)
    assert n_bytes <= 256 << 10 and (n_bytes > 64 << 10 or chunk[0] == 256)
    assert chunk[0] == 1 or chunk[1:] == shape, "images join only when all layers have"


def test_corners_cover_every_element_once():
    layout = DatasetLayout("weights", (5, 4, 6, 7), (2, 2, 3, 4, 7), True, True)
    covered = [
        place
        for corner in layout.corners()
        for place in itertools.product(
            *(range(s, min(s + c, n)) for s, c, n in zip(corner, layout.chunk[1:], layout.shape, strict=True))
        )
    ]
    assert sorted(covered) == sorted(itertools.product(*map(range, layout.shape)))
    assert layout.n_chunks(5) == 3 * len(list(layout.corners()))


@given(image_bytes=st.integers(1, 2**32), power=st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_a_shard_is_whole_chunks_of_at_most_1024_images_and_128_mb(image_bytes, power):
    together = 2**power
    images = shard_images(image_bytes, together)
    assert images % together == 0 and 1 <= images <= 1024
    assert images == together or images * image_bytes <= 128e6


def test_json_gives_the_same_layout_back():
    weights = DatasetLayout("weights", (3, 2, 7, 7), (4, 3, 2, 7, 7), True, False)
    tokens = DatasetLayout("tokens", (3, 7, 8), (4, 3, 7, 8), False, False)
    stage = StageLayout("trunk", "self", ("a", "b", "c"), 2, 3, ("cls",), (4, 4), (weights, tokens))
    layout = Layout("float16", 4, 1234, (stage, replace(stage, name="class")))
    assert from_mapping(Layout, json.loads(json.dumps(asdict(layout)))) == layout
    assert stage.dimensions == {"layer": 3, "head": 2, "query": 7, "key": 7, "token": 7, "width": 8}
