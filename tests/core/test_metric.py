import inspect
import re
from dataclasses import replace

import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.metric import GIVEN, metric, shares_of_magnitude
from attnprobe.metrics import (
    METRICS,
    head_output_norm,
    layer_similarity,
    layer_similarity_centred,
    map_cka,
    measure,
    prefix_mass,
    row_entropy,
)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_explained_by_definition_source_shapes_and_settings(name):
    text, of = METRICS[name].explanation, METRICS[name]
    assert text.count("\n\n") >= 4
    assert of.function.__doc__.splitlines()[0] in text
    shapes = {name for name, what in GIVEN.items() if f"\n    {name}: {what}\n" in text}
    assert shapes == GIVEN.keys() & inspect.signature(of.function).parameters
    assert f"{', '.join(of.axes)}" in text
    for setting, default in of.all_settings.items():
        assert f"{setting}={default}" in text and f"{setting}" in of.function.__doc__, setting


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_formula_and_says_how_it_can_mislead(name):
    definition = inspect.getdoc(METRICS[name].function).partition("\n\nArgs:\n")[0]
    assert re.search(r"\n\n {4}\S.* = ", definition), "a formula, indented, after an empty line"
    assert re.search(r"(?:\n|\. )Caveats?:\s+\S", definition), "a sentence that begins with Caveat"


@pytest.mark.parametrize("name", METRICS)
def test_every_setting_that_is_printed_is_defined(name):
    """In the arguments, and not by a name that `explain` does not know."""
    arguments = inspect.getdoc(METRICS[name].function).partition("Args:")[2].partition("Returns:")[0]
    for setting in METRICS[name].all_settings:
        assert re.search(rf"^ +(\w+, )*{setting}(, \w+)*: \S", arguments, re.M), setting
    assert all(other in METRICS for other in re.findall(r"see `(\w+)`", arguments))


def test_needs_and_ranges_are_told():
    assert "rows that sum to 1 (or renormalize=True" in row_entropy.explanation
    assert "from 0 to unbounded nats" in row_entropy.explanation
    assert "a class token or registers; queries and keys that are the tokens" in prefix_mass.explanation
    assert "from means over images" in map_cka.explanation
    assert "the value vectors; effective attention." in head_output_norm.explanation
    assert "Here with center=mean." in layer_similarity_centred.explanation


def test_a_metric_of_ones_own_is_explained_as_far_as_it_says_something():
    @metric(axes=("layer",))
    def silent(maps, *, power=2):
        return maps.mean((2, 3, 4))

    text = silent.explanation
    assert "No description." in text and "Settings: power=2." in text


def test_a_parameter_that_is_neither_given_nor_a_setting_is_named():
    with pytest.raises(InputError, match="'mapz' is none of maps, grid, tokens, value_vectors"):

        @metric(axes=("layer",))
        def typo(mapz):
            return mapz


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
