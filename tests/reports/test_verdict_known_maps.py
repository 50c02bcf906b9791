"""Maps of known truth are called by it; each case is named by the truth."""

import numpy as np
import pytest
import torch

from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.text import blocks_text
from attnprobe.metrics import measure
from attnprobe.reports.verdict import verdict
from tests.reports import known_maps as made
from tests.reports.known_maps import LAYERS, judged, logits, named, softmax

REPEATS, ENTROPY, SINK = "repetition", "entropy_collapse", "sink_collapse"
SAME, COPIES = "the same in all images", "copying content, as the previous block"

CASES = {
    "independent maps: nothing": (lambda: softmax(logits()), set(), "none of 7 kinds of collapse found"),
    "uniform maps: near uniform": (lambda: 0 * logits() + 1 / made.TOKENS, {"near_uniform"}, "near-uniform"),
    "unrelated maps of spread .2: near uniform": (lambda: softmax(logits(0.2)), {"near_uniform"}, "from block 1"),
    "unrelated one-hot rows: no entropy": (lambda: made.random_keys(LAYERS), {ENTROPY}, "entropy collapse from"),
    "one-hot rows copied: a copy": (lambda: made.in_all_blocks(made.random_keys(1)), {ENTROPY, REPEATS}, COPIES),
    "permutations copied: a copy": (made.permutations, {ENTROPY, REPEATS}, COPIES),
    "one hard sink: the same, a sink": (made.hard_sink, {SINK, REPEATS}, f"{SAME} (sink)"),
    "a hard sink per head: the same, a sink": (lambda: made.on_own_sink(1.0), {SINK, REPEATS}, f"{SAME} (sink)"),
    "a sink of 99 %: the same, a sink": (lambda: made.on_own_sink(0.99), {SINK, REPEATS}, f"{SAME} (sink)"),
    "a sink of 80 %, the rest unrelated: a sink": (lambda: made.on_own_sink(0.8), {SINK}, "sink collapse from block 1"),
    "a few keys over a flat floor, unrelated: nothing": (made.few_keys, set(), "none of 7 kinds"),
    "local windows in all blocks: the same, positional": (
        made.windows, {REPEATS, "image_independent"}, f"{SAME} (positional: local window)",
    ),
    "heads in another order: a copy, heads matched": (
        made.permuted_heads, {REPEATS}, "copying content, as the previous block with its heads in another order",
    ),
    "A, B, A, B: a copy of the block two before": (made.alternating, {REPEATS}, "the block two before (A, B, A, B)"),
    "a slow drift: copies that drift": (made.drifting, {REPEATS}, "drifting: block 8 overlaps"),
    "all but the class token copied: a copy": (made.patches_copied, {REPEATS}, COPIES),
    "the class token's row alone copied: nothing": (made.class_row_copied, set(), "none of 7 kinds"),
    "one map for all images and blocks: the same, positional": (
        lambda: np.repeat(made.in_all_blocks(softmax(logits()))[:1], made.IMAGES, 0),
        {REPEATS, "image_independent"}, f"{SAME} (positional)",
    ),
    "equal rows, unrelated between blocks: rank one": (made.equal_rows, {"rank_collapse"}, "rank collapse of maps"),
    "heads of a block identical: redundant heads": (
        lambda: np.repeat(softmax(logits())[:, :, :1], made.HEADS, 2), {"head_redundancy"}, "head redundancy from",
    ),
}  # fmt: skip


@pytest.mark.parametrize("truth", CASES)
def test_known_maps_are_called_by_their_truth(truth):
    make, kinds, words = CASES[truth]
    found = judged(make())
    assert named(found) == kinds
    assert words in found.headline


def test_blocks_that_are_not_finite_in_any_image_leave_the_others_to_be_judged():
    """As of a network whose numbers overflow from some block on: the blocks before are sound, or collapsed."""
    maps = made.in_all_blocks(softmax(logits(layers=1)[:, :, :1].repeat(made.HEADS, 2)))
    maps[:, 6:] = np.nan
    found = judged(maps)
    assert named(found) == {REPEATS, "head_redundancy"} and "blocks 7–8 without a finite value" in found.headline
    for kind, blocks in ((REPEATS, (2, 3, 4, 5, 6)), ("head_redundancy", (1, 2, 3, 4, 5, 6))):
        assert next(f for f in found.findings if f.kind == kind).blocks == blocks
    assert not any("only 0 images" in warning for warning in found.warnings)


def test_why_a_kind_cannot_be_judged_is_told_of_measurements_alone_too():
    values = torch.from_numpy(softmax(logits(layers=2)))
    maps = AttentionMaps(values, tuple(map(str, range(made.IMAGES))), made.GRID)
    found = verdict(measure([maps], bootstrap=20))
    assert "no block outputs were captured: capture with tokens=True" in found.headline


def test_a_last_block_that_is_not_finite_is_no_verdict_on_what_must_last_to_the_end():
    tokens = torch.randn(made.IMAGES, LAYERS, made.TOKENS, 8, generator=torch.Generator().manual_seed(0))
    tokens[:, 6:] = torch.nan
    values = torch.full((made.IMAGES, LAYERS, 1, made.TOKENS, made.TOKENS), 1 / made.TOKENS)
    maps = AttentionMaps(values, tuple(map(str, range(made.IMAGES))), made.GRID, tokens=tokens)
    found = verdict(measure([maps], ["image_similarity", "token_similarity"], bootstrap=20))
    assert "none of 1 kinds of collapse found; blocks 7–8 without a finite value" in found.headline
    assert "representation collapse across images (image_similarity is not finite in the last block)" in found.headline


