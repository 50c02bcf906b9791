from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.core.examined import VerdictRules
from attnprobe.reports import verdict
from tests.evidences import evidence
from tests.reports.formulas import all_metrics, examined, similar_blocks


def without(e, *metrics):
    return replace(e, measurements={k: m for k, m in e.measurements.items() if m.metric not in metrics})


def warned(e, words):
    return [warning for warning in verdict(e).warnings if words in warning]


def test_collapse_names_the_block_the_count_its_interval_the_baseline_and_the_heads():
    found = verdict(examined(similar=range(12, 17), untrained=()))
    assert found.status == "collapsed"
    assert found.headline == (
        "collapsed from block 12: 5 of 16 blocks similar (95% CI 5–5); untrained baseline 0; "
        "16 of 96 heads redundant (untrained 16)"
    )
    assert found.warnings == ()


def test_nothing_similar_is_healthy_even_if_the_untrained_network_is_not():
    found = verdict(examined(untrained=range(2, 17)))
    assert found.status == "healthy"
    assert found.headline.startswith("healthy: 0 of 16 blocks similar (95% CI 0–0); untrained baseline 15; ")


def test_similar_blocks_that_are_not_the_last_ones_are_a_partial_collapse():
    found = verdict(examined(similar=(3, 7)))
    assert found.status == "partly collapsed"
    assert found.headline.startswith("partly collapsed: blocks 3 and 7 of 16 similar (95% CI 2–2); untrained")


def test_earlier_similar_blocks_are_not_passed_over():
    assert "collapsed from block 13: 6 of 16 blocks similar (95% CI 6–6), blocks 3–4 included" in (
        verdict(examined(similar=(3, 4, 13, 14, 15, 16))).headline
    )


def test_a_few_similar_blocks_at_the_end_are_a_partial_collapse_and_the_rule_can_be_changed():
    e = examined(similar=(15, 16), untrained=())
    assert verdict(e).status == "partly collapsed"
    assert verdict(e).headline.startswith("partly collapsed, from block 15 on: 2 of 16 blocks similar (95% CI 2–2)")
    assert verdict(replace(e, rules=VerdictRules(collapsed=2 / 15))).status == "collapsed"  # of 15 that are compared
    assert "the last 25% of the blocks or more" in verdict(e).settings
    with pytest.raises(InputError, match="collapsed=25 must be a share"):
        VerdictRules(collapsed=25)


def test_most_heads_redundant_is_said_of_a_model_that_is_not_collapsed():
    e = replace(examined(untrained=()), rules=VerdictRules(redundant=0.16))  # 16 of 96 are
    found = verdict(e)
    assert found.status == "redundant" and found.headline.startswith("redundant: 0 of 16 blocks similar")
    assert verdict(examined(untrained=())).status == "healthy"
    assert verdict(examined(similar=range(12, 17), untrained=())).status == "collapsed"


def test_near_uniform_maps_without_an_untrained_network_are_no_verdict():
    e = examined(similar=range(12, 17), untrained=None)
    assert verdict(e).headline.startswith("cannot say: 5 of 16 blocks similar (95% CI 5–5), but near-uniform maps are")
    peaky = with_entropy(e, 1.0)
    assert verdict(peaky).status == "collapsed"


def with_entropy(e, below):
    """With a row entropy so many nats below that of uniform attention."""
    m = e.measurements["row_entropy"]
    uniform = replace(m.baselines["uniform"], mean=m.mean + below)
    changed = replace(m, baselines={**m.baselines, "uniform": uniform})
    return replace(e, measurements={**e.measurements, "row_entropy": changed})


def test_initial_maps_that_are_alike_but_not_uniform_are_not_called_uniform():
    e = with_entropy(examined(similar=range(12, 17), untrained=range(2, 17)), 1.0)
    assert warned(e, "its maps are not near uniform, but blocks with such initial weights look alike")
    assert not warned(e, "near-uniform maps have")


def test_of_several_stages_the_deepest_is_judged_and_the_others_are_named():
    e = examined(similar=range(12, 17), untrained=())
    small = replace(similar_blocks(2, similar=(2,)), stage="stage1")
    both = replace(e, measurements={"stage1/similar_blocks": small, **e.measurements})
    assert verdict(both).headline.startswith("collapsed from block 12: 5 of 16")
    assert warned(both, "this is about stage trunk; similar blocks of the others: stage1 1 of 2.")


