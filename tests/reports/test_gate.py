"""Conditions are read as they are written, hold when arithmetic says so, and never pass on what is not known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import GateFailed, InputError
from attnprobe.reports.gate import COMPARISONS, Condition, check, insist
from attnprobe.reports.numbers import neighbours
from tests.reports.formulas import examined


def value(e, text):
    return check([e], [Condition.parse(text)])[0].value


@given(
    metric=st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(lambda name: name not in ("accuracy", "parameters")),
    key=st.sampled_from(["", "count", "count.low", "count.high"]),
    site=st.sampled_from(["", "weights", "effective"]),
    comparison=st.sampled_from(list(COMPARISONS)),
    bound=st.floats(allow_nan=False, allow_infinity=False),
    space=st.sampled_from(["", " ", "  "]),
)
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_what_is_read(metric, key, site, comparison, bound, space):
    text = f"{metric}{'.' * bool(key)}{key}{'@' * bool(site)}{site}{space}{comparison}{space}{bound!r}"
    read = Condition.parse(text)
    assert (read.metric, read.key, read.site, read.comparison, read.bound) == (metric, key, site, comparison, bound)


@pytest.mark.parametrize(
    "text",
    [
        "", "similar_blocks", "similar_blocks>", ">3", "similar_blocks>three", "similar_blocks=3",
        "similar_blocks>3 or 1",
        "similar_blocks.count.of>3", "similar_blocks@scores>3", "__import__('os')>3", "similar_blocks>3;import os",
        "similar_blocks>nan", "similar_blocks>1e", "accuracy.mean<1", "accuracy@weights<1", "a>1>2",
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_nothing_runs(text):
    with pytest.raises(InputError, match="--fail-on"):
        Condition.parse(text)


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("bound", [2, 3, 4])
def test_it_holds_when_arithmetic_says_so(comparison, bound):
    e = examined(layers=8, similar=(6, 7, 8))
    outcome = check([e], [Condition.parse(f"similar_blocks{comparison}{bound}")])[0]
    assert outcome.value == 3
    assert outcome.holds == eval(f"3 {comparison} {bound}")


def test_keys_bounds_facts_and_means_are_the_numbers_of_the_report():
    e = examined(layers=6, heads=4, similar=(5, 6))
    summary = e.measurements["similar_blocks"].summary
    assert value(e, "similar_blocks.collapsed_from>0") == summary["collapsed_from"] == 5
    assert value(e, "similar_blocks.count.low>0") == summary["count_ci"][0]
    assert value(e, "similar_blocks.count.high>0") == summary["count_ci"][1]
    assert value(e, "head_divergence>0") == e.measurements["head_divergence"].summary["redundant"]
    assert value(e, "accuracy<1") == 0.95
    cosine = e.measurements["layer_similarity"]
    assert value(e, "layer_similarity.mean>0") == pytest.approx(cosine.mean[neighbours(cosine)].mean())
    heads = e.measurements["head_similarity"].mean
    assert value(e, "head_similarity.max>0") == heads[:, ~np.eye(4, dtype=bool)].max()
    assert value(e, "row_entropy.min>0") == e.measurements["row_entropy"].mean.min()


def test_without_a_site_it_is_what_multiplies_v():
    e = examined(layers=6, similar=(5, 6), effective_similar=(4, 5, 6))
    assert value(e, "similar_blocks>0") == value(e, "similar_blocks@effective>0") == 3
    assert value(e, "similar_blocks@weights>0") == 2
    plain = examined(layers=6, similar=(5, 6))
    assert value(plain, "similar_blocks@effective>0") == value(plain, "similar_blocks@weights>0") == 2


def test_one_stage_that_meets_the_condition_is_enough():
    e = examined(layers=6)
    bad = examined(layers=6, similar=(5, 6)).measurements["similar_blocks"]
    stages = {"similar_blocks": e.measurements["similar_blocks"], "late/similar_blocks": replace(bad, stage="late")}
    e = replace(e, measurements=stages)
    assert check([e], [Condition.parse("similar_blocks>1")])[0].holds


def test_no_collapse_meets_no_condition_about_its_block():
    outcome = check([examined(layers=6)], [Condition.parse("similar_blocks.collapsed_from<6")])[0]
    assert (outcome.value, outcome.holds) == (None, False) and "is none" in str(outcome)


@pytest.mark.parametrize(
    ("text", "e"),
    [
        ("row_gini.mean>0.5", examined(layers=3)),
        ("similar_blocks.cuont>1", examined(layers=3)),
        ("similar_blocks.compare>1", examined(layers=3)),
        ("similar_blocks.of.low>1", examined(layers=3)),
        ("similar_blocks.count.low>1", examined(layers=3, images=1)),
        ("row_entropy>1", examined(layers=3)),
        ("row_entropy@effective>1", replace(examined(layers=3, effective_similar=()))),
        ("accuracy<1", examined(layers=3, info={})),
        ("accuracy<1", examined(layers=3, info={"accuracy": float("nan")})),
        ("similar_blocks>9", examined(layers=3, measurements={})),
    ],
)
def test_what_is_not_known_is_an_error_and_no_pass(text, e):
    with pytest.raises(InputError, match="--fail-on"):
        check([e], [Condition.parse(text)])


def test_a_metric_of_many_numbers_named_alone_is_told_which_to_name():
    with pytest.raises(InputError, match=r"name one, as in .*: row_entropy\.max, row_entropy\.mean, row_entropy\.min"):
        check([examined(layers=3)], [Condition.parse("row_entropy>1")])


def test_values_that_are_not_finite_never_pass():
    e = examined(layers=3)
    entropy, similar = e.measurements["row_entropy"], e.measurements["similar_blocks"]
    gone = replace(entropy, mean=np.full_like(entropy.mean, np.nan))
    unknown = replace(similar, summary={**similar.summary, "ratio": [0.0, None, 0.5]})
    e = replace(e, measurements={"row_entropy": gone, "similar_blocks": unknown})
    for text in ("row_entropy.mean>1", "similar_blocks>9"):
        with pytest.raises(InputError, match="not known"):
            check([e], [Condition.parse(text)])


@pytest.mark.parametrize("text", ["similar_blocks>9", "similar_blocks.count.low>9", "similar_blocks.mean>0.99"])
def test_blocks_that_are_not_known_or_alone_pass_no_condition(text):
    e = examined(layers=3)
    similar = e.measurements["similar_blocks"]
    unknown = replace(similar, summary={**similar.summary, "ratio": [0.0, None, 0.5]})
    for case in (replace(e, measurements={"similar_blocks": unknown}), examined(layers=1)):
        with pytest.raises(InputError, match="not known"):
            check([case], [Condition.parse(text)])


def test_every_run_is_asked_and_the_failures_are_told_with_their_values():
    runs = [examined("good", layers=6), examined("bad", layers=6, similar=(5, 6))]
    outcomes = check(runs, [Condition.parse("similar_blocks > 1"), Condition.parse("accuracy<0.5")])
    assert [outcome.holds for outcome in outcomes] == [False, True, False, False]
    with pytest.raises(GateFailed, match=r"1 of 4 conditions of --fail-on met: bad: similar_blocks > 1 \(is 2\)") as no:
        insist(outcomes)
    assert no.value.exit_code == 3
    insist(outcomes[:1])


def test_kinds_of_collapse_are_asked_for_by_their_blocks_and_whether_they_were_found():
    e = examined(similar=(9, 12, 13))
    assert value(e, "repetition>0") == value(e, "repetition.blocks>0") == 3
    assert value(e, "repetition.blocks.low>0") == 3 and value(e, "repetition.from>0") == 9
    assert value(e, "repetition.found==1") == 1 and value(e, "near_uniform.found==1") == 0
    assert value(e, "repetition.number>0") == pytest.approx(0.97)
    assert value(e, "near_uniform.from>0") is None


def test_a_kind_that_cannot_be_said_does_not_pass_and_has_its_own_keys():
    e = replace(examined(layers=4), measurements={})
    with pytest.raises(InputError, match="not known for vit_16: token_similarity was not measured"):
        check([e], [Condition.parse("oversmoothing>0")])
    for text in ("oversmoothing.count>0", "oversmoothing@weights>0"):
        with pytest.raises(InputError, match="--fail-on"):
            Condition.parse(text)


def test_a_condition_says_what_must_be_measured():
    assert Condition.parse("accuracy<1").needs == () and Condition.parse("row_entropy.min<1").needs == ("row_entropy",)
    assert Condition.parse("sink_collapse>0").needs == ("sink_mass",)
    assert "content_overlap" in Condition.parse("repetition>0").needs
