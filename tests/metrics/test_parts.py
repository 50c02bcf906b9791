"""Of some of the layers, heads or queries a metric tells what it tells of all, or refuses; numbers stay true."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, Part, TokenGrid
from attnprobe.metrics import METRICS, measure
from attnprobe.reports.numbers import neighbours
from attnprobe.store import CapturePlan, MapWriter, open_maps

IDS, LAYERS, HEADS, TOKENS = ("a", "b"), 4, 3, 10


@pytest.fixture
def whole():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(2, LAYERS, *shape, generator=generator, dtype=torch.float64)

    return AttentionMaps(
        (3 * normal(HEADS, TOKENS, TOKENS)).softmax(-1),
        IDS,
        TokenGrid(3, 3),
        tokens=normal(TOKENS, 8),
        value_vectors=normal(HEADS, TOKENS, 4),
    )


def of_queries(maps, kept):
    return replace(maps, values=maps.values[..., list(kept), :], part=Part(queries=tuple(kept)))


def of_layers(maps, kept):
    at = list(kept)
    return replace(maps, values=maps.values[:, at], tokens=maps.tokens[:, at], value_vectors=maps.value_vectors[:, at],
                   part=Part(layers=tuple(kept)))  # fmt: skip


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_of_some_queries_a_metric_is_a_mean_of_rows_or_refuses(metric, whole):
    first, rest = of_queries(whole, range(4)), of_queries(whole, range(4, TOKENS))
    if "maps" in metric.parameters and not metric.by_row:
        assert "queries" in metric.refusal(first)
        return
    if metric.by_row:
        both = 0.4 * metric.per_image(first) + 0.6 * metric.per_image(rest)
        torch.testing.assert_close(both, metric.per_image(whole))


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_of_some_layers_a_metric_is_that_part_of_all_or_refuses(metric, whole):
    kept = (0, 2, 3)
    some = of_layers(whole, kept)
    if metric.needs_all_layers:
        assert "layers" in metric.refusal(some)
        return
    expected = metric.per_image(whole)
    for axis in (i + 1 for i, name in enumerate(metric.axes) if name == "layer"):
        expected = expected.index_select(axis, torch.tensor(kept))
    torch.testing.assert_close(metric.per_image(some), expected)


def of_heads(maps, kept):
    at = list(kept)
    return replace(maps, values=maps.values[:, :, at], value_vectors=maps.value_vectors[:, :, at],
                   part=Part(heads=tuple(kept)))  # fmt: skip


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_of_some_heads_a_metric_is_that_part_of_all_or_says_which_or_refuses(metric, whole):
    kept = (0, 2)
    some = of_heads(whole, kept)
    if metric.needs_all_heads:
        assert "heads" in metric.refusal(some)
        return
    expected = metric.per_image(whole)
    if "head" not in metric.axes and "maps" in metric.parameters:  # a mean over the heads that are there
        settings = measure([some], [metric], bootstrap=0)[metric.name].settings
        assert settings["heads"] == [1, 3]
        return
    for axis in (i + 1 for i, name in enumerate(metric.axes) if name == "head"):
        expected = expected.index_select(axis, torch.tensor(kept))
    torch.testing.assert_close(metric.per_image(some), expected)


def test_maps_averaged_over_some_heads_are_not_taken_for_the_mean_map(whole):
    with pytest.raises(InputError, match="capture all heads"):
        measure([of_heads(whole, (0,))], ["similar_blocks:pool=head_mean_map"])
    assert "similar_blocks" in measure([of_heads(whole, (0,))], ["similar_blocks"], bootstrap=0)


def test_blocks_and_heads_keep_their_numbers_and_settings_say_what_was_kept(whole):
    maps = replace(of_layers(whole, (0, 2, 3)), values=whole.values[:, [0, 2, 3]][:, :, [1]],
                   value_vectors=None, part=Part((0, 2, 3), (1,)))  # fmt: skip
    found = measure([maps], ["layer_similarity", "row_entropy"], bootstrap=0)
    cosine, entropy = found["layer_similarity"], found["row_entropy"]
    assert cosine.coords == {"layer": [1, 3, 4]} and entropy.coords == {"layer": [1, 3, 4], "head": [2]}
    assert entropy.settings["layers"] == [1, 3, 4] and entropy.settings["heads"] == [2]
    assert np.argwhere(neighbours(cosine)).tolist() == [[1, 2]], "block 1 has no neighbour here"


def test_asking_in_vain_says_what_to_capture(whole):
    with pytest.raises(InputError, match="capture queries='all'"):
        measure([of_queries(whole, (0,))], ["layer_similarity"])
    with pytest.raises(InputError, match="capture all layers"):
        measure([of_layers(whole, (0, 2))], ["similar_blocks"])


def test_a_file_says_which_part_it_holds(tmp_path, whole):
    part = Part((1, 3), (0, 2), (0, 5))
    some = replace(whole, values=whole.values[:, [1, 3]][:, :, [0, 2]][..., [0, 5], :].float(), part=part,
                   tokens=None, value_vectors=None)  # fmt: skip
    with MapWriter(tmp_path / "maps.h5", CapturePlan(image_ids=IDS, model="vit"), dtype="float32") as writer:
        writer.append([some])
    reader = open_maps(tmp_path / "maps.h5")
    assert reader.maps().part == part and torch.equal(reader.maps().values, some.values)
    assert next(iter(reader)).part == part