@pytest.mark.parametrize("fresh", [range(12, 17), range(2, 17)])
def test_no_verdict_where_the_untrained_network_scores_as_high(fresh):
    e = examined(similar=range(12, 17), untrained=fresh)
    found = verdict(e)
    assert found.status == "cannot say"
    assert found.headline.startswith(
        f"cannot say: 5 of 16 blocks similar (95% CI 5–5), but untrained {len(fresh)} are as well"
    )
    (warning,) = warned(e, "near-uniform maps have a raw cosine near 1")
    assert "centred cosine of neighbouring blocks: 0.967, untrained 0.970 (softmax maps, 40 images)" in warning
    assert warned(without(e, "layer_similarity_centred"), "which was not measured")


def test_single_similar_blocks_are_an_upper_bound_where_the_untrained_network_scores_as_high():
    found = verdict(examined(similar=(3, 7), untrained=range(2, 17)))
    assert found.status == "partly collapsed"
    assert found.headline.startswith("at most partly collapsed: blocks 3 and 7 of 16 similar (95% CI 2–2)")
    assert "untrained baseline 15" in found.headline


def test_fewer_similar_blocks_untrained_do_not_block_the_verdict():
    assert verdict(examined(similar=range(12, 17), untrained=(2, 3, 4, 5))).status == "collapsed"


def test_an_interval_that_reaches_the_baseline_blocks_the_verdict():
    e = examined(similar=range(12, 17), untrained=(2, 3))
    m = e.measurements["similar_blocks"]
    unsure = replace(m, summary={**m.summary, "count_ci": [2, 6]})
    found = verdict(replace(e, measurements={**e.measurements, "similar_blocks": unsure}))
    assert found.status == "cannot say"


def test_without_a_baseline_the_verdict_says_so():
    e = with_entropy(examined(similar=range(12, 17), untrained=None), 1.0)
    assert (
        verdict(e).headline == "collapsed from block 12: 5 of 16 blocks similar (95% CI 5–5); 16 of 96 heads redundant"
    )
    assert warned(e, "no untrained baseline")
    assert not warned(examined(untrained=None), "no untrained baseline")


def test_the_effective_maps_decide_and_both_counts_are_named_by_their_matrix():
    e = examined(similar=range(2, 17), effective_similar=(), untrained=(2,))
    found = verdict(e)
    assert found.status == "healthy"
    assert "effective maps, 40 images" in found.settings
    (warning,) = warned(e, "changes its maps after the softmax")
    assert "0 of 16 (95% CI 0–0) at the effective maps, 1 untrained" in warning
    assert "15 of 16 (95% CI 15–15) at the softmax maps, 1 untrained" in warning


def test_settings_travel_with_the_count():
    settings = verdict(examined(similar=(16,))).settings
    for words in ("rho=0.9", "tau=0.9", "compare=previous", "softmax maps", "40 images", "90% of", "0.05 nats"):
        assert words in settings


def test_other_settings_are_worded():
    chosen = {"axis": "query", "pool": "head_mean_map", "center": "mean", "exclude_prefix": 1, "rho": 0.85}
    m = similar_blocks(6, similar=(), settings={**chosen, "compare": "any"})
    text = verdict(replace(examined(layers=6), measurements={"similar_blocks": m})).settings
    for words in (
        "rows (query vectors)",
        "after the mean over heads",
        "centred (mean)",
        "first 1 tokens",
        "most alike",
    ):
        assert words in text
    assert "more than 85%" in text and ", k=" not in text
    m = similar_blocks(6, similar=(), settings={"compare": "neighbors", "k": 5})
    m = replace(m, **{name: {**getattr(m, name), "tau": "nbr-mean"} for name in ("settings", "summary")})
    text = verdict(replace(examined(layers=6), measurements={"similar_blocks": m})).settings
    assert "above the mean cosine of the blocks nearby" in text and "tau=nbr-mean, compare=neighbors, k=5)" in text


