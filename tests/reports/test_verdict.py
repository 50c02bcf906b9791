from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import attnprobe as ap
from attnprobe.core.browse import numbered
from attnprobe.core.errors import InputError
from attnprobe.core.examined import Examined
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps, Part
from attnprobe.metrics import measure
from attnprobe.reports import verdict
from attnprobe.reports.finding import Finding
from attnprobe.reports.kinds import KINDS, checked_bars
from attnprobe.reports.removal import advice, redundant_heads
from tests import unequal_heads
from tests.evidences import evidence
from tests.reports.formulas import all_metrics, examined, similar_blocks


def without(e, *metrics):
    return replace(e, measurements={k: m for k, m in e.measurements.items() if m.metric not in metrics})


def warned(e, words):
    return [warning for warning in verdict(e).warnings if words in warning]


def finding(e, kind):
    return next(f for f in verdict(e).findings if f.kind == kind)


def test_repetition_names_its_kind_its_blocks_their_count_and_its_interval():
    found = verdict(examined(similar=range(12, 17)))
    assert found.status == "found" and found.warnings == ()
    assert found.headline == (
        "repetition from block 12: blocks 12–16 copying content, as the previous block, in another image 0.194; "
        "drifting: block 16 overlaps 0.400 with block 11 (5 of 15 blocks after the first, overlap 0.970)"
    )


def test_a_kind_that_most_of_its_blocks_had_before_training_is_said_not_to_come_from_training():
    words = "is in the untrained network, too"
    (told,) = warned(examined(similar=range(12, 17), untrained=range(12, 17)), words)
    assert told.startswith(f"repetition {words}, in all 5 of these blocks (0.970 there, 0.970 here in block 1")
    (told,) = warned(examined(similar=range(12, 17), untrained=(12, 13, 14)), words)
    assert "in 3 of these 5 blocks" in told
    assert warned(examined(similar=range(12, 17), untrained=(12, 13)), words) == []
    assert warned(examined(untrained=range(12, 17)), words) == []  # what is not found is not spoken of


def test_without_a_collapse_it_counts_the_kinds_and_calls_nothing_healthy():
    found = verdict(examined(untrained=range(2, 17)))
    assert found.status == "none found" and found.headline == f"none of {len(KINDS)} kinds of collapse found"


def test_every_kind_has_a_line_with_number_interval_untrained_value_bar_and_source():
    line = finding(examined(similar=(3, 7), untrained=(3,)), "repetition").line
    for words in ("yes, 2 (2–2) of 15 blocks, blocks 3 and 7", "overlap 0.970 (", "untrained 0.970", "bar above 0.850",
                  "arXiv:2103.11886"):  # fmt: skip
        assert words in line
    assert len(verdict(examined()).findings) == len(KINDS)
    assert all(f.source and f.bar for f in verdict(examined()).findings)


def test_in_a_notebook_a_kind_is_a_row_that_says_what_its_line_says():
    found = verdict(examined(similar=(3, 7), untrained=(3,)))
    row = finding(examined(similar=(3, 7), untrained=(3,)), "repetition").row
    assert row[:2] == ("repetition", "blocks 3 and 7, 2 of 15 blocks") and row[3:] == ("0.970", "above 0.85")
    assert row[2].startswith("overlap 0.970 (") and row[2].endswith(("block 3", "block 7"))
    assert found._repr_html_().count("<tr>") == 1 + len(KINDS) + len(found.warnings) + bool(found.advice)


def test_a_kind_without_a_number_is_a_row_of_words_and_one_that_another_explains_says_so():
    f = finding(without(examined(), "token_similarity"), "oversmoothing")
    assert f.row == ("oversmoothing of tokens", f"cannot say: {f.detail}")
    why = "blocks 2–16 not counted: near-uniform attention"
    uniform = replace(finding(examined(), "repetition"), number=0.99, blocks=(), found="no", detail=why)
    assert uniform.row[1] == "explained by another kind" and len(uniform.row) == 5


def test_the_untrained_value_changes_nothing_but_itself():
    with_many, with_none = (verdict(examined(similar=(12,), untrained=fresh)) for fresh in (range(2, 17), ()))
    assert with_many.headline == with_none.headline
    one, other = (next(f for f in v.findings if f.kind == "repetition") for v in (with_many, with_none))
    assert one.untrained == pytest.approx(0.97) and other.untrained == pytest.approx(0.5)
    assert replace(one, untrained=None) == replace(other, untrained=None)


def test_bars_can_be_ones_own_and_are_checked():
    e = replace(examined(similar=(12,)), bars=checked_bars({"repetition": 0.98}))
    assert verdict(e).status == "none found" and "bar above 0.980" in str(verdict(e))
    with pytest.raises(InputError, match="no kind of collapse is named 'near_unifrom'. Did you mean 'near_uniform'?"):
        checked_bars({"near_unifrom": 0.9})
    with pytest.raises(InputError, match="must be a number, got 'high'"):
        checked_bars({"near_uniform": "high"})


