"""Each kind of trouble is told once, with its numbers; a network that learns is left in peace."""

import math
from dataclasses import replace

import numpy as np
import pytest

from attnprobe.stats.alarms import Thresholds, alarms
from tests.histories import TOKENS, history

EPOCHS = (1, 2, 3, 4, 6, 8, 10)
LEARNS = [2.8, 2.7, 2.6, 2.1, 2.0, 1.9, 1.8]


def entropies(**of_block):
    """[epoch, block] of six blocks that learn, but for those given as block_3=[...]."""
    values = np.array([LEARNS] * 6).T
    for name, column in of_block.items():
        values[:, int(name.removeprefix("block_")) - 1] = column
    return values


def told(h, **thresholds):
    return [(alarm.epoch, alarm.text) for alarm in alarms(h, Thresholds(**thresholds))]


def test_a_network_that_learns_raises_none():
    assert told(history(entropy=entropies())) == []
    assert told(history()) == []


def test_a_fall_is_told_once_with_where_it_began():
    h = history(entropy=entropies(block_3=[2.2, 2.0, 1.9, 2.1, 2.0, 0.84, 0.8]))
    assert told(h) == [(8, "row entropy of block 3 fell 58 % since epoch 6 (2.00 -> 0.84 nats)")]
    assert told(h, within=4) == [(8, "row entropy of block 3 fell 60 % since epoch 4 (2.10 -> 0.84 nats)")]
    assert told(h, within=4, fall=0.61) == []
    several = history(entropy=entropies(block_3=[2.0] * 5 + [0.9, 0.8], block_5=[2.5] * 5 + [0.5, 0.45]))
    text = "row entropy of blocks 3 and 5 fell up to 80 % since epoch 6 (2.50 -> 0.50 nats), most in block 5"
    assert told(several) == [(8, text)]


def test_a_slow_fall_is_learning_but_one_between_two_distant_probes_counts():
    slow = np.geomspace(2.8, 0.7, 20)
    assert told(history(epochs=range(1, 21), blocks=1, entropy=slow[:, None])) == []
    text = "row entropy of block 1 fell 75 % since epoch 1 (2.80 -> 0.70 nats)"
    assert told(history(epochs=(1, 20), blocks=1, entropy=slow[[0, -1], None])) == [(20, text)]


def test_entropy_collapse_is_told_in_tokens_and_not_as_a_fall_as_well():
    h = history(entropy=entropies(block_2=[2.8, 2.7, 2.6, 2.1, 0.2, 0.1, 0.9]))
    text = "entropy collapse: rows of block 2 attend to 1.2 of 17 tokens (row entropy 0.20 nats, 2.80 at epoch 1)"
    assert told(h) == [(6, text)]
    from_the_start = history(entropy=entropies(block_2=[0.0] * 7))
    text = "entropy collapse: rows of block 2 attend to 1.0 of 17 tokens (row entropy 0.00 nats)"
    assert told(from_the_start) == [(1, text)]


def test_a_fall_that_goes_on_into_a_collapse_is_both():
    h = history(entropy=entropies(block_2=[2.8, 2.7, 2.6, 2.1, 1.0, 0.1, 0.1]))
    assert [(epoch, text.split()[0]) for epoch, text in told(h)] == [(6, "row"), (8, "entropy")]


def test_near_uniform_attention_is_no_news_at_the_start_but_later():
    ln = math.log(TOKENS)
    stays = history(entropy=entropies(block_4=[ln - 0.001] * 7))
    assert told(stays) == [
        (6, "softmax attention of block 4 is near uniform: rows attend to 17.0 of 17 tokens (row entropy 2.83 nats)")
    ]
    returns = history(entropy=entropies(block_4=[ln, 2.5, ln, 2.5, 2.5, ln, ln]))
    text = "softmax attention of block 4 is near uniform: rows attend to 17.0 of 17 tokens (row entropy 2.83 nats, "
    assert told(returns) == [(3, text + "2.50 at epoch 2)")]


def test_blocks_that_begin_to_repeat_are_told_with_the_count():
    h = history(entropy=entropies(), similar_from=3)
    assert told(h) == [(3, "blocks 4–6 now repeat the previous block (similar blocks 0 -> 3 of 6 since epoch 2)")]
    ratio = np.full((7, 6), 0.3)
    ratio[:, 0] = np.nan
    ratio[3:, 4] = 0.95
    one = history(entropy=entropies(), blocks=6)
    one.blocks["similar_blocks"][:] = ratio
    assert told(one) == [(4, "block 5 now repeats the previous block (similar blocks 0 -> 1 of 6 since epoch 1)")]


def test_blocks_that_never_stopped_repeating_are_told_when_they_should_have():
    h = history(entropy=entropies(), similar_from=1)
    assert [epoch for epoch, _ in told(h)] == [6]
    assert [epoch for epoch, _ in told(h, settle=9)] == [10]
    assert next(epoch for epoch, _ in told(h, settle=0)) == 1


def test_blocks_that_are_near_uniform_are_not_told_to_repeat_one_another():
    ln = math.log(TOKENS)
    uniform = {f"block_{block}": [ln] * 7 for block in (4, 5, 6)}
    h = history(entropy=entropies(**uniform), similar_from=1)
    assert [text.split(":")[0] for _, text in told(h)] == ["softmax attention of blocks 4–6 is near uniform"]


def test_attention_that_is_not_finite_is_told_and_breaks_nothing():
    h = history(entropy=entropies(block_1=[2.8, np.nan, np.nan, 2.0, np.nan, 0.5, 0.5]))
    assert [(epoch, text) for epoch, text in told(h) if "finite" in text] == [
        (2, "the attention of block 1 is not finite")
    ]
    nothing = history(entropy=np.full((7, 6), np.nan), similar_from=2)
    assert told(nothing)[0] == (1, "the attention of blocks 1–6 is not finite")


def test_earlier_alarms_do_not_depend_on_later_epochs():
    rng = np.random.default_rng(0)
    h = history(epochs=range(1, 30), entropy=rng.uniform(0, math.log(TOKENS), (29, 6)), similar_from=7)
    every = alarms(h)
    assert len(every) > 5
    for epoch in (2, 8, 20):
        assert alarms(h.before(epoch)) == tuple(alarm for alarm in every if alarm.epoch < epoch)


def test_each_kind_comes_once_per_block():
    rng = np.random.default_rng(1)
    h = history(epochs=range(1, 40), blocks=1, entropy=rng.uniform(0, math.log(TOKENS), (39, 1)))
    kinds = [text.split()[0] for _, text in told(h)]
    assert len(kinds) == len(set(kinds)) > 1


def test_stages_have_their_own_alarms():
    falls = entropies(block_3=[2.1, 2.0, 1.9, 2.1, 2.1, 0.84, 0.8])
    one = history()
    uniform = {f"{stage}/row_entropy": one.uniform["row_entropy"] for stage in "ab"}
    h = replace(one, blocks={"a/row_entropy": entropies(), "b/row_entropy": falls}, uniform=uniform)
    assert told(h) == [(8, "row entropy of block 3 fell 60 % since epoch 6 (2.10 -> 0.84 nats) (b)")]


@pytest.mark.parametrize(
    "wrong", [{"fall": 0}, {"fall": 1}, {"peaked": 1}, {"uniform": 1.2}, {"settle": -1}, {"within": -1}]
)
def test_thresholds_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="needs fall"):
        Thresholds(**wrong)
