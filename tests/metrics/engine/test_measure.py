import itertools
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.core.metric import metric
from attnprobe.metrics import (
    DEFAULT,
    IN_SETS,
    METRICS,
    head_divergence,
    layer_similarity,
    measure,
    row_entropy,
    token_similarity,
)
from attnprobe.metrics.engine import collected
from attnprobe.plots.style import heading
from tests import unequal_heads


def some_maps(images=7, seed=0, tokens=True):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(size=(images, 3, 2, 7, 7))).softmax(-1)
    tokens = torch.from_numpy(rng.normal(size=(images, 3, 7, 5))) if tokens else None
    return AttentionMaps(values, tuple(f"{seed}-{i}" for i in range(images)), TokenGrid(2, 3), tokens=tokens)


def in_chunks(maps, sizes):
    ends = list(itertools.accumulate(sizes))
    assert ends[-1] == maps.n_images
    return [maps.images(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def mixed_site(maps):
    """What a variant that mixes heads delivers: signed effective maps."""
    return replace(maps, values=maps.values - 0.1, site="effective", is_effective=True, stochastic=False)


def rounded(summary):
    """As text, floats to 12 digits."""
    return json.dumps(json.loads(json.dumps(summary), parse_float=lambda text: round(float(text), 12)))


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        for part in ("mean", "std", "ci", "per_image"):
            np.testing.assert_allclose(getattr(a[name], part), getattr(b[name], part), rtol=1e-12, atol=1e-12)
        assert a[name].image_ids == b[name].image_ids and a[name].n_images == b[name].n_images


@settings(max_examples=10, deadline=None)
@given(sizes=st.permutations([1, 2, 4]), piece=st.sampled_from([1, 10_000, 2**24]))
def test_the_sizes_of_chunks_and_pieces_do_not_matter(sizes, piece):
    whole = measure([some_maps()], bootstrap=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["attnprobe.metrics.engine.collect"], "PIECE_BYTES", piece)
        parts = measure(iter(in_chunks(some_maps(), sizes)), bootstrap=50)
    assert_same(whole, parts)
    for name in whole:
        assert rounded(whole[name].summary) == rounded(parts[name].summary)


def test_the_order_of_images_does_not_move_the_mean():
    maps = some_maps()
    backwards = replace(maps, values=maps.values.flip(0), tokens=maps.tokens.flip(0), image_ids=maps.image_ids[::-1])
    one, other = measure([maps], bootstrap=0), measure([backwards], bootstrap=0)
    for name in one:
        np.testing.assert_allclose(one[name].mean, other[name].mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(one[name].per_image, other[name].per_image[::-1])


def test_the_default_metrics_are_measured_and_their_mean_is_that_of_the_function():
    maps = some_maps()
    result = measure([maps])
    assert tuple(result) == DEFAULT
    for name, m in result.items():
        direct = METRICS[name].with_settings(**IN_SETS.get(name, {})).per_image(maps)
        if m.from_mean is None:
            np.testing.assert_allclose(m.mean, direct.mean(0), atol=1e-12)
            np.testing.assert_allclose(m.std, direct.std(0), atol=1e-12)
        else:
            np.testing.assert_allclose(m.mean, m.from_mean(direct.mean(0).numpy(), len(direct)), atol=1e-12)
        assert m.mean.shape == m.std.shape == m.ci.shape[1:] and m.mean.ndim == len(m.axes)
        assert (m.ci[0] <= m.mean + 1e-12).all() and (m.mean <= m.ci[1] + 1e-12).all()
        assert (m.metric, m.site, m.stage, m.is_effective, m.n_images) == (name, "weights", "trunk", True, 7)
        assert m.settings["interval"] == "bootstrap" and m.settings["bootstrap"] == 1000
        low, high = m.value_range
        assert low is None or (m.mean >= low - 1e-9).all()
        assert high is None or (m.mean <= high + 1e-9).all()
        json.dumps({"summary": m.summary, "settings": m.settings}, allow_nan=False)


@pytest.mark.parametrize("lost", [slice(None), 1], ids=["in all blocks", "in one block"])
def test_images_that_are_not_finite_are_as_if_they_were_not_there(lost):
    """Also for numbers of pairs of images, which are no means over them: there are fewer pairs then."""
    maps, images = some_maps(), [0, 3, 4]
    damaged = replace(maps, values=maps.values.clone(), tokens=maps.tokens.clone())
    for tensor in (damaged.values, damaged.tokens):
        tensor[images, lost] = math.nan
    names = [*DEFAULT, "position_share", "map_cka", "token_cka", "head_dependence"]
    others = [maps.images(i, i + 1) for i in range(maps.n_images) if i not in images]
    found, expected = measure([damaged], names, bootstrap=20), measure(others, names, bootstrap=20)
    for name, m in found.items():
        here, there = (x.mean for x in (m, expected[name]))
        if lost == 1:  # this block's own numbers: those with others are of fewer images, too
            own = (1, 1) if m.axes == ("layer", "layer") else (..., 1) if m.axes[0] == "threshold" else 1
            here, there = here[own], there[own]
        np.testing.assert_allclose(here, there, atol=1e-9, err_msg=name)


def test_half_precision_is_measured_in_single_and_double_stays():
    for dtype, expected in ((torch.bfloat16, np.float32), (torch.float16, np.float32), (torch.float64, np.float64)):
        maps = some_maps()
        maps = replace(maps, values=maps.values.to(dtype), tokens=maps.tokens.to(dtype))
        for m in measure([maps], bootstrap=10).values():
            assert m.per_image.dtype == expected
            assert np.isfinite(m.mean).all()


def test_a_source_may_reuse_its_memory():
    maps = some_maps(tokens=False)

    def reusing():
        buffer = torch.empty_like(maps.values[:1])
        for i in range(maps.n_images):
            buffer.copy_(maps.values[i : i + 1])
            yield replace(maps.images(i, i + 1), values=buffer)

    @metric(axes=("layer", "head", "query", "key"))
    def itself(maps):
        return maps

    m = measure(reusing(), [itself, row_entropy])
    np.testing.assert_array_equal(m["itself"].per_image, maps.values.numpy())
    np.testing.assert_array_equal(m["row_entropy"].per_image, row_entropy(maps.values).numpy())


def test_over_the_budget_sums_give_the_same_mean_with_a_normal_interval(monkeypatch):
    chunks = in_chunks(some_maps(), [3, 3, 1])
    kept = measure(chunks)
    monkeypatch.setattr(collected, "KEEP_BYTES", 200)
    summed = measure(chunks)
    for name, m in summed.items():
        np.testing.assert_allclose(m.mean, kept[name].mean, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(m.std, kept[name].std, rtol=1e-9, atol=1e-14)
        if m.per_image is None and m.from_mean is not None:
            assert m.settings["interval"] == "none" and np.isnan(m.ci).all()
        elif m.per_image is None:
            assert m.settings["interval"] == "normal" and m.image_ids == ()
            np.testing.assert_allclose(
                m.ci[1] - m.mean, stats.t.ppf(0.975, 6) * m.std / math.sqrt(7), rtol=1e-6, atol=1e-14
            )
    assert summed["similar_blocks"].per_image is None and summed["token_similarity"].per_image is not None
    assert summed["similar_blocks"].summary["count"] == kept["similar_blocks"].summary["count"]
    assert summed["similar_blocks"].summary["count_ci"][0] is not None
    assert summed["head_divergence"].summary["redundant"] == kept["head_divergence"].summary["redundant"]
    low, high = summed["head_divergence"].summary["redundant_ci"]
    assert low <= summed["head_divergence"].summary["redundant"] <= high


def test_an_image_that_is_not_finite_is_counted_and_left_out():
    maps = some_maps()
    maps.values[2, 1, 0, 3] = math.nan
    others = replace(maps, values=maps.values[[0, 1, 3, 4, 5, 6]], tokens=None, image_ids=tuple("abcdef"))
    result, without = measure([maps]), measure([others])
    for name in without:
        assert result[name].n_images == 7 and result[name].n_excluded == 1, name
        assert np.isfinite(result[name].mean).all() and np.isfinite(result[name].ci).all(), name
    m = result["row_entropy"]
    assert np.isnan(m.per_image[2]).sum() == 1
    np.testing.assert_allclose(m.mean[1, 0], without["row_entropy"].mean[1, 0], rtol=1e-12)
    np.testing.assert_allclose(m.mean[0], row_entropy(maps.values).mean(0)[0], rtol=1e-12)


def test_one_image_has_a_mean_and_no_interval():
    for name, m in measure([some_maps(images=1)]).items():
        of_pairs = name in ("content_overlap", "image_similarity")  # one image has no other
        assert np.isfinite(m.mean).all() != of_pairs and np.isnan(m.ci).all() and np.isnan(m.std).all()


def test_effective_maps_have_the_plain_name_and_weights_are_marked():
    weights = replace(some_maps(), is_effective=False)
    chunks = [x for part in in_chunks(weights, [3, 4]) for x in (part, mixed_site(part))]
    for order in (chunks, sorted(chunks, key=lambda c: c.site)):
        result = measure(order)
        assert result["layer_similarity"].site == "effective" and result["layer_similarity"].is_effective
        assert result["layer_similarity@weights"].site == "weights"
        assert not result["layer_similarity@weights"].is_effective
        assert result["row_entropy"].site == "weights" and "row_entropy@weights" not in result
        assert "token_similarity" in result and "token_similarity@weights" not in result
        assert all(m.n_images == 7 for m in result.values())
        assert result["layer_similarity"].value_range == (-1, 1)
        assert result["layer_similarity@weights"].value_range == (0, 1)
    torch.testing.assert_close(
        torch.from_numpy(result["layer_similarity"].mean), layer_similarity(mixed_site(weights).values).mean(0)
    )


def test_other_stages_are_prefixed():
    trunk, late = some_maps(), replace(some_maps(images=2), stage="class")
    result = measure([trunk, late], [row_entropy])
    assert list(result) == ["row_entropy", "class/row_entropy"]
    assert result["class/row_entropy"].stage == "class" and result["class/row_entropy"].n_images == 2


def test_what_a_metric_cannot_do_is_skipped_by_default_and_an_error_when_asked_for():
    effective = mixed_site(some_maps(tokens=False))
    assert not {"row_entropy", "head_divergence", "token_similarity"} & measure([effective]).keys()
    with pytest.raises(InputError, match=r"'row_entropy'.*trunk at site 'effective'.*capture site='weights'"):
        measure([effective], [layer_similarity, row_entropy])
    with pytest.raises(InputError, match=r"'token_similarity'.*tokens=True"):
        measure([effective], [token_similarity])
    with pytest.raises(InputError, match="'head_divergence' is not defined"):
        measure([effective], [head_divergence])
    assert "row_entropy" in measure([effective, some_maps()], [row_entropy])


def test_maps_whose_tokens_are_not_the_pictures_have_no_distances():
    windows = replace(some_maps(tokens=False), kind="window", values=torch.full((7, 3, 2, 4, 4), 0.25))
    assert not {"attention_distance", "prefix_mass"} & measure([windows]).keys()


def test_nothing_to_measure_is_an_error():
    with pytest.raises(InputError, match="the stream of chunks was empty"):
        measure([])
    with pytest.raises(InputError, match="the stream of chunks was empty"):
        measure([some_maps().images(0, 0)])
    scores = replace(some_maps(tokens=False), site="scores", stochastic=False, is_effective=False)
    with pytest.raises(InputError, match=f"none of {len(DEFAULT)} metrics"):
        measure([scores])


def test_two_metrics_of_one_name_are_refused_and_a_new_name_is_accepted():
    rows = layer_similarity.with_settings(axis="query")
    with pytest.raises(InputError, match="two metrics are named 'layer_similarity'"):
        measure([some_maps()], [layer_similarity, rows])
    result = measure([some_maps()], [layer_similarity, replace(rows, name="row_similarity")])
    assert result["row_similarity"].settings["axis"] == "query"
    assert result["layer_similarity"].settings["axis"] == "key"


def test_models_are_not_mixed_in_one_average():
    other = AttentionMaps(torch.full((1, 3, 4, 7, 7), 1 / 7), ("x",), TokenGrid(2, 3))
    with pytest.raises(ShapeError, match="must be alike"):
        measure([some_maps(), other])


def test_a_metric_that_forgets_the_images_is_named():
    @metric(axes=("layer",))
    def forgetful(maps):
        return maps.mean((0, 2, 3, 4))

    with pytest.raises(ShapeError, match=r"'forgetful' must return \[image, layer\] for 7 images, got \(3,\)"):
        measure([some_maps()], [forgetful])


def test_uniform_attention_is_always_a_baseline_of_metrics_of_maps():
    result = measure([some_maps()])
    of_tokens = {name for name in result if "maps" not in METRICS[name].parameters}
    assert of_tokens == {"token_similarity", "token_rank", "image_similarity", "largest_activation"}
    uniform = {name: m.baselines["uniform"] for name, m in result.items() if name not in of_tokens}
    assert result["token_similarity"].baselines == {}
    closed = {
        "layer_similarity": 1,
        "layer_similarity_centred": 0,
        "head_similarity": 1,
        "head_divergence": 0,
        "row_entropy": math.log(7),
        "rank_residual": 0,
        "effective_rank": 1,
        "prefix_mass": 1 / 7,
        "sink_mass": 1 / 7,
        "map_overlap": 1,
    }
    for name, value in closed.items():
        np.testing.assert_allclose(uniform[name].mean, value, atol=1e-6)
    assert uniform["similar_blocks"].summary["similar"] == [2, 3]
    assert uniform["head_divergence"].summary["effective_heads"] == [1, 1, 1]
    assert all(m.n_images == 1 and not m.baselines and np.isnan(m.ci).all() for m in uniform.values())


def test_baselines_are_measured_in_the_same_way():
    untrained = some_maps(images=4, seed=1, tokens=False)
    result = measure([some_maps()], baselines={"untrained": iter([untrained])})
    alone = measure([untrained])
    assert list(result["layer_similarity"].baselines) == ["uniform", "untrained"]
    assert "untrained" not in result["token_similarity"].baselines
    for name, m in alone.items():
        beside = result[name].baselines["untrained"]
        np.testing.assert_array_equal(beside.ci, m.ci)
        assert beside.baselines == {} and beside.n_images == 4 and beside.summary == m.summary


def test_a_baseline_of_another_depth_is_refused():
    deeper = AttentionMaps(torch.full((1, 4, 2, 7, 7), 1 / 7), ("x",), TokenGrid(2, 3))
    with pytest.raises(ShapeError, match="baseline 'untrained' has row_entropy of"):
        measure([some_maps()], [row_entropy], baselines={"untrained": [deeper]})


def test_the_model_of_a_stream_is_not_run_in_inference_mode():
    def stream():
        assert not torch.is_inference_mode_enabled()
        yield some_maps()
        assert not torch.is_inference_mode_enabled()

    measure(stream(), [row_entropy])


def test_autocast_around_it_changes_nothing():
    maps = some_maps()
    maps = replace(maps, values=maps.values.float(), tokens=maps.tokens.float())
    plain = measure([maps], bootstrap=0)
    with torch.autocast("cpu", torch.bfloat16):
        within = measure([maps], bootstrap=0)
        assert torch.is_autocast_enabled("cpu")
    assert list(within) == list(plain)
    for name, m in plain.items():
        np.testing.assert_array_equal(within[name].mean, m.mean)
        for baseline in m.baselines:
            np.testing.assert_array_equal(within[name].baselines[baseline].mean, m.baselines[baseline].mean)


def test_maps_that_are_called_stochastic_and_are_not_are_refused(make_maps):
    maps = make_maps(images=3)
    away = replace(maps, values=maps.values - 1 / maps.values.shape[-1])
    with pytest.raises(InputError, match=r"sum to 1: they sum to .*stochastic=False"):
        measure([away])
    assert "row_entropy" not in measure([replace(away, stochastic=False)])
    rounded = replace(maps, values=maps.values.bfloat16())
    rounded.values[0, 0, 0, 0, 0] = float("nan")
    assert "row_entropy" in measure([rounded])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (lambda: torch.rand(2, 3, 2, 7, 7), "Tensor.*makes them of an array"),
        (lambda: [torch.rand(2, 3, 2, 7, 7)], "an iterable of Tensor.*makes them of an array"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)), r"Sequential\.$"),
        (lambda: "maps.h5", r"str\.$"),
        (lambda: some_maps(), r"AttentionMaps\.$"),
    ],
)
def test_what_are_no_maps_is_named_with_what_gives_maps(given, named):
    with pytest.raises(InputError, match=f"^measure takes attention maps, as ap.capture.* gives them, got {named}"):
        measure(given())
    with pytest.raises(InputError, match=f"^the baseline 'untrained' of measure takes attention maps.* got {named}"):
        measure([some_maps()], [row_entropy], baselines={"untrained": given()})


def test_blocks_of_stages_that_differ_in_heads_alone_are_numbered_through_the_network():
    found = measure(unequal_heads.stages(heads=(3, 2, *[3] * 8, 2)), ["row_entropy", "similar_blocks"], bootstrap=0)
    trunk, other = found["row_entropy"], found["trunk_2/row_entropy"]
    assert trunk.block_numbers == (1, *range(3, 11)) and other.block_numbers == (2, 11)
    assert trunk.together == other.together == ("trunk", "trunk_2")
    assert set(found["similar_blocks"].summary["similar"]) <= {*trunk.block_numbers}
    one, two = unequal_heads.stages(heads=(3, 2))
    apart = measure([one, replace(two, stage="class")], ["row_entropy"], bootstrap=0)
    assert [m.block_numbers for m in apart.values()] == [(1,), (1,)] and not apart["row_entropy"].together


def test_a_metric_of_block_outputs_is_not_said_to_be_of_maps():
    found = measure([some_maps()], ["row_entropy", "token_similarity"], bootstrap=0)
    assert [m.place for m in found.values()] == ["softmax maps", "block outputs"]
    assert heading(found["token_similarity"]).endswith("block outputs, mean of 7 images")
