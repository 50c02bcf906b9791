import json
from dataclasses import replace

import numpy as np
import pytest

from attnprobe.reports.json_report import plain, to_json
from tests.reports.formulas import examined


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_value_comes_back():
    e = examined(layers=4, heads=3, effective_similar=(2,))
    run = strict(to_json([e]))["runs"][0]
    assert run["measurements"].keys() == e.measurements.keys()
    for key, m in e.measurements.items():
        back = run["measurements"][key]
        for name in ("mean", "std", "ci"):
            np.testing.assert_array_equal(np.array(back[name], dtype=float), getattr(m, name))
        assert back["axes"] == list(m.axes)
        assert back["settings"] == dict(m.settings)
        assert back["n_images"] == 40 and back["site"] == m.site
        np.testing.assert_array_equal(
            np.array(back["baselines"]["untrained"]["mean"], dtype=float), m.baselines["untrained"].mean
        )
    assert run["certificate"]["output_equal"] is True
    assert run["grid"]["prefix"] == ["cls"]
    assert run["verdict"]["status"] == "found"
    assert run["verdict"]["findings"][3]["kind"] == "repetition" and run["verdict"]["findings"][3]["blocks"] == [2]


def test_what_is_not_finite_is_null():
    e = examined(layers=3, images=1)
    m = replace(e.measurements["row_entropy"], mean=np.array([[np.nan, np.inf, 1.0]]))
    e = replace(e, measurements={**e.measurements, "row_entropy": m}, info={"accuracy": float("nan")})
    run = strict(to_json([e]))["runs"][0]
    assert run["measurements"]["row_entropy"]["mean"] == [[None, None, 1.0]]
    assert run["info"]["accuracy"] is None


def test_names_keep_every_character_and_the_file_is_ascii():
    name = "</script>\u202e\ud800\x00数"
    text = to_json([examined(name, layers=3)])
    assert text.isascii()
    assert strict(text)["runs"][0]["name"] == name


def test_the_document_says_what_it_is():
    document = strict(to_json([examined(layers=3)]))
    assert (document["format"], document["schema_version"]) == ("attnprobe report", 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.0, np.nan]), [1.0, None]),
        ((1, {"a": {2}}), [1, {"a": [2]}]),
        ({3: None}, {"3": None}),
        (object, "<class 'object'>"),
    ],
)
def test_values_become_those_of_json(value, expected):
    assert plain(value) == expected