def test_of_several_stages_the_deepest_is_judged_and_the_others_are_named():
    e = examined(similar=range(12, 17), untrained=())
    small = {f"stage1/{m.metric}": replace(m, stage="stage1") for m in all_metrics(2, 6, similar=(2,)).values()}
    both = replace(e, measurements={**small, **e.measurements})
    assert verdict(both).headline == verdict(e).headline
    assert warned(both, "this is about stage trunk; similar blocks of the others: stage1 1 of 2.")


def test_a_model_of_unequal_heads_is_judged_in_all_blocks_and_what_compares_blocks_is_said_to_be_of_some():
    found = measure(unequal_heads.stages(heads=(3, 2, 3, 1), uniform=(2, 4)), bootstrap=50)
    e = replace(examined(layers=4), measurements=found)
    near = finding(e, "near_uniform")
    assert (near.blocks, near.of) == ((2, 4), 4)
    assert finding(e, "sink_collapse").of == finding(e, "image_independent").of == finding(e, "head_redundancy").of == 4
    assert finding(e, "repetition").levels.numbers == (3,)
    (told,) = warned(e, "not all blocks have equally many heads")
    assert "repetition, similar blocks, the summary and the figures are of blocks 1 and 3 alone" in told
    assert "judged in all 4 blocks" in told


def test_what_multiplies_v_decides_on_repetition_and_both_counts_are_named_by_their_matrix():
    e = examined(similar=range(2, 17), effective_similar=(), untrained=(2,))
    assert verdict(e).status == "none found"
    assert "effective maps, 40 images" in verdict(e).settings
    (warning,) = warned(e, "changes its maps after the softmax")
    assert "0 of 16 (95% CI 0–0) at the effective maps, 1 untrained" in warning
    assert "15 of 16 (95% CI 15–15) at the softmax maps, 1 untrained" in warning
    assert "of unknown kind" in verdict(examined(effective_similar=(3,))).headline


def test_without_an_untrained_network_that_is_said():
    e = examined(similar=(12,), untrained=None)
    assert verdict(e).status == "found" and finding(e, "repetition").untrained is None
    assert warned(e, "no untrained network was measured")


def test_one_image_and_nothing_measured_are_no_verdict():
    found = verdict(examined(layers=4, similar=(4,), untrained=(), images=1))
    assert found.status == "cannot say" and found.headline.startswith("cannot say: one image says nothing about others")
    assert verdict(examined(measurements={})).headline == "cannot say: not measured"


def test_what_is_missing_is_named_and_the_rest_is_judged():
    e = without(examined(layers=4, similar=(3,)), "token_rank", "head_divergence")
    assert verdict(e).status == "found"
    assert (
        "cannot say of 2 kinds: dimensional collapse of tokens, head redundancy (not measured)" in verdict(e).headline
    )
    blind = replace(examined(layers=1), measurements=all_metrics(1, 2))
    assert "repetition (one block has no other to be compared with)" in verdict(blind).headline


def test_blocks_without_a_finite_value_are_named_and_the_others_judged():
    e = examined(layers=4)
    m = e.measurements["token_similarity"]
    broken = replace(m, mean=np.array([0.1, np.nan, 0.2, 0.95]))
    some = replace(e, measurements={**e.measurements, "token_similarity": broken})
    assert finding(some, "oversmoothing").blocks == (4,)
    assert "block 2 without a finite value" in finding(some, "oversmoothing").detail
    none = replace(m, mean=np.full(4, np.nan))
    assert finding(replace(e, measurements={"token_similarity": none}), "oversmoothing").found == "cannot say"


def test_what_was_taken_away_stands_in_the_headline_and_what_to_do_below_it():
    similar = examined(similar=(15, 16), untrained=())
    assert "verify-drops" in verdict(similar).advice
    assert verdict(examined(similar=(), measurements={"similar_blocks": similar_blocks(6, ())})).advice == ""
    tried = replace(similar, evidence=evidence(blocks_lost=(0, 1, 30), heads_lost=(40,), images=400))
    found = verdict(tried)
    assert "2 of 3 similar blocks not needed at a tolerance of 2.0%, accuracy without them -0.25% (" in found.headline
    assert "no redundant head can be removed safely (cheapest removal: accuracy -10.00% (" in found.headline
    assert found.advice == advice(tried.evidence)


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


def test_images_of_which_few_are_finite_are_few():
    e = examined(layers=4)
    m = e.measurements["similar_blocks"]
    m = replace(m, n_excluded=37, per_image=np.concatenate([m.per_image[:3], np.full_like(m.per_image[3:], np.nan)]))
    assert warned(replace(e, measurements={**e.measurements, "similar_blocks": m}), "only 3 images with finite values")


