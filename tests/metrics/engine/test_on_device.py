"""Every metric on a GPU gives the numbers of the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnprobe.metrics import METRICS, measure


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gpu_measures_what_the_cpu_measures(make_maps, gpu, dtype):
    """Square roots of nearly zero divergences turn rounding of 1e-14 into 1e-7, and of 1e-7 into 3e-4."""
    maps = make_maps(images=4, rows=3, cols=3, spread=3.0, tokens=torch.randn(4, 3, 10, 5, dtype=torch.float64))
    vectors = torch.randn(4, 3, 2, 10, 5, dtype=torch.float64)
    maps = replace(maps, values=maps.values.to(dtype), tokens=maps.tokens.to(dtype), value_vectors=vectors.to(dtype))
    there = replace(
        maps, values=maps.values.to(gpu), tokens=maps.tokens.to(gpu), value_vectors=maps.value_vectors.to(gpu)
    )
    names = [name for name, metric in METRICS.items() if metric.accepts(maps)]
    here, measured = measure([maps], names, bootstrap=0), measure([there], names, bootstrap=0)
    assert list(here) == list(measured) and len(here) > 10
    atol = 1e-6 if dtype is torch.float64 else 1e-3
    for name, expected in here.items():
        np.testing.assert_allclose(measured[name].mean, expected.mean, rtol=1e-3, atol=atol, err_msg=name)
