from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data.digits import digits

AS_STORED = InputSpec((8, 8), mean=(0, 0, 0), std=(1, 1, 1))


def test_splits_are_disjoint_complete_and_balanced():
    train, val = digits(split="train", spec=AS_STORED), digits(split="val", spec=AS_STORED)
    assert isinstance(val, ImageSource)
    assert (len(train), len(val)) == (1437, 360)
    assert set(train.ids) | set(val.ids) == {f"digits/{row:04d}" for row in range(1797)}
    (batch,) = val.batches(360)
    assert Counter(batch.labels.tolist()) == dict.fromkeys(range(10), 36)


def test_the_split_is_the_same_for_ever():
    assert digits(spec=AS_STORED).ids[:6] == (
        "digits/0004",
        "digits/0027",
        "digits/0034",
        "digits/0052",
        "digits/0059",
        "digits/0061",
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_id_names_the_row_in_scikit_learn(split):
    bunch = load_digits()
    for batch in digits(split=split, spec=AS_STORED).batches(500):
        rows = [int(name.removeprefix("digits/")) for name in batch.ids]
        expected = torch.from_numpy(bunch.images[rows]).float()[:, None].expand(-1, 3, -1, -1) / 16
        assert torch.equal(batch.pixels, expected)
        assert batch.labels.tolist() == bunch.target[rows].tolist()


def test_limit_is_balanced_and_lies_inside_the_split():
    few = digits(spec=AS_STORED, limit=50)
    (batch,) = few.batches(50)
    assert Counter(batch.labels.tolist()) == dict.fromkeys(range(10), 5)
    assert set(few.ids) < set(digits(spec=AS_STORED).ids)
    assert few.fingerprint != digits(spec=AS_STORED).fingerprint != digits(split="train", spec=AS_STORED).fingerprint


def test_another_split_is_refused_and_the_splits_are_named():
    with pytest.raises(InputError, match="it has train and val"):
        digits(split="test", spec=AS_STORED)
