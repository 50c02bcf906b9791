import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.grid import TokenGrid
from attnprobe.view.embedded import Detail, embed
from attnprobe.view.packing import largest_error
from tests.view.arrays import unpack, viewed

PLENTY = 5_000_000


def unpacked(embedded, name, shapes, signed=False):
    """The maps of one image as the page gets them, of heads [layer, head, query, key], of means [layer, query, key]."""
    data = zlib.decompress(base64.b64decode(embedded.maps[name]))
    rows = [int(np.prod(shape[:-1])) for shape in shapes]
    largest = np.frombuffer(data, np.uint16, 2 * sum(rows)).reshape(-1, 2)
    codes = np.frombuffer(data, np.uint8, offset=4 * sum(rows))
    assert codes.size == sum(map(np.prod, shapes))
    parts, row, code = [], 0, 0
    for n, shape in zip(rows, shapes, strict=True):
        size = int(np.prod(shape))
        scales = largest[row : row + n].reshape(*shape[:-1], 2)
        parts.append(unpack(scales, codes[code : code + size].reshape(shape), 1, signed))
        row, code = row + n, code + size
    return parts


@pytest.mark.parametrize(("site", "number"), [("weights", 0), ("effective", 1)])
def test_what_is_packed_is_what_was_stored(site, number):
    run = viewed(effective=True)
    embedded = embed([run], ["val/2", "val/0"], {}, PLENTY)
    stored = run.maps.values["trunk", site][2]
    (came,) = unpacked(embedded, f"0-0-0-{number}", [stored.shape], signed=site == "effective")
    largest = abs(stored).max(-1, keepdims=True)
    assert (abs(came - stored) <= 1.01 * largest_error(site == "effective") * largest).all()
    assert [image["id"] for image in embedded.index["images"]] == ["val/2", "val/0"]
    assert set(embedded.maps) == {f"{image}-0-0-{site}" for image in (0, 1) for site in (0, 1)}


def test_several_runs_share_images_and_one_that_lacks_an_image_says_so():
    runs = [viewed("a"), viewed("b", images=1)]
    embedded = embed(runs, ["val/0", "val/1"], {"val/0": "data:,x"}, PLENTY)
    assert set(embedded.maps) == {"0-0-0-0", "0-1-0-0", "1-0-0-0"}
    first, second = embedded.index["images"]
    assert first["src"] == "data:,x" and second["src"] == ""
    assert first["told"] == [{"label": "one", "prediction": "two", "probability": 0.5}] * 2
    assert second["told"][1] is None


def test_images_go_first_then_heads_then_blocks_and_the_page_says_so():
    run = viewed(images=6, layers=16, heads=6, rows=6, cols=6)
    everything = embed([run], run.maps.image_ids, {}, PLENTY)
    size = sum(map(len, everything.maps.values()))
    assert everything.index["everyHead"] and len(everything.index["images"]) == 6
    assert not [note for note in everything.index["notes"] if "left out" in note]

    def at(share):
        found = embed([run], run.maps.image_ids, {}, int(share * size))
        assert sum(map(len, found.maps.values())) <= share * size
        return found.index, " ".join(found.index["notes"])

    index, notes = at(0.6)
    assert index["everyHead"] and len(index["images"]) == 3 and "3 of 6 images were left out" in notes
    index, notes = at(0.3)
    assert not index["everyHead"] and "only the mean of the heads" in notes and "one block" not in notes
    index, notes = at(0.02)
    assert index["runs"][0]["stages"][0]["blocks"] == [1, 5, 9, 13] and "one block in 4" in notes
    assert embed([run], run.maps.image_ids, {}, 500) is None


def test_where_heads_are_left_out_the_class_token_keeps_them():
    run = viewed(images=2, layers=3, heads=4, rows=5, cols=5)
    stored = run.maps.values["trunk", "weights"][0]
    size = sum(map(len, embed([run], run.maps.image_ids, {}, PLENTY).maps.values()))
    embedded = embed([run], run.maps.image_ids, {}, int(0.5 * size))
    of_heads, means = unpacked(embedded, "0-0-0-0", [(3, 4, 1, 26), (3, 26, 26)])
    np.testing.assert_allclose(of_heads, stored[:, :, :1], atol=0.005)
    np.testing.assert_allclose(means, stored.mean(1), atol=0.005)


def test_stages_that_cannot_be_drawn_are_left_out_in_words():
    runs = [viewed("swin", kind="window"), viewed("vit")]
    embedded = embed(runs, ["val/0"], {}, PLENTY)
    assert [run["name"] for run in embedded.index["runs"]] == ["vit"]
    assert any("stage trunk of swin" in note and "'window'" in note for note in embedded.index["notes"])
    assert embed(runs[:1], ["val/0"], {}, PLENTY) is None
    assert embed(runs, ["elsewhere"], {}, PLENTY) is None


def test_details_get_poorer():
    from attnprobe.view.embedded import DETAILS

    assert DETAILS[0] == Detail(every_head=True, every=1)
    assert [d.every for d in DETAILS] == sorted(d.every for d in DETAILS)


@pytest.mark.parametrize("every_head", [True, False])
def test_scattered_tokens_are_laid_out_over_all_patches(every_head):
    run = viewed(images=1, rows=2, cols=2)
    positions = (7, -1, 0, 5, 2)  # of 2 x 4 patches
    shape = replace(run.maps.shapes()[0], grid=TokenGrid(2, 4, positions=positions))
    run.maps._shapes = (shape,)
    budget = sum(map(len, embed([run], run.maps.image_ids, {}, PLENTY).maps.values())) - 1
    embedded = embed([run], run.maps.image_ids, {}, PLENTY if every_head else budget)
    stage, stored = embedded.index["runs"][0]["stages"][0], run.maps.values["trunk", "weights"][0]
    assert (stage["queries"], stage["absent"]) == ([0, 1, 3, 6, 8], [2, 4, 5, 7])
    whole = np.full((4, 2, 9, 9), np.nan)
    whole[..., [8, 0, 1, 6, 3], :] = shape.grid.laid_out(stored)
    expected = whole[:, :, stage["queries"]]
    assert embedded.index["everyHead"] == every_head
    if every_head:
        (came,) = unpacked(embedded, "0-0-0-0", [expected.shape])
    else:
        _, came = unpacked(embedded, "0-0-0-0", [(4, 2, 1, 9), (4, 5, 9)])
        expected = expected.mean(1)
    np.testing.assert_allclose(came, expected, rtol=0, atol=1.01 * largest_error(False) * stored.max())
