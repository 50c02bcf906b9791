"""Each kind of collapse, made on purpose, is named, and no other; each test case is a kind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnprobe.core.examined import Examined
from attnprobe.core.maps import AttentionMaps
from attnprobe.metrics import measure
from attnprobe.reports.kinds import KINDS, kind_named
from attnprobe.reports.verdict import verdict
from tests.reports import known_maps as made
from tests.reports.known_maps import HEADS, IMAGES, LAYERS, TOKENS, judged, logits, named, softmax

WIDTH = 32


def tokens(seed=0):
    """Unrelated block outputs; a class token that says something else of every image."""
    return np.random.default_rng(seed).normal(size=(IMAGES, LAYERS, TOKENS, WIDTH))


def alike_tokens():
    """All tokens of an image nearly one vector of its own, from block 5 on."""
    x = tokens()
    x[:, 4:] = x[:, 4:, :1] + 0.2 * tokens(1)[:, 4:]
    return x


def alike_images():
    """Tokens that differ from one another and not between images."""
    x = tokens()
    x[:, 5:] = x[:1, 5:] + 0.1 * tokens(1)[:, 5:]
    return x


def one_line():
    """Tokens along one direction of each image, both ways."""
    x, along = tokens(), np.random.default_rng(2).normal(size=(IMAGES, LAYERS, TOKENS, 1))
    x[:, 2:] = along[:, 2:] * x[:, 2:, :1] + 0.1 * tokens(1)[:, 2:]
    return x


def massive():
    """One channel of the class token and of one patch, the same in every image."""
    x = tokens()
    x[:, 3:, [0, 7], 5] = 500
    return x


def one_map_per_block():
    """Other maps in every block, the same ones in every image."""
    return np.repeat(softmax(logits())[:1], IMAGES, 0)


MADE = {
    "representation_collapse": (lambda: softmax(logits()), alike_images, 6),
    "oversmoothing": (lambda: softmax(logits()), alike_tokens, 5),
    "dimensional_collapse": (lambda: softmax(logits()), one_line, 3),
    "repetition": (lambda: made.in_all_blocks(softmax(logits())), tokens, 2),
    "near_uniform": (lambda: softmax(logits(0.2)), tokens, 1),
    "entropy_collapse": (lambda: made.random_keys(LAYERS), tokens, 1),
    "sink_collapse": (lambda: made.on_own_sink(0.8), tokens, 1),
    "rank_collapse": (made.equal_rows, tokens, 1),
    "image_independent": (one_map_per_block, tokens, 1),
    "head_redundancy": (lambda: np.repeat(softmax(logits())[:, :, :1], HEADS, 2), tokens, 1),
    "massive_activations": (lambda: softmax(logits()), massive, 4),
}


def test_there_is_a_case_of_every_kind():
    assert list(MADE) == [kind.name for kind in KINDS]


@pytest.mark.parametrize("kind", MADE)
def test_a_collapse_made_on_purpose_is_named_with_its_first_block_and_no_other(kind):
    maps, outputs, first = MADE[kind]
    found = judged(maps(), outputs())
    finding = next(f for f in found.findings if f.kind == kind)
    assert named(found) == {kind}
    assert finding.first_block == first and finding.blocks[-1] == LAYERS
    assert finding.words in found.headline and f"from block {first}" in found.headline
    assert finding.low <= finding.number <= finding.high and finding.source


def test_none_of_all_kinds_is_found_in_unrelated_maps_and_tokens():
    found = judged(softmax(logits()), tokens())
    assert found.status == "none found" and found.headline == f"none of {len(KINDS)} kinds of collapse found"


def test_the_worst_kind_comes_first_by_the_share_of_the_blocks():
    maps = softmax(logits(0.2))
    maps[:, :3] = softmax(logits())[:, :3]  # near uniform from block 4, massive activations from block 4
    x = massive()
    assert judged(maps, x).headline.startswith("near-uniform attention from block 4")
    maps[:, 3] = softmax(logits())[:, 3]
    assert judged(maps, x).headline.startswith("massive activations from block 4")


def test_a_class_token_alike_in_all_images_counts_only_where_it_stays_so():
    x = tokens()
    x[:, :4, 0] = x[:1, :4, 0]
    assert named(judged(softmax(logits()), x)) == set()


def test_the_class_token_alone_suffices():
    x = tokens()
    x[:, :, 0] = x[:1, :, 0]
    assert named(judged(softmax(logits()), x)) == {"representation_collapse"}


def test_a_bar_of_ones_own_replaces_ours():
    maps = made.on_own_sink(0.6)
    assert named(judged(maps)) == {"sink_collapse"}
    assert named(judged(maps, bars={"sink_collapse": 0.9})) == set()


def test_a_model_near_chance_is_said_to_be_so():
    about = {"accuracy": 0.11, "n_classes": 10, "n_images": 180}
    assert "the model is near chance" in judged(softmax(logits()), info=about).headline
    assert "near chance" not in judged(softmax(logits()), info={**about, "accuracy": 0.9}).headline


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [2, 3, 5])
def test_an_interval_of_few_images_ends_at_possible_values(n, seed):
    rng = np.random.default_rng(seed)
    sharpness = 6 * rng.random((n, 1, 1, 1, 1)) ** 3  # from uniform to one key, image by image
    x = softmax(sharpness * rng.normal(size=(n, LAYERS, HEADS, TOKENS, TOKENS)))
    y = rng.normal(size=(n, LAYERS, TOKENS, WIDTH)) * (1 + 30 * (rng.random((n, 1, 1, WIDTH)) > 0.9))
    for f in judged(x, tokens=y).findings:
        if f.number is not None and f.low is not None and f.high is not None:
            least, most = kind_named(f.kind).possible
            most = TOKENS if f.kind == "entropy_collapse" else most
            assert f.low >= min(-np.inf if least is None else least, f.number), f
            assert f.high <= max(np.inf if most is None else most, f.number) + 1e-9, f


def test_the_number_of_a_kind_that_is_explained_everywhere_is_the_furthest_beyond_the_bar():
    spread = np.linspace(0.05, 0.25, LAYERS)[:, None, None, None]  # nearer to uniform in early blocks
    f = next(f for f in judged(softmax(logits(1.0) * spread)).findings if f.kind == "rank_collapse")
    assert f.is_explained and f.levels is not None
    assert f.number == f.levels.mean.min() and f.block == f.levels.numbers[int(f.levels.mean.argmin())] != LAYERS


def test_similar_and_redundant_are_said_to_be_other_counts_than_the_kinds_wherever_they_are_advised():
    from attnprobe.reports.kinds import OTHER_BARS
    from attnprobe.reports.papers import papers_caption
    from tests.reports.formulas import examined

    e = examined("a", similar=range(9, 17))
    assert OTHER_BARS in verdict(e).advice and OTHER_BARS in papers_caption([e])
    assert "Likewise counted" in verdict(e).settings or "redundant" not in verdict(e).settings


@pytest.mark.parametrize(("block", "warned"), [(-1, True), (2, False)])
def test_a_kind_of_the_last_block_alone_comes_with_what_a_class_token_reads(block, warned):
    maps = softmax(logits())
    maps[:, block] = softmax(logits(0.2))[:, block]
    found = judged(maps, tokens())
    assert "in single blocks: near-uniform attention" in found.headline
    assert any("near-uniform attention is in the last block alone" in said for said in found.warnings) == warned


def test_the_last_block_of_a_stage_that_others_follow_is_not_the_networks_last():
    maps = softmax(logits())
    maps[:, -1] = softmax(logits(0.2))[:, -1]
    stage = AttentionMaps(torch.as_tensor(maps, dtype=torch.float32), tuple(map(str, range(IMAGES))), made.GRID)
    other = replace(stage, values=stage.values[:, :1].repeat(1, 1, 2, 1, 1), stage="other")  # of twice the heads
    for stages, said in (([stage], True), ([stage, other], False)):
        found = verdict(Examined("a", measure(stages, ["row_entropy"], bootstrap=50), {}, (), made.GRID))
        assert any("is in the last block alone" in text for text in found.warnings) == said
