from dataclasses import replace

import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.renormalize import shares_of_magnitude
from attnprobe.metrics import METRICS, layer_similarity, measure, row_entropy


def test_signed_rows_become_shares_of_absolute_values():
    maps = torch.tensor([[2.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    shares = shares_of_magnitude(maps)
    torch.testing.assert_close(shares[0], torch.tensor([0.5, 0.25, 0.25]))
    assert shares[1].isnan().all()


def test_distributions_stay_as_they_are(make_maps):
    maps = make_maps().values
    torch.testing.assert_close(shares_of_magnitude(maps), maps)
    torch.testing.assert_close(shares_of_magnitude(3 * maps), maps)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs_stochastic])
def test_metrics_of_distributions_refuse_others_unless_told_to_renormalize(make_maps, name):
    maps = make_maps()
    signed = replace(maps, values=-2 * maps.values, site="effective", stochastic=False)
    with pytest.raises(InputError, match="rows must sum to 1, .* or set renormalize=True"):
        measure([signed], [METRICS[name]])
    m = measure([signed], [METRICS[name].with_settings(renormalize=True)], bootstrap=10)[name]
    assert m.settings["renormalize"] is True
    torch.testing.assert_close(torch.from_numpy(m.mean), torch.from_numpy(measure([maps], [METRICS[name]])[name].mean))


def test_a_metric_that_takes_any_map_has_nothing_to_renormalize():
    with pytest.raises(InputError, match="metric 'layer_similarity' has no setting 'renormalize'"):
        layer_similarity.with_settings(renormalize=True)


def test_a_call_renormalizes_too(make_maps):
    maps = make_maps().values
    torch.testing.assert_close(row_entropy(-maps, renormalize=True), row_entropy(maps))
    torch.testing.assert_close(row_entropy(maps=-maps, renormalize=True), row_entropy(maps))
