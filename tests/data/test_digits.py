from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data.digits import WHITE, digits, whole_picture

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


def enlarged_by_keys(values, n):
    """[row, col] -> [n, col] by Keys' cubic with a = -0.75, as torch enlarges; beyond the border its pixels repeat."""
    out = np.zeros((n, values.shape[1]))
    for i in range(n):
        centre = (i + 0.5) * len(values) / n - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x, a = abs(centre - j), -0.75
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            out[i] += (near if x <= 1 else far) * values[min(max(j, 0), len(values) - 1)]
    return out


@pytest.mark.parametrize("size", [(20, 24), (5, 6)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_pillows_or_keys_cubic(size, mode):
    grey = np.random.RandomState(0).randint(0, WHITE + 1, (8, 8), dtype=np.uint8)
    spec = InputSpec(size, interpolation=mode, crop_pct=0.5)
    ours = whole_picture(torch.from_numpy(grey)[None, None], spec)[0, 0].numpy() * WHITE
    if mode == "bicubic" and size[0] > 8:  # Pillow has a = -0.5
        theirs = enlarged_by_keys(enlarged_by_keys(grey.astype(float), size[0]).T, size[1]).T
    else:
        theirs = np.array(Image.fromarray(grey).convert("F").resize(size[::-1], Image.Resampling[mode.upper()]))
    np.testing.assert_allclose(ours, theirs.clip(0, WHITE), atol=1e-4)


def test_pixels_do_not_depend_on_the_batch(collect):
    source = digits(spec=InputSpec((16, 12)), limit=9)
    whole = collect(source, 9)
    for name, (pixels, _label) in collect(source, 1, order=[6, 2, 0, 1, 3, 5, 4, 8, 7]).items():
        assert torch.equal(pixels, whole[name][0])