@pytest.mark.parametrize(("accuracy", "warns"), [(0.1, True), (0.15, True), (0.2, False), (None, False)])
def test_an_accuracy_that_guessing_reaches_is_pointed_out(accuracy, warns):
    info = {"accuracy": accuracy, "n_classes": 10, "n_images": 40}  # 8 of 40 by chance: p = .04
    assert bool(warned(examined(layers=4, info=info), "near chance (10.0%, 10 classes)")) == warns


@pytest.mark.parametrize(("accuracy", "classes", "n"), [(1.0, 10, 1), (1.0, 2, 9), (11 / 12, 2, 12), (0.225, 10, 40)])
def test_few_images_do_not_make_a_good_model_one_near_chance(accuracy, classes, n):
    info = {"accuracy": accuracy, "n_classes": classes, "n_images": n}
    assert not warned(examined(layers=4, info=info), "near chance")


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


def test_a_head_metric_that_could_not_be_clustered_is_left_out():
    measurements = all_metrics(4, 3)
    unclustered = replace(measurements["head_divergence"], summary={}, mean=np.full((4, 3, 3), np.nan))
    e = replace(examined(layers=4), measurements={**measurements, "head_divergence": unclustered})
    assert "redundant" not in verdict(e).headline and "nats" not in verdict(e).settings


def test_the_next_step_names_the_run_and_there_is_none_without_labels(tmp_path):
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "config.yaml").write_text("model: vit\n")
    e = examined("a", similar=range(9, 17))
    of_run = replace(e, maps=SimpleNamespace(path=tmp_path / "a run" / "maps.h5"))
    attrs = {"config": {"images": {"data": "photos/"}}}
    of_file = replace(e, maps=SimpleNamespace(path=tmp_path / "maps.h5", attrs=attrs))
    assert verdict(of_run).advice.endswith(f": attnprobe verify-drops '{tmp_path / 'a run'}'")
    maps = tmp_path / "maps.h5"
    assert verdict(of_file).advice.endswith(f": attnprobe verify-drops MODEL --maps {maps} --data photos/")
    named = " --blocks 9,10,11,12,13,14,15,16"  # where there is no file in which they are found again
    heads = "9:2,9:3,10:2,10:3,11:2,11:3,12:2,12:3,13:2,13:3,14:2,14:3,15:2,15:3,16:2,16:3"
    assert verdict(e).advice.endswith(f": attnprobe verify-drops MODEL{named} --heads {heads} --data DATA")
    assert verdict(replace(e, info={})).advice == ""


def test_the_next_step_names_parts_where_the_maps_cannot_tell_them():
    attrs = {"config": {"images": {"data": "photos/"}, "named": {"model": "vit"}}}
    of_file = {"maps": SimpleNamespace(path=Path("maps.h5"), attrs=attrs)}
    some = without(replace(examined(similar=range(9, 17)), **of_file), "similar_blocks")
    heads = ",".join(f"{block}:{head}" for block, head in redundant_heads(some.measurements["head_divergence"]))
    assert verdict(some).advice.endswith(f": attnprobe verify-drops vit --heads {heads} --data photos/")
    found = measure(unequal_heads.stages(heads=(3, 2, 3, 1), uniform=(1, 2, 3, 4)), bootstrap=50)
    e = replace(examined(layers=4), measurements=found, **of_file)
    assert verdict(e).advice.endswith(
        ": attnprobe verify-drops vit --blocks 3 --heads 1:2,1:3,2:2,3:2,3:3 --data photos/"
    )
    stages = {f"stage1/{m.metric}": replace(m, stage="stage1") for m in all_metrics(2, 6, similar=(2,)).values()}
    both = replace(some, measurements={**stages, **examined(similar=range(9, 17)).measurements})
    assert verdict(both).advice.endswith(": attnprobe verify-drops vit --blocks all --heads all --data photos/")


def test_what_could_not_be_measured_has_its_reason_beside_it(make_maps):
    maps = make_maps(images=40, layers=2, part=Part(layers=(0, 2)))
    e = replace(examined(layers=2), measurements=measure([maps], bootstrap=50))
    why = "only some of the layers were kept, and it relates each to others: capture all layers"
    assert f"repetition, image-independent attention ({why})" in verdict(e).headline
    assert finding(e, "repetition").detail == f"map_overlap was not measured: {why}"


def test_measurements_alone_have_the_verdict_of_what_was_examined():
    e = examined(similar=range(12, 17))
    assert verdict(e.measurements).headline == verdict(e).headline and verdict(e.measurements).warnings == ()
    assert verdict(dict(e.measurements)).findings == verdict(e).findings
    assert ap.verdict is verdict
    with pytest.raises(InputError, match=r"verdict takes measurements, as ap\.measure\(maps\) gives them, .* got str"):
        verdict("maps.h5")


