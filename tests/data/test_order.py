from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.images import position_batches
from attnprobe.data.order import balanced_subset, one_half

LABELS = st.lists(st.integers(-1, 4), min_size=1, max_size=60)


@given(labels=LABELS, size=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_subset_takes_from_every_class_equally_until_it_runs_out(labels, size):
    ids = [f"image{k}" for k in range(len(labels))]
    chosen = balanced_subset(ids, labels, size)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(size, len(labels))
    available, taken = Counter(labels), Counter(labels[k] for k in chosen)
    highest = max(taken.values())
    for label in available:
        assert taken[label] >= min(available[label], highest - 1)


@given(labels=LABELS, size=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_a_smaller_subset_lies_inside_a_larger_one(labels, size):
    ids = [f"image{k}" for k in range(len(labels))]
    assert set(balanced_subset(ids, labels, size)) <= set(balanced_subset(ids, labels, size + 1))


def test_subset_depends_on_ids_and_not_on_where_they_stand():
    ids, labels = [f"image{k}" for k in range(40)], [k % 3 for k in range(40)]
    chosen = {ids[k] for k in balanced_subset(ids, labels, 9)}
    assert chosen == {ids[::-1][k] for k in balanced_subset(ids[::-1], labels[::-1], 9)}


def test_subset_is_the_same_for_ever():
    assert balanced_subset([f"image{k}" for k in range(20)], [k % 2 for k in range(20)], 4) == [0, 6, 13, 17]


def test_batches_cut_the_order_and_keep_the_rest():
    assert list(position_batches(5, 2, None)) == [[0, 1], [2, 3], [4]]
    assert list(position_batches(5, 2, [4, 0, 2])) == [[4, 0], [2]]
    assert list(position_batches(5, 2, [])) == []


@given(labels=st.lists(st.integers(-1, 5), max_size=60))
@settings(max_examples=60, deadline=None)
def test_halves_are_equal_and_alike_in_their_classes(labels):
    ids = [f"image{i}" for i in range(len(labels))]
    half = one_half(ids, labels)
    assert 0 <= half.sum() - (~half).sum() <= 1
    for label in set(labels):
        members = np.array(labels) == label
        assert abs((half & members).sum() - (~half & members).sum()) <= 1
    turned = one_half(ids[::-1], labels[::-1])[::-1]
    np.testing.assert_array_equal(half, turned)


def test_no_batch_spans_two_runs_and_runs_are_asked_for_one_by_one():
    asked = []

    def runs():
        for run in (range(5), [8, 6], range(9, 10)):
            asked.append(len(run))
            yield run

    batches = position_batches(10, 3, runs())
    assert next(batches) == [0, 1, 2] and asked == [5]
    assert list(batches) == [[3, 4], [8, 6], [9]]
