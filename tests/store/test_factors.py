"""Queries and keys in place of maps: the file is smaller, and the maps come back as they were."""

from dataclasses import replace

import h5py
import pytest
import torch

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.store import open_maps
from tests.store.capturing import capture


@pytest.fixture
def maps():
    """Softmax maps of 5 images, 2 layers, 3 heads of width 4 and 26 tokens, and what they are made of."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(5, 2, 3, 26, 4, generator=generator) for _ in range(2))
    weights = (3 * queries @ keys.mT).softmax(-1)
    ids = tuple(f"image{i}" for i in range(5))
    return AttentionMaps(weights, ids, TokenGrid(5, 5), layers=("a", "b"), factors=(3 * queries, keys))


def test_maps_come_back_from_their_queries_and_keys(tmp_path, maps, small_shards):
    small = capture(tmp_path / "small.h5", [maps], dtype="float32", batch=2)
    whole = capture(tmp_path / "whole.h5", [replace(maps, factors=None)], dtype="float32")
    assert small.stat().st_size < whole.stat().st_size / 1.5
    with open_maps(small) as ours, open_maps(whole) as theirs:
        assert ours.sites() == theirs.sites() == ("weights",) and ours.shapes() == theirs.shapes()
        for site in ("weights", "effective"):
            torch.testing.assert_close(ours.maps(site=site).values, theirs.maps(site=site).values, rtol=0, atol=1e-6)
        some, alike = ours.maps(images=[3, 1]), theirs.maps(images=[3, 1])
        torch.testing.assert_close(some.values, alike.values, rtol=0, atol=1e-6)
        assert some.is_effective and some.stochastic and some.image_ids == alike.image_ids
        assert torch.equal(some.factors[0], maps.factors[0][[3, 1]])
        assert abs(ours.layer("trunk", "weights", 4, 1) - theirs.layer("trunk", "weights", 4, 1)).max() < 1e-6
        assert torch.equal(torch.cat([m.values for m in ours]), ours.maps().values)


def test_anyone_can_make_them(tmp_path, maps):
    with h5py.File(capture(tmp_path / "maps.h5", [maps], dtype="float32")) as file:
        stage = file["stages/trunk"]
        assert "weights" not in stage and stage["queries"].dims[3][0] == stage["query"]
        scores = torch.from_numpy(stage["queries"][2, 1] @ stage["keys"][2, 1].swapaxes(-1, -2))
        torch.testing.assert_close(scores.softmax(-1), maps.values[2, 1])


def test_they_are_kept_as_they_are_and_of_nothing_but_a_softmax(tmp_path, maps):
    with pytest.raises(InputError, match="dtype='float32'"):
        capture(tmp_path / "a.h5", [maps])
    with pytest.raises(InputError, match="softmax maps that multiply V"):
        capture(tmp_path / "b.h5", [replace(maps, is_effective=False)], dtype="float32")
    queries, keys = maps.factors
    with pytest.raises(ShapeError, match="factors must be of shapes"):
        capture(tmp_path / "c.h5", [replace(maps, factors=(queries[:, :, :, 1:], keys))], dtype="float32")


def test_scores_are_stored_beside_them_with_all_that_is_hidden(tmp_path, maps):
    queries, keys = maps.factors
    hidden = torch.ones(26, 26).triu(1).bool()
    scores = (queries @ keys.mT).masked_fill(hidden, -torch.inf)
    also = replace(maps, values=scores, site="scores", stochastic=False, is_effective=False)
    with open_maps(capture(tmp_path / "maps.h5", [maps, also], dtype="float32")) as reader:
        assert reader.sites() == ("weights", "scores")
        assert torch.equal(reader.maps(site="scores").values, scores)
        torch.testing.assert_close(reader.maps().values, maps.values)
    plain = [replace(m, factors=None) for m in (maps, also)]
    with open_maps(capture(tmp_path / "bf16.h5", plain)) as reader:
        assert torch.equal(reader.maps(site="scores").values, scores.bfloat16().float())
