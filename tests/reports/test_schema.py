"""The published schema describes every report that is written, and not whatever else there is."""

import copy
import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from attnprobe.core.evidence import Change
from attnprobe.reports.json_report import SCHEMA, SCHEMA_VERSION, to_json
from tests.evidences import evidence, tried
from tests.histories import history
from tests.reports.formulas import examined, precision, types

VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def report(*runs):
    return json.loads(to_json(runs))


def hostile():
    """Everything that is empty, not finite, or not what it was expected to be."""
    e = examined("</script>\u202e\x00数", layers=3, images=1, untrained=None, pictures=0)
    entropy = replace(e.measurements["row_entropy"], mean=np.array([[np.nan, np.inf, -np.inf]]))
    info = {"accuracy": float("nan"), "n_classes": None, "parameters": None, "versions": {}, "other": object}
    measurements = {**e.measurements, "stage/row_entropy": entropy}
    return replace(e, measurements=measurements, info=info, certificate={}, notes=("<b>",), layers=())


RUNS = {
    "plain": examined(layers=4, heads=3),
    "two matrices": examined(layers=4, heads=3, effective_similar=(2,), untrained=(2, 3)),
    "with a history": examined(layers=6, heads=2, history=history(similar_from=4, alarms=[(4, "alarm")])),
    "with evidence": examined(evidence=evidence(heads_lost=(0, 2), advised=tried(1, 100, Change("head", 1, 1)))),
    "with evidence of nothing": examined(evidence=evidence(blocks_lost=())),
    "with types and precision": replace(
        (e := examined(layers=4, heads=2, precision={"similar_blocks": precision()})),
        measurements={**e.measurements, "head_types": types(4, 2)},
    ),
    "nothing measured": examined(layers=3, measurements={}, info={}, certificate={}),
    "hostile": hostile(),
}


def test_the_schema_itself_is_one_and_of_this_version():
    schema = VALIDATOR.schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert max(schema["properties"]["schema_version"]["enum"]) == SCHEMA_VERSION


@pytest.mark.parametrize("name", RUNS)
def test_every_report_follows_it(name):
    assert not list(VALIDATOR.iter_errors(report(RUNS[name])))


@pytest.mark.parametrize("status", ["collapsed", "partly collapsed", "redundant", "healthy", "cannot say"])
def test_reports_of_version_1_still_follow_it(status):
    old = report(RUNS["plain"])
    old["schema_version"] = 1
    del old["runs"][0]["verdict"]["findings"]
    old["runs"][0]["verdict"]["status"] = status
    assert VALIDATOR.is_valid(old)


def test_every_finding_that_is_written_is_described():
    written = report(RUNS["plain"])["runs"][0]["verdict"]["findings"]
    described = VALIDATOR.schema["$defs"]["finding"]["properties"].keys()
    assert all(finding.keys() == described for finding in written)


def test_several_runs_follow_it():
    assert not list(VALIDATOR.iter_errors(report(*RUNS.values())))


def test_every_key_that_is_written_is_described():
    run = report(RUNS["plain"])["runs"][0]
    defs = VALIDATOR.schema["$defs"]
    assert run.keys() == defs["run"]["properties"].keys()
    assert run["verdict"].keys() == defs["run"]["properties"]["verdict"]["properties"].keys()
    for m in run["measurements"].values():
        assert m.keys() == defs["measurement"]["properties"].keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format="another"),
        lambda d: d.update(schema_version=3),
        lambda d: d.update(schema_version=1),
        lambda d: d["runs"][0]["verdict"].pop("findings"),
        lambda d: d["runs"][0]["verdict"]["findings"][0].update(found="maybe"),
        lambda d: d.pop("runs"),
        lambda d: d.update(runs=[]),
        lambda d: d["runs"][0].pop("verdict"),
        lambda d: d["runs"][0]["verdict"].update(status="fine"),
        lambda d: d["runs"][0]["info"].update(accuracy=1.5),
        lambda d: d["runs"][0]["measurements"]["row_entropy"].update(mean="1"),
        lambda d: d["runs"][0]["measurements"]["row_entropy"].update(site="somewhere"),
        lambda d: d["runs"][0]["measurements"]["row_entropy"].update(ci=[1]),
        lambda d: d["runs"][0]["measurements"]["row_entropy"].pop("n_images"),
    ],
)
def test_what_is_no_report_is_refused(change):
    document = copy.deepcopy(report(RUNS["plain"]))
    change(document)
    assert not VALIDATOR.is_valid(document)
