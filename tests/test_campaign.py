"""The campaign counts what was tried, says what did not hold, and every promise has a test that tries it."""

import re
from pathlib import Path

from tests import campaign

pytest_plugins = ("pytester",)

TESTS = """
import pytest

@pytest.mark.promise("two-starts")
@pytest.mark.parametrize("n", [3, 4])
def test_counted(n, record_property):
    record_property("tried", n)

@pytest.mark.promise("two-starts")
def test_once():
    pass

@pytest.mark.promise("viewer")
def test_broken(record_property):
    record_property("tried", 9)
    assert False

@pytest.mark.promise("viewer")
def test_skipped():
    pytest.skip("not here")

def test_without_a_promise():
    assert False
"""


def test_tries_are_counted_and_what_did_not_hold_is_named(pytester):
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nmarkers = promise(name)")
    counted = campaign.Campaign(campaign.PROMISES)
    assert pytester.inline_run(plugins=[counted]).ret == 1
    tallies = counted.tallies
    assert (tallies["two-starts"].tried, tallies["two-starts"].broken) == (8, [])
    assert tallies["viewer"].tried == 9 and [name.rpartition(":")[2] for name in tallies["viewer"].broken] == [
        "test_broken"
    ]
    rows = campaign.table(tallies).splitlines()
    assert len(rows) == 4 and "| 8 | 0 |" in rows[2] and "test_broken" in rows[3]


def test_every_promise_is_tried_and_every_mark_is_a_promise():
    here = Path(__file__)
    marks = {name for path in here.parent.rglob("*.py") if path != here
             for name in re.findall(r'mark\.promise\("([^"]+)"\)', path.read_text())}  # fmt: skip
    assert marks == set(campaign.PROMISES)
