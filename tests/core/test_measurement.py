from dataclasses import replace

import pytest

from attnprobe.core.measurement import Key, Measurements
from attnprobe.core.registry import UnknownName
from tests.reports.formulas import examined, measurement


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("row_entropy", Key("row_entropy")),
        ("row_entropy@weights", Key("row_entropy", site="weights")),
        ("stage2/row_entropy", Key("row_entropy", "stage2")),
        ("stage2/row_entropy@weights", Key("row_entropy", "stage2", "weights")),
    ],
)
def test_a_key_is_written_and_read_the_same(text, key):
    assert Key.parse(text) == key and str(key) == text


def test_measurements_are_a_dictionary_that_suggests_the_nearest_name():
    m = measurement("row_entropy", [[1.0, 2.0]])
    found = Measurements({"row_entropy": m})
    assert list(found) == ["row_entropy"] and len(found) == 1 and dict(found.items()) == {"row_entropy": m}
    assert found["row_entropy"] is found.get("row_entropy") is m and found.get("else") is None
    with pytest.raises(UnknownName, match="no measurement named 'row_entrop'. Did you mean 'row_entropy'"):
        found["row_entrop"]


def test_of_a_plain_vit_both_sites_name_one_measurement():
    found = examined(layers=4).measurements
    m = found["similar_blocks"]
    assert found.get("similar_blocks", site="effective") is found.get("similar_blocks", site="weights") is m
    assert found.at_sites("similar_blocks") == [m] and not found.change_after_softmax


def test_maps_changed_after_the_softmax_have_two_effective_first():
    found = examined(layers=4, effective_similar=()).measurements
    assert [m.site for m in found.at_sites("similar_blocks")] == ["effective", "weights"]
    assert found.prefer("similar_blocks", "weights", "effective") is found["similar_blocks@weights"]
    assert found.get("row_entropy", site="effective") is None
    assert found.prefer("row_entropy", "effective", "weights") is found["row_entropy"]
    assert found.change_after_softmax
    assert found.at_sites("no_such_metric") == [] and found.prefer("no_such_metric", "weights") is None


def test_of_several_stages_the_first_of_those_with_the_most_blocks_is_got():
    short, one, other = (measurement("row_entropy", [[1.0]] * layers) for layers in (2, 3, 3))
    stages = {"a": short, "b": one, "c": other}
    found = Measurements({f"{name}/row_entropy": replace(m, stage=name) for name, m in stages.items()})
    assert found.get("row_entropy", site="weights") is found["b/row_entropy"]
    assert found.get("row_entropy", stage="c") is found["c/row_entropy"]
    assert [m.stage for m in found.select("row_entropy")] == ["a", "b", "c"]


def test_the_untrained_network_is_a_model_of_its_own():
    fresh = examined(layers=4, similar=(4,), untrained=(2, 3)).untrained
    assert fresh.name == "vit_16, untrained" and not fresh.info
    assert fresh.measurements["similar_blocks"].summary["similar"] == [2, 3]
    assert examined(layers=4, untrained=None).untrained is None
