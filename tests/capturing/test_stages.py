"""A model of several shapes of attention: names of its stages, and the way through file and metrics."""

from functools import partial

import numpy as np
import pytest
import timm
import torch

from attnprobe.capturing import Capture, Recording
from attnprobe.capturing.kinds import stage_names
from attnprobe.core.errors import InputError
from attnprobe.metrics import METRICS, measure
from attnprobe.store import CapturePlan, MapWriter, open_maps

CAIT = partial(timm.create_model, "cait_xxs24_224", img_size=32, depth=2, num_classes=3)
PVT = partial(timm.create_model, "pvt_v2_b0", depths=(1, 1, 1, 2), num_classes=3)
XCIT = partial(timm.create_model, "xcit_nano_12_p16_224", img_size=32, depth=2, num_classes=3)
SWIN = partial(
    timm.create_model,
    "swin_tiny_patch4_window7_224",
    img_size=64,
    window_size=4,
    depths=(2, 1),
    embed_dim=24,
    num_heads=(2, 3),
    num_classes=3,
)
SITES = ("weights", "effective")


def captured(build, size=32, images=5, **options):
    torch.manual_seed(0)
    return Capture(Recording(build().eval(), SITES, **options), torch.randn(images, 3, size, size), 2)


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        ([("self", 5)], ["trunk"]),
        ([("self", 4), ("class", 1)], ["trunk", "class"]),
        ([("window", 64), ("window", 16), ("self", 4)], ["stage1", "stage2", "stage3"]),
        ([("window", 64), ("grid", 64), ("self", 4)], ["stage1_window", "stage1_grid", "stage2"]),
        ([("self", 5), ("self", 5), ("pool", 1), ("pool", 1)], ["trunk", "trunk_2", "pool", "pool_2"]),
        ([("class", 1)], ["class"]),
    ],
)
def test_names_of_stages(stages, names):
    assert stage_names(stages) == names


@pytest.mark.parametrize(("build", "size"), [(CAIT, 32), (PVT, 64), (XCIT, 32), (SWIN, 64)])
def test_several_stages_come_back_from_one_file(build, size, tmp_path):
    plan = CapturePlan(image_ids=tuple(str(i) for i in range(5)), model="any")
    chunks = list(captured(build, size))
    with MapWriter(tmp_path / "maps.h5", plan, dtype="float32") as writer:
        for maps in captured(build, size).batches():
            writer.append(maps)
    with open_maps(tmp_path / "maps.h5") as reader:
        assert reader.stages == tuple(dict.fromkeys(m.stage for m in chunks))
        assert reader.maps(site="weights").stage == reader.stages[0]
        for m in reader:
            same = [c for c in chunks if (c.stage, c.site) == (m.stage, m.site)]
            assert torch.equal(m.values, torch.cat([c.values for c in same]))
            for name in ("grid", "kind", "layers", "is_effective", "stochastic"):
                assert getattr(m, name) == getattr(same[0], name)
        from_file = measure(reader, bootstrap=0)
    live = measure(captured(build, size), bootstrap=0)
    assert from_file.keys() == live.keys()
    for key, m in live.items():
        np.testing.assert_allclose(m.mean, from_file[key].mean, rtol=1e-5, atol=1e-6)


def test_single_stages_keep_their_keys_and_others_carry_their_name():
    cait = measure(captured(CAIT), bootstrap=0)
    assert {"row_entropy", "layer_similarity", "layer_similarity@weights", "attention_distance"} <= cait.keys()
    assert {"class/row_entropy", "class/head_divergence"} <= cait.keys() and "class/layer_similarity" not in cait
    swin = measure(captured(SWIN, 64), bootstrap=0)
    assert all(key.startswith(("stage1/", "stage2/")) for key in swin)
    plain = np.log(16)  # nearly uniform over the 16 tokens of a window
    shifted = (9 * np.log(16) + 6 * np.log(8) + np.log(4)) / 16  # of 16 windows 6 are cut in two by the edge, 1 in four
    np.testing.assert_allclose(swin["stage1/row_entropy"].mean, [[plain] * 2, [shifted] * 2], rtol=1e-3)


SQUARE = ("layer_similarity", "similar_blocks", "effective_rank", "rank_residual", "attention_distance")


@pytest.mark.parametrize("metric", SQUARE)
@pytest.mark.parametrize(("build", "size"), [(XCIT, 32), (PVT, 64), (SWIN, 64)])
def test_metrics_over_tokens_refuse_channels_windows_and_unequal_queries_and_keys(metric, build, size):
    chunks = [m for m in captured(build, size) if m.kind != "self"]
    with pytest.raises(InputError, match=rf"'{metric}' is not defined.*(channel|window|pyramid)"):
        measure(chunks, [METRICS[metric]])


def test_unwindowed_maps_take_the_metrics_of_whole_pictures():
    whole = measure(captured(SWIN, 64, unwindow=True), bootstrap=0)
    distance = whole["stage1/attention_distance"].mean
    assert distance.shape == (2, 2) and (distance < 4 * 4 * 2**0.5).all(), "no further than across a window"
    folded = measure(captured(SWIN, 64), [METRICS["row_entropy"]], bootstrap=0)
    np.testing.assert_allclose(whole["stage1/row_entropy"].mean, folded["stage1/row_entropy"].mean, rtol=1e-5)
