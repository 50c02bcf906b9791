from dataclasses import replace

import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.metrics import DEFAULT, METRICS, SLOW, measure, row_entropy, similar_blocks
from attnprobe.metrics.engine.choose import choose


def names(*wanted):
    chosen, required = choose(wanted)
    return [metric.name for metric in chosen], set(required)


def test_sets_are_names_and_nothing_in_them_is_required():
    assert choose(None) == choose(["default"]) == choose("default")
    assert choose("stable_rank") == choose(["stable_rank"])
    assert names("default") == (list(DEFAULT), set())
    assert names("all") == ([name for name in METRICS if name not in SLOW], set())
    assert set(SLOW) < set(METRICS) and set(DEFAULT) < set(METRICS) and not set(SLOW) & set(DEFAULT)


def test_what_is_asked_for_by_itself_is_required_and_replaces_that_of_a_set():
    mine = replace(row_entropy, name="mine")
    chosen, required = names("default", "stable_rank", "similar_blocks:tau=0.8", mine)
    assert chosen == [*DEFAULT, "stable_rank", "mine"] and required == {"stable_rank", "similar_blocks", "mine"}
    (metric,) = [
        metric for metric in choose(["default", "similar_blocks:tau=0.8"])[0] if metric.name == "similar_blocks"
    ]
    assert metric.settings == {"tau": 0.8}


def test_settings_are_read_as_the_setting_takes_them():
    text = "similar_blocks:tau=nbr-mean,compare=neighbors-max,k=3,rho=1e-1,exclude_prefix=1"
    (metric,), _ = choose([text])
    assert dict(metric.settings) == {
        "tau": "nbr-mean", "compare": "neighbors-max", "k": 3, "rho": 0.1, "exclude_prefix": 1,
    }  # fmt: skip
    (metric,), _ = choose(["row_entropy:renormalize=true"])
    assert metric.settings == {"renormalize": True}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("row_entrpy", "Did you mean 'row_entropy'"),
        ("similar_blocks:ta=0.8", "metric 'similar_blocks' has no setting 'ta'. Did you mean 'tau'"),
        ("similar_blocks:k=two", "metric 'similar_blocks': k='two' must be int, as 2 is"),
        ("similar_blocks:rho=high", "rho='high' must be float, as 0.9 is"),
        ("similar_blocks:k=true", "k=True must be int"),
        ("similar_blocks:k", "expected NAME=VALUE"),
        (
            torch.zeros(2, 3),
            r"a metric is its name or a Metric, got Tensor; .*ap.measure\(ap.capture\(model, images\)\)",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(wanted, message):
    with pytest.raises(InputError, match=message):
        choose([wanted])


def test_the_same_metric_twice_is_refused():
    with pytest.raises(InputError, match="two metrics are named 'similar_blocks'"):
        choose(["similar_blocks:tau=0.8", similar_blocks])


def test_everything_that_fits_is_measured(make_maps):
    maps = make_maps()
    result = measure([maps], ["all"], bootstrap=10)
    fits = [
        name for name, m in METRICS.items() if name not in SLOW and not {"tokens", "value_vectors"} & {*m.parameters}
    ]
    assert list(result) == fits
    with pytest.raises(InputError, match="'token_residual' is not defined on these maps"):
        measure([maps], ["all", "token_residual"], bootstrap=10)


def test_the_effective_rank_of_a_set_is_of_order_2_and_by_its_name_of_order_1():
    def order(*wanted):
        (metric,) = [metric for metric in choose(wanted)[0] if metric.name == "effective_rank"]
        return metric.all_settings["order"]

    assert [order("default"), order("all")] == [2, 2]
    assert [order("effective_rank"), order("default", "effective_rank")] == [1, 1]
    assert order("default", "effective_rank:order=2") == 2
