import numpy as np
import pytest

from attnprobe.core.errors import InputError
from tests.histories import history


def rows(h):
    return [
        h.epochs.tolist(),
        *(values.tolist() for values in (*h.matrices.values(), h.training_seconds, h.probe_seconds)),
        *(np.nan_to_num(values, nan=-1).tolist() for values in h.blocks.values()),
    ]


def test_a_history_cut_and_joined_is_the_same():
    whole = history((1, 2, 3))
    assert rows(whole.before(3).then(history((3,)))) == rows(whole)


def test_before_drops_rows_and_alarms_of_the_epoch_and_later():
    cut = history((1, 2, 5, 7), alarms=[(2, "two"), (5, "five")]).before(5)
    assert cut.epochs.tolist() == [1, 2] and len(cut) == 2
    assert [alarm.text for alarm in cut.alarms] == ["two"]
    assert len(history((3, 4)).before(1)) == 0


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"image_ids": ("c",)}, "images"),
        ({"blocks": 4}, "metrics"),
        ({"settings": {}}, "settings"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(other, what):
    with pytest.raises(InputError, match=f"up to epoch 2 has other {what}.* than epoch 3"):
        history((1, 2)).then(history((3,), **other))