def test_a_head_that_is_not_finite_in_any_image_is_not_counted_and_a_single_finite_image_is_no_verdict():
    maps = softmax(logits())
    maps[:, 2, 1] = np.nan
    assert judged(maps).headline.startswith("none of 7 kinds of collapse found; block 3 without a finite value")
    maps[1:] = np.nan
    assert judged(maps).status == "cannot say"


@pytest.mark.parametrize("copies", [range(2, 8), range(2, 9), (8,), (3, 4, 7)])
def test_more_copies_make_no_weaker_verdict(copies):
    """Blocks that copy the one before are named, all of them and no others, whatever the last block does."""
    maps = softmax(logits())
    for block in copies:
        maps[:, block - 1] = maps[:, block - 2]
    found = judged(maps, untrained=softmax(logits(0.1)))
    repeats = next(f for f in found.findings if f.kind == REPEATS)
    assert repeats.blocks == tuple(copies) and repeats.first_block == copies[0]
    assert f"{blocks_text(tuple(copies))} copying content" in found.headline and found.status == "found"


def test_the_untrained_network_is_a_reference_and_no_bar():
    """A model as near uniform as the untrained one is near uniform; sharp copies are, beside an untrained L - 1."""
    flat = softmax(logits(0.1))
    found = judged(flat, untrained=flat)
    near = next(f for f in found.findings if f.kind == "near_uniform")
    assert named(found) == {"near_uniform"} and near.number == pytest.approx(near.untrained)
    sharp = judged(made.in_all_blocks(softmax(logits())), untrained=flat)
    assert named(sharp) == {REPEATS}
    assert next(f for f in sharp.findings if f.kind == REPEATS).untrained > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_rounding_makes_no_content_of_maps_that_are_the_same_in_all_images(seed):
    """In float32, from sums that differ in their last digits."""
    one = np.random.default_rng(seed).normal(size=(1, 1, made.HEADS, made.TOKENS, made.TOKENS)) * 2
    scores = np.broadcast_to(one, logits().shape) + 1e-6 * logits()
    assert f"{SAME} (positional)" in judged(softmax(scores)).headline


def test_near_uniform_blocks_repeat_for_that_and_are_not_called_copies():
    found = judged(softmax(logits(0.1)))
    repeats = next(f for f in found.findings if f.kind == REPEATS)
    assert repeats.found == "no" and "not counted: near uniform" in repeats.detail
    assert f"so {LAYERS - 1} of them overlap with the previous block" in found.headline


def test_what_was_not_measured_cannot_be_said_and_the_rest_is():
    found = judged(softmax(logits()), metrics=["similar_blocks", "head_divergence", "row_entropy"])
    assert found.status == "none found" and found.headline.startswith("none of 3 kinds of collapse found; cannot say")
    assert {f.kind for f in found.findings if f.found == "cannot say"} >= {REPEATS, SINK, "oversmoothing"}
    one = judged(softmax(logits())[:1])
    assert one.status == "cannot say" and "one image says nothing about others" in one.headline


def test_a_kind_in_single_blocks_is_named_last_and_is_no_collapse_of_the_network():
    maps = softmax(logits())
    maps[:, 0] = 1 / made.TOKENS
    found = judged(maps)
    assert found.status == "none found" and named(found) == {"near_uniform"}
    assert found.headline.startswith("none of 7 kinds of collapse found in 25% of the blocks or more; in single")
    assert f"(block 1 of {LAYERS})" in found.headline
    maps[:, : LAYERS // 4] = 1 / made.TOKENS
    assert judged(maps).headline.startswith("near-uniform attention from block 1 (2 of 8 blocks")


@pytest.mark.parametrize(("mixed", "is_headline"), [(0.0, True), (0.05, True), (0.12, False)])
def test_a_single_block_that_repeats_is_a_headline_where_it_all_but_copies(mixed, is_headline):
    maps = softmax(logits())
    maps[:, 4] = (1 - mixed) * maps[:, 3] + mixed * maps[:, 5]
    overlap = float(np.minimum(maps[:, 4], maps[:, 3]).sum(-1).mean())
    found = judged(maps)
    assert named(found) == {REPEATS} and overlap > 0.85 and (overlap > 0.925) is is_headline
    assert found.headline.startswith("repetition in block 5" if is_headline else "none of 7 kinds") is True
    assert ("in single blocks: repetition (block 5 of 8)" in found.headline) is not is_headline


@pytest.mark.parametrize("n_keys", [1, 2, 3])
def test_maps_of_so_few_tokens_that_they_have_no_choice_are_not_judged(n_keys):
    maps = softmax(np.random.default_rng(0).normal(size=(8, LAYERS, 2, n_keys, n_keys)))
    grid = TokenGrid(1, n_keys, prefix=())
    values = torch.from_numpy(maps).float()
    found = verdict(measure([AttentionMaps(values, tuple(map(str, range(8))), grid)], bootstrap=0))
    assert found.status == "cannot say" and not named(found)
    told = {f.kind: f.detail for f in found.findings}
    reason = f"attention over {n_keys} token{'s' if n_keys > 1 else ''} leaves no choice to judge"
    assert all(told[kind] == reason for kind in ("near_uniform", SINK, ENTROPY, REPEATS, "head_redundancy"))
