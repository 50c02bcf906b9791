from importlib import import_module

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data.fractals import FILL_RATE, JITTER, accepted_systems, fractals

SPEC = InputSpec((24, 32))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
def test_an_image_has_the_same_bits_in_whatever_batch_it_is_drawn(batch_size, collect):
    source = fractals("fractals:5", split="train", spec=SPEC)
    assert isinstance(source, ImageSource)
    order = [17, 3, 240, 4, 0, 99, 1, 2]
    whole, cut = collect(source, 300, order=range(245)), collect(source, batch_size, order=order)
    assert list(cut) == [source.ids[k] for k in order]
    for name, (pixels, label) in cut.items():
        assert torch.equal(pixels, whole[name][0]) and label == whole[name][1] == int(name.split("/")[3])


def test_bits_do_not_depend_on_threads(collect):
    source, threads = fractals(spec=SPEC, limit=40), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = collect(source, 40)
        torch.set_num_threads(3)
        together = collect(source, 40)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(together[name][0], pixels) for name, (pixels, _label) in alone.items())


def test_a_class_is_the_same_however_many_classes_there_are(collect):
    few, many = fractals("fractals:3", spec=SPEC), fractals(classes=40, spec=SPEC)
    for name, (pixels, _label) in collect(few, order=range(6)).items():
        assert torch.equal(collect(many, order=[many.ids.index(name)])[name][0], pixels)


def test_the_name_says_how_many_classes_and_images_of_each():
    for split, per_class in (("train", 40), ("val", 4)):
        named, optional = (
            fractals("fractals:3:40", split, spec=SPEC),
            fractals("fractals:3", split, spec=SPEC, per_class=40),
        )
        assert len(named) == 3 * per_class and len(named.class_names) == 3
        assert (named.ids, named.fingerprint) == (optional.ids, optional.fingerprint)
    assert len(fractals("fractals:3", "train", spec=SPEC)) == 3 * 500


def test_train_and_val_share_no_picture(collect):
    train = fractals("fractals:4", split="train", spec=SPEC, per_class=20)
    val = fractals("fractals:4", split="val", spec=SPEC, per_class=200)
    assert (len(train), len(val)) == (80, 80)
    seen = {pixels.numpy().tobytes() for pixels, _label in collect(train).values()}
    assert len(seen) == 80
    assert not seen & {pixels.numpy().tobytes() for pixels, _label in collect(val).values()}
    assert not set(train.ids) & set(val.ids)


def test_every_map_contracts_even_after_jitter():
    maps, shares = accepted_systems(seed=0, n_classes=200)
    matrices = maps[..., :4].reshape(-1, 2, 2)
    largest = np.linalg.svd(matrices, compute_uv=False)[:, 0].max()
    assert largest <= 0.85 + 1e-12 and largest + 2 * JITTER < 1
    np.testing.assert_allclose(shares.sum(1), 1)
    assert ((shares > 0).sum(1) >= 2).all()


def test_every_class_is_visible_and_not_a_blob(collect):
    spec = InputSpec((32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    source = fractals("fractals:60", split="train", spec=spec)
    filled = [(pixels.sum(0) > 0).float().mean() for pixels, _label in collect(source, order=range(120)).values()]
    assert min(filled) > FILL_RATE[0] / 2 and max(filled) < 0.85


def test_classes_can_be_told_apart_by_shape():
    spec = InputSpec((16, 16), mean=(0, 0, 0), std=(1, 1, 1))
    sets = {}
    for split in ("train", "val"):
        source = fractals("fractals:10", split=split, spec=spec, per_class=40 if split == "train" else 100)
        (batch,) = source.batches(1000)
        sets[split] = (batch.pixels.mean(1).flatten(1).numpy(), batch.labels.numpy())
    model = LogisticRegression(C=1.0, max_iter=500).fit(*sets["train"])
    assert model.score(*sets["val"]) > 0.7  # chance is 0.1


def test_images_of_a_class_differ_in_shape_and_not_by_view_alone(collect, monkeypatch):
    monkeypatch.setitem(vars(import_module("attnprobe.data.fractals")), "VIEW", 0.0)
    source = fractals("fractals:2", spec=InputSpec((32, 32), mean=(0, 0, 0), std=(1, 1, 1)), limit=20)
    shapes = [(pixels.sum(0) > 0, label) for pixels, label in collect(source).values()]
    assert len({(shape.numpy().tobytes(), label) for shape, label in shapes}) == 20


def test_limit_is_a_balanced_prefix_and_changes_the_fingerprint():
    all_of_them, few = fractals("fractals:5", spec=SPEC), fractals("fractals:5", spec=SPEC, limit=15)
    assert few.ids == all_of_them.ids[:15]
    (batch,) = few.batches(15)
    assert torch.bincount(batch.labels).tolist() == [3] * 5
    prints = {s.fingerprint for s in (all_of_them, few, fractals("fractals:5", spec=SPEC, limit=15, seed=1))}
    assert len(prints) == 3


def test_another_seed_is_other_classes(collect):
    one, other = (collect(fractals("fractals:2", spec=SPEC, seed=s, limit=2)) for s in (0, 1))
    assert not any(torch.equal(a[0], b[0]) for a in one.values() for b in other.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fractals:x", {}),
        ("fractals:1", {}),
        ("fractals:", {}),
        ("fractals:4:", {}),
        ("fractals:4:0", {}),
        ("fractals:4:5:6", {}),
        ("fractals:4:-5", {}),
        ("fractals:4:5", {"per_class": 5}),
        ("fractals:4", {"classes": 5}),
        ("fractals", {"per_class": 0}),
        ("fractals", {"seed": -1}),
        ("fractals", {"split": "test"}),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(name, options):
    with pytest.raises(InputError) as caught:
        fractals(name, spec=SPEC, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_draws(collect, gpu):
    source = fractals("fractals:7", spec=InputSpec((64, 64)), limit=70)
    here, there = collect(source, 9), collect(source, 70, device=gpu)
    for name, (pixels, _label) in here.items():
        torch.testing.assert_close(there[name][0].cpu(), pixels, atol=0.05, rtol=0)
