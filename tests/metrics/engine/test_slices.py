"""Slices of images, measured by anybody at any time, are measured as all at once, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnprobe.core.maps import Part
from attnprobe.metrics import measure
from attnprobe.metrics.engine.slices import layers_and_grid, measure_slice, measure_slices

NAMES = ("row_entropy", "layer_similarity", "similar_blocks", "head_divergence", "map_cka", "prefix_mass")


def same(a, b):
    assert a.keys() == b.keys()
    for name, m in a.items():
        other = b[name]
        for field in ("mean", "std", "ci", "per_image"):
            np.testing.assert_array_equal(getattr(m, field), getattr(other, field))
        assert (m.summary, m.settings, m.coords, m.image_ids) == (
            other.summary, other.settings, other.coords, other.image_ids)  # fmt: skip
        assert (m.n_images, m.n_excluded, m.not_finite) == (other.n_images, other.n_excluded, other.not_finite)
        same(m.baselines, other.baselines)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_slices_of_any_size_are_the_whole(make_maps, size):
    maps, untrained = make_maps(images=10, layers=3), make_maps(images=4, layers=3, seed=5)
    maps.values[7, 1, 0] = torch.nan
    chunks = [maps.images(i, min(i + size, 10)) for i in range(0, 10, size)]
    slices = [measure_slice([chunk], NAMES) for chunk in chunks]
    base = [measure_slice([untrained], NAMES)]
    together = measure_slices(slices, NAMES, baselines={"untrained": base})
    same(together, measure(chunks, NAMES, baselines={"untrained": [untrained]}))
    assert layers_and_grid(slices[0]) == (maps.layers, maps.grid)


def test_two_sites_and_a_part_come_through(make_maps):
    maps = make_maps(images=6, layers=3)
    chosen = replace(maps, values=maps.values[:, [0, 2]], layers=("a", "c"), part=Part(layers=(0, 2)))
    weights = replace(chosen, is_effective=False)
    mixed = replace(chosen, values=chosen.values.flip(2), site="effective", stochastic=False, is_effective=True)

    def chunks(start, stop):
        return [weights.images(start, stop), mixed.images(start, stop)]

    names = ("layer_similarity", "row_entropy")
    slices = [measure_slice(chunks(i, i + 2), names) for i in (0, 2, 4)]
    found = measure_slices(slices, names)
    same(found, measure(chunks(0, 6), names))
    assert found["layer_similarity@weights"].coords == {"layer": [1, 3]}