@pytest.mark.parametrize(("images", "warns"), [(1, True), (31, True), (32, False)])
def test_few_images_are_pointed_out(images, warns):
    assert bool(warned(examined(layers=4, images=images), f"only {images} image")) == warns


def test_one_image_is_no_verdict():
    found = verdict(examined(layers=4, similar=(4,), untrained=(), images=1))
    assert found.status == "cannot say"
    assert found.headline == "cannot say: 1 of 4 blocks similar, but one image says nothing about others"


def test_images_of_which_few_are_finite_are_few():
    e = examined(layers=4)
    m = replace(e.measurements["similar_blocks"], n_excluded=37)
    assert warned(replace(e, measurements={**e.measurements, "similar_blocks": m}), "only 3 images with finite values")


@pytest.mark.parametrize(("accuracy", "warns"), [(0.1, True), (0.2, True), (0.3, False), (None, False)])
def test_an_accuracy_that_guessing_reaches_is_pointed_out(accuracy, warns):
    info = {"accuracy": accuracy, "n_classes": 10, "n_images": 40}  # chance 10 % + 3 deviations = 24 %
    assert bool(warned(examined(layers=4, info=info), "near chance (10.0%, 10 classes)")) == warns


def test_unknown_numbers_of_classes_give_no_warning():
    assert not warned(examined(layers=4, info={"accuracy": 0.0}), "near chance")


def test_notes_come_first_and_a_missing_certificate_last():
    warnings = verdict(examined(layers=4, notes=("trained for 6 epochs only",), certificate={}, images=3)).warnings
    assert warnings[0] == "trained for 6 epochs only"
    assert warnings[-1].startswith("no certificate")


def test_values_that_are_not_finite_are_counted():
    e = examined(layers=4)
    broken = replace(e.measurements["row_entropy"], n_excluded=7)
    assert warned(replace(e, measurements={**e.measurements, "row_entropy": broken}), "in up to 7 images")


def test_a_block_without_a_finite_ratio_is_named():
    e = examined(layers=4)
    m = e.measurements["similar_blocks"]
    unknown = replace(m, summary={**m.summary, "ratio": [0.0, None, 0.5, None]})
    measurements = {**e.measurements, "similar_blocks": unknown}
    assert warned(replace(e, measurements=measurements), "blocks 2 and 4 without a finite value")


def test_unmeasured_similar_blocks_and_heads_are_no_reason_to_fail():
    found = verdict(without(examined(layers=4), "similar_blocks"))
    assert found.status == "cannot say" and "was not measured" in found.headline and found.settings == ""
    assert "redundant" not in verdict(without(examined(layers=4), "head_divergence")).headline


def test_a_head_metric_that_could_not_be_clustered_is_left_out():
    measurements = all_metrics(4, 3)
    unclustered = replace(measurements["head_divergence"], summary={}, mean=np.full((4, 3, 3), np.nan))
    e = replace(examined(layers=4), measurements={**measurements, "head_divergence": unclustered})
    assert "redundant" not in verdict(e).headline and "nats" not in verdict(e).settings


def test_what_was_taken_away_stands_in_the_headline_and_what_to_do_below_it():
    similar = examined(similar=(15, 16), untrained=())
    assert "verify-drops" in verdict(similar).advice
    assert verdict(examined(similar=(), measurements={"similar_blocks": similar_blocks(6, ())})).advice == ""
    tried = replace(similar, evidence=evidence(blocks_lost=(0, 1, 30), heads_lost=(40,), images=400))
    found = verdict(tried)
    assert "2 of 3 similar blocks not needed at a tolerance of 2.0%, accuracy without them -0.25% (" in found.headline
    assert "none of 1 redundant heads surely not needed, without the cheapest -10.00% (" in found.headline
    assert found.advice == tried.evidence.advice()


@pytest.mark.parametrize("layers", [1, 4])
def test_nothing_to_compare_and_no_finite_value_are_no_verdict(layers):
    m = similar_blocks(layers, ())
    m = replace(m, summary={**m.summary, "ratio": [None] * layers})
    found = verdict(examined(layers=layers, measurements={"similar_blocks": m}))
    assert found.status == "cannot say"
    assert ("no other to be compared with" if layers == 1 else "without a finite value") in found.headline
