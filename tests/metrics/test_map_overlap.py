import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import map_overlap, map_overlap_matched, measure
from attnprobe.metrics.map_overlap import compared_with


def measured(values, *metrics):
    ids = tuple(map(str, range(len(values))))
    return measure([AttentionMaps(values, ids, TokenGrid(1, values.shape[-1] - 1))], metrics, bootstrap=20)


def slow(a, b):
    """Share of two maps [head, query, key] that goes the same way, row by row."""
    return (
        np.mean([min(p, q) for x, y in zip(a.flatten(), b.flatten(), strict=True) for p, q in [(x, y)]]) * a.shape[-1]
    )


def test_it_is_the_mean_of_the_smaller_entries_summed_over_keys(soft):
    maps = soft(2, 4, 3, 6, 6)
    found = map_overlap(maps, every=1).numpy()
    for image in range(2):
        for block in range(4):
            for other in range(4):
                expected = slow(maps[image, block].numpy(), maps[image, other].numpy())
                assert found[image, block, other] == pytest.approx(expected, abs=1e-12)


def test_equal_maps_overlap_fully_and_those_without_a_common_key_not_at_all():
    keys = torch.arange(8)
    one, other = torch.eye(8)[keys], torch.eye(8)[(keys + 1) % 8]
    maps = torch.stack([one, one, other])[None, :, None]
    assert map_overlap(maps)[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_a_floor_of_tiny_weights_has_no_say():
    """95 % of the mass on unrelated keys: the equal floor, which most columns are, adds its 5 % and no more."""
    maps = torch.full((1, 2, 1, 10, 60), 0.05 / 58)
    maps[0, 0, :, :, 0] = maps[0, 1, :, :, 1] = 0.95
    assert map_overlap(maps)[0, 0, 1].item() == pytest.approx(0.05, abs=0.002)


def test_blocks_that_are_no_neighbours_are_compared_at_every_fifth_query(soft):
    maps = soft(1, 3, 2, 11, 11)
    found, all_queries = map_overlap(maps), map_overlap(maps, every=1)
    some = map_overlap(maps[..., ::5, :], every=1)
    assert found[0, 0, 1] == all_queries[0, 0, 1] != some[0, 0, 1]
    assert found[0, 0, 2] == pytest.approx(some[0, 0, 2].item(), abs=1e-12)


def test_maps_of_any_sign_and_scale_have_one_too(signed):
    maps = signed(2, 3, 2, 7, 7)
    found = map_overlap(maps)
    torch.testing.assert_close(map_overlap(5 * maps), found)
    assert ((found >= -1e-12) & (found <= 1)).all()
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(2, 3).double())


@pytest.mark.parametrize(
    ("compare", "partners"), [("previous", [0, 1, 2]), ("first", [0, 0, 0]), ("earlier", [0, 0, 1])]
)
def test_the_summary_compares_with_the_block_that_was_asked_for(soft, compare, partners):
    two = soft(4, 2, 2, 9, 9)
    maps = torch.stack([two[:, 0], two[:, 1], two[:, 0], two[:, 1]], 1)  # A, B, A, B
    m = measured(maps, map_overlap.with_settings(compare=compare))["map_overlap"]
    assert m.summary["compared_with"] == [None, *(p + 1 for p in partners)]
    expected = [m.mean[block, partner] for block, partner in enumerate(partners, 1)]
    assert m.summary["overlap"] == [None, *expected]
    assert compared_with(m.mean, compare) == partners


def test_of_equally_near_blocks_the_nearest_is_meant():
    assert compared_with(np.ones((4, 4)), "earlier") == [0, 1, 2]
    assert compared_with(np.full((3, 3), np.nan), "earlier") == [0, 1]


def test_matched_heads_find_a_permutation_and_nothing_in_unrelated_maps(soft):
    one = soft(3, 1, 4, 12, 12)
    permuted = torch.cat([one, one[:, :, [2, 0, 3, 1]]], 1)
    torch.testing.assert_close(map_overlap_matched(permuted)[:, 1], torch.ones(3).double())
    assert (map_overlap(permuted)[:, 0, 1] < 0.5).all()
    unrelated = soft(3, 2, 4, 12, 12)
    assert (map_overlap_matched(unrelated)[:, 1] < 0.5).all() and (map_overlap_matched(unrelated)[:, 0] == 0).all()


def test_matching_anything_makes_it_no_smaller_where_heads_are_in_order(soft):
    maps = soft(2, 1, 4, 10, 10).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(map_overlap_matched(maps)[:, 1:], torch.ones(2, 2).double())


@pytest.mark.parametrize("metric", [map_overlap, map_overlap_matched])
def test_no_queries_at_all_are_refused(metric, soft):
    with pytest.raises(InputError, match="every=0 must be 1"):
        metric(soft(1, 2, 1, 4, 4), every=0)
