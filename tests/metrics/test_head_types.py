import math

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import head_types, measure
from attnprobe.metrics.head_types import NEEDS, TYPES, TypeThresholds

GRID = TokenGrid(5, 5, patch=(4, 4))
N = GRID.n_tokens


def one_of_each(images=20, seed=0):
    """One layer with a head of every type that maps can show, in the order of `NAMES`."""
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.arange(25), 5)
    near = (abs(row[:, None] - row) <= 1) & (abs(col[:, None] - col) <= 1)
    maps = np.full((images, 1, len(NAMES), N, N), 1e-3)
    patches = maps[..., 1:, 1:]
    for head, name in enumerate(NAMES):
        if name == "uniform":
            maps[:, 0, head] = 1
        elif name == "class":
            maps[:, 0, head, :, 0] = 1
        elif name == "sink":
            for image in maps[:, 0, head]:
                image[:, rng.integers(1, N)] = 1  # another patch in each image
        elif name == "local":
            patches[:, 0, head] += near
        elif name == "row":
            patches[:, 0, head] += row[:, None] == row
        elif name == "column":
            patches[:, 0, head] += col[:, None] == col
        elif name == "positional":
            patches[:, 0, head] += np.random.default_rng(9).permutation(np.eye(25))
        elif name == "content":
            for image in patches[:, 0, head]:
                image += rng.permutation(np.eye(25))
    return AttentionMaps(torch.from_numpy(maps / maps.sum(-1, keepdims=True)), tuple(map(str, range(images))), GRID)


NAMES = ("uniform", "class", "sink", "local", "row", "column", "positional", "content")


def atlas(maps, *more, **thresholds):
    return head_types(measure([maps], [*NEEDS, "prefix_mass", *more], bootstrap=100), TypeThresholds(**thresholds))


def test_a_head_of_each_type_is_recognised_and_surely_so():
    m = atlas(one_of_each())
    assert m.summary["types"] == [list(NAMES)]
    assert m.axes == ("layer", "head", "type") and m.coords["type"] == list(TYPES)
    assert m.mean.shape == (1, 8, len(TYPES)) and m.settings["bootstrap"] == 100
    for head, name in enumerate(NAMES):
        assert m.mean[0, head, TYPES.index(name)] > 0.95, name
    np.testing.assert_allclose(m.mean.sum(-1), 1)
    assert m.summary["counts"] == {name: int(name in NAMES) for name in TYPES} and m.summary["of"] == 8


def test_a_head_at_a_threshold_is_of_both_types():
    maps = one_of_each()
    values = maps.values.clone()
    values[:10, 0, 0] = values[:10, 0, 3]  # uniform in half of the images, local in the others
    mixed = AttentionMaps(values, maps.image_ids, GRID)
    m = atlas(mixed, uniform=float(np.exp(measure([mixed], ["row_entropy"])["row_entropy"].mean[0, 0]) / N))
    share = m.mean[0, 0]
    assert 0.1 < share[TYPES.index("uniform")] < 0.9 and np.isclose(share.sum(), 1)


def test_few_images_cannot_tell_position_from_content():
    types = atlas(one_of_each(images=4)).summary["types"][0]
    assert types[:6] == list(NAMES[:6]) and types[6:] == ["unknown", "unknown"]
    one = atlas(one_of_each(images=1))
    assert one.settings["bootstrap"] == 1 and set(one.mean.ravel()) == {0.0, 1.0}


def test_a_head_without_a_value_is_unknown_unless_an_earlier_rule_decides():
    maps = one_of_each()
    maps.values[:, 0, 3] = math.nan
    types = atlas(maps).summary["types"][0]
    assert types[3] == "unknown" and types[:3] == list(NAMES[:3]) and types[4:] == list(NAMES[4:])


def test_with_values_a_head_that_adds_nothing_is_dead():
    from dataclasses import replace

    found = measure([one_of_each()], [*NEEDS, "prefix_mass"], bootstrap=20)
    entropy = found["row_entropy"]
    output = np.ones(entropy.per_image.shape)
    output[:, 0, 4] = 0.01
    norm = replace(entropy, metric="head_output_norm", per_image=output, mean=output.mean(0))
    m = head_types({**found, "head_output_norm": norm})
    assert m.summary["types"][0][4] == "dead" and m.summary["types"][0][5] == "column"


def test_rows_and_thresholds_are_settings_and_missing_metrics_are_named():
    assert "row" not in atlas(one_of_each(), line=1.0).summary["types"][0]
    assert atlas(one_of_each(), line=1.0).settings["line"] == 1.0
    with pytest.raises(InputError, match="need own_row_mass, own_column_mass, position_share"):
        head_types(measure([one_of_each()], bootstrap=0))