def test_a_block_that_repeats_is_counted_among_all_blocks_though_the_first_cannot():
    f = Finding("repetition", "repetition", "overlap", "yes", 0.87, bar=0.85, block=6, blocks=(6,), of=5)
    assert f.single and f.answer == "in single blocks: block 6 of 6" and f.brief == "1 of 5"


def stages_of(kinds, sides, uniform):
    """Maps of stages, two blocks each; blocks of the numbers in `uniform` attend alike, the others do not."""
    generator, made, ids = torch.Generator().manual_seed(0), [], tuple(f"image{i}" for i in range(8))
    for stage, (kind, side) in enumerate(zip(kinds, sides, strict=True), 1):
        scores = torch.randn(len(ids), 2, 2, side**2, side**2, generator=generator)
        scores *= torch.tensor([0.0 if 2 * stage - 1 + i in uniform else 3.0 for i in range(2)]).view(2, 1, 1, 1)
        layers = tuple(f"layers.{stage}.blocks.{i}.attn" for i in range(2))
        about = {"stage": f"stage{stage}", "kind": kind, "layers": layers}
        made.append(AttentionMaps(scores.softmax(-1), ids, TokenGrid(side, side, ()), **about))
    return made


@pytest.mark.parametrize("kinds", [("self",) * 3, ("window", "window", "self"), ("window", "self", "grid")])
@pytest.mark.parametrize("uniform", [(1,), (4,), (2, 6), ()])
def test_stages_that_follow_one_another_are_judged_as_one_network(kinds, uniform):
    found = measure(stages_of(kinds, (6, 5, 4), uniform), bootstrap=20)
    near, rank, again = (finding(found, kind) for kind in ("near_uniform", "rank_collapse", "repetition"))
    assert (near.blocks, near.of) == (uniform, 6)
    has_rank = [
        number for stage, kind in enumerate(kinds) for number in (2 * stage + 1, 2 * stage + 2) if kind == "self"
    ]
    assert list(rank.levels.numbers) == has_rank and rank.of == len(has_rank)
    assert (f"judged in blocks {has_rank[0]}–{has_rank[-1]} alone" in rank.detail) == (len(has_rank) < 6)
    assert again.levels.numbers == (2, 4, 6), "the first block of a stage has none of its own before it"
    (told,) = warned(Examined("", found, {}, (), TokenGrid(0, 0, ())), "blocks are counted through all stages")
    assert "stage1: blocks 1–2, stage2: blocks 3–4, stage3: blocks 5–6" in told


def test_stages_of_too_few_tokens_to_judge_are_left_out_and_the_others_judged():
    found = measure(stages_of(("self",) * 3, (6, 4, 1), (2,)), bootstrap=20)
    near = finding(found, "near_uniform")
    assert (near.blocks, near.levels.numbers, near.detail) == ((2,), (1, 2, 3, 4), "judged in blocks 1–4 alone")
    assert finding(found, "repetition").levels.numbers == (2, 4)


def test_all_kinds_are_of_one_stage_where_encoder_and_decoder_run_one_after_the_other():
    encoder, decoder = stages_of(("self", "self"), (6, 5), (3,))
    both = [replace(encoder, stage="encoder"), replace(decoder, stage="decoder")]
    found = measure(both, bootstrap=20)
    assert {f.levels.numbers for f in verdict(found).findings if f.levels} <= {(1, 2), (2,)}
    assert finding(found, "near_uniform").of == 2
    assert warned(Examined("", found, {}, (), TokenGrid(0, 0, ())), "this is about stage encoder")


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ({"stage1": ["a.0", "a.1"], "stage2": ["b.0"]}, {"stage1": (1, 2), "stage2": (3,)}),
        ({"stage1_window": ["0.0.window", "0.1.window"], "stage1_grid": ["0.0.grid", "0.1.grid"], "stage2": ["1.0"]},
         {"stage1_window": (1, 3), "stage1_grid": (2, 4), "stage2": (5,)}),
        ({"stage1": ["a.2.b.9"], "stage2": ["a.10.b.0"]}, {"stage1": (1,), "stage2": (2,)}),
        ({"trunk": ["0", "1"]}, {}),
        ({"stage1": ["0", "1"], "stage2": []}, {}),
        ({"encoder_trunk": ["0"], "decoder_trunk": ["0"]}, {}),
    ],
)  # fmt: skip
def test_blocks_are_numbered_through_stages_in_the_order_in_which_they_run(names, numbers):
    kinds = {"window": "window", "grid": "grid"}
    stages = {name: (kinds.get(name.rpartition("_")[2], "self"), name, layers) for name, layers in names.items()}
    assert {name: its.network[name] for name, its in numbered(stages).items()} == numbers
