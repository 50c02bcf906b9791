"""Runs side by side: the table says what each says alone, and differences are those of the same images."""

import csv
import io

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, Part
from attnprobe.store import CapturePlan, MapWriter
from attnprobe.workflows.compare import compare
from attnprobe.workflows.differences import common_measurements
from attnprobe.workflows.measure import examine
from tests import unequal_heads
from tests.reports.formulas import examined

METRICS = ("similar_blocks", "layer_similarity", "row_entropy", "head_divergence")


@pytest.fixture
def file(tmp_path, make_maps):
    """Write a maps file of random maps."""

    def write(name, *, images=8, first=0, order=None, model=None, recipe=None, width=0, dtype="float32", part=None,
              **size):  # fmt: skip
        maps = make_maps(images=images, **size)
        tokens = torch.randn(*maps.values.shape[:2], maps.grid.n_tokens, width) if width else None
        values = maps.values if order is None else maps.values[:, :, order]
        ids = tuple(f"image{first + i}" for i in range(images))
        config = {"parameters": 1234, "recipe": recipe or {}}
        plan = CapturePlan(image_ids=ids, model=model or name, variant="vit", checkpoint_sha256="", config=config,
                           versions={}, data="random", seed=0, device="cpu")  # fmt: skip
        path = tmp_path / f"{name}.h5"
        with MapWriter(path, plan, dtype=dtype) as writer:
            for shard in writer.pending():
                own = None if tokens is None else tokens[list(shard)]
                about = {"tokens": own, "part": part or Part()}
                writer.append([AttentionMaps(values[list(shard)], tuple(ids[i] for i in shard), maps.grid, **about)])
            writer.close()
        return path

    return write


def run(paths, out, **options):
    found, files = compare(paths, out=out, metrics=METRICS, resamples=200, **options)
    return found, {path.name: path.read_text() for path in files}


def row(found, metric):
    return next(r for r in found.differences if r.metric == metric)


def test_a_run_does_not_differ_from_itself(file, tmp_path):
    one, same = file("one"), file("same")
    found, files = run([one, same], tmp_path / "out")
    assert {r.metric for r in found.differences} == set(METRICS)
    for r in found.differences:
        assert not r.why and (r.cells.mean == 0).all() and (r.cells.p_holm == 1).all() and r.overall.mean == 0
    assert set(files) == {"comparison.md", "comparison.csv", "comparison.tex", "differences.csv"}


def test_differences_are_of_the_same_images_and_in_the_files(file, tmp_path):
    one, two = file("one"), file("two", seed=1, spread=3.0)
    found, files = run([one, two], tmp_path / "out")
    r = row(found, "row_entropy")
    alone = [examine(path, metrics=METRICS).measurements["row_entropy"].mean for path in (one, two)]
    np.testing.assert_allclose(r.cells.mean, alone[1] - alone[0])
    np.testing.assert_allclose(r.overall.mean, (alone[1] - alone[0]).mean())
    assert r.overall.ci[1] < 0
    lines = list(csv.DictReader(io.StringIO(files["differences.csv"])))
    written = [x for x in lines if x["metric"] == "row_entropy"]
    place = {(int(float(x["layer"])), int(float(x["head"]))): float(x["difference"]) for x in written}
    assert place[(2, 1)] == pytest.approx(r.cells.mean[1, 0]) and len(place) == r.cells.mean.size
    assert "| near_uniform | no" in files["comparison.md"]  # kinds of collapse beside the numbers
    assert "| row_entropy (softmax maps) | -" in files["comparison.md"] and "1,234" in files["comparison.tex"]


def test_only_shared_images_are_compared(file, tmp_path):
    one, two = file("one", images=8), file("two", images=8, first=3, seed=1)
    found, _ = run([one, two], tmp_path / "out")
    assert found.notes[0].startswith("two minus one: 5 images")
    assert row(found, "row_entropy").cells.n_images == 5
    apart, files = run([one, file("apart", first=100)], tmp_path / "apart")
    assert all(r.cells is None and r.why for r in apart.differences) and "Cannot say of " in files["comparison.md"]
    assert "nan" not in files["comparison.md"]


def test_other_depths_are_compared_at_relative_depth_and_it_is_said(file, tmp_path):
    shallow, deep = file("shallow", layers=3), file("deep", layers=5, seed=1)
    found, files = run([shallow, deep], tmp_path / "out")
    r = row(found, "row_entropy")
    one, two = (examine(path, metrics=METRICS).measurements["row_entropy"].mean for path in (shallow, deep))
    assert r.depth == "relative"
    np.testing.assert_allclose(r.cells.mean, two[[0, 2, 4]] - one)
    assert "equal relative depth" in files["comparison.md"]
    assert row(found, "similar_blocks").overall is None and row(found, "similar_blocks").cells is not None
    depths = {x["depth"] for x in csv.DictReader(io.StringIO(files["differences.csv"])) if x["metric"] == "row_entropy"}
    assert depths == {"0.0", "0.5", "1.0"}


def test_other_numbers_of_heads_share_their_mean(file, tmp_path):
    found, _ = run([file("few", heads=2), file("many", heads=3)], tmp_path / "out")
    assert row(found, "row_entropy").cells.mean.shape == (3,)
    d, (few, many) = row(found, "head_divergence").cells, (e.measurements["head_divergence"].mean for e in found.runs)
    pairs = [m[:, ~np.eye(m.shape[-1], dtype=bool)].mean(-1) for m in (few, many)]
    np.testing.assert_allclose(d.mean, pairs[1] - pairs[0], atol=1e-7)  # values of images are kept as float32


def test_heads_in_another_order_are_found_again(file, tmp_path):
    one, turned = file("one", heads=3, spread=3.0), file("turned", heads=3, spread=3.0, order=[2, 0, 1])
    apart, _ = run([one, turned], tmp_path / "apart")
    assert abs(row(apart, "row_entropy").cells.mean).max() > 0.01
    found, _ = run([one, turned], tmp_path / "matched", match_heads=True)
    for metric in ("row_entropy", "head_divergence"):
        np.testing.assert_allclose(row(found, metric).cells.mean, 0, atol=1e-6)
    with pytest.raises(InputError, match="cannot be matched"):
        run([one, file("deep", heads=3, layers=4)], tmp_path / "no", match_heads=True)


def test_names_are_text_in_every_format(file, tmp_path):
    _, files = run([file("a_b%&|#"), file("x")], tmp_path / "out", table="summary")
    assert r"a\_b\%\&\textbar{}\#" in files["comparison.tex"]
    assert r"a_b%&amp;\|#" in files["comparison.md"]


def test_nothing_and_an_unknown_table_are_refused(file, tmp_path):
    with pytest.raises(InputError, match="nothing to compare"):
        compare([], out=tmp_path)
    with pytest.raises(InputError, match="table='paper'"):
        compare([file("one")], out=tmp_path, table="paper")
    found, files = run([file("alone")], tmp_path / "out")
    assert not found.differences and "differences.csv" not in files


def test_effective_maps_are_compared_with_those_that_multiply_v_in_the_other():
    plain, changed = examined("plain", layers=4), examined("changed", layers=4, effective_similar=(2,))
    pairs = [
        (a.site, b.site, site) for a, b, site in common_measurements(plain, changed) if a.metric == "similar_blocks"
    ]
    assert pairs == [("weights", "effective", "effective"), ("weights", "weights", "weights")]
    other = examined("other", layers=4, similar=(3,))
    assert {site for *_, site in common_measurements(plain, other)} == {"weights"}, "as figures call them"


def methods(file, **options):
    """Three runs of "a" and two of "b", which looks at fewer tokens."""
    a = [file(f"a{seed}", seed=seed, model="vit", **options) for seed in range(3)]
    b = [file(f"b{seed}", seed=10 + seed, model="deep", spread=3.0, **options) for seed in range(2)]
    return a, b


def test_methods_are_compared_over_runs_and_images(file, tmp_path):
    a, b = methods(file)
    found, files = run_bytes({"a": a, "b": b}, tmp_path / "out")
    alone = [[examine(p, metrics=METRICS).measurements["row_entropy"] for p in paths] for paths in (a, b)]
    r, expected = row(found, "row_entropy"), [np.mean([m.mean.mean(-1) for m in ms], 0) for ms in alone]
    np.testing.assert_allclose(r.cells.mean, expected[1] - expected[0])
    assert r.cells.n_runs == (3, 2) and r.cells.axes == ("layer",) and r.overall.ci[1] < 0
    counts = [[m.summary["count"] for m in (e.measurements["similar_blocks"] for e in s.runs)] for s in found.sides]
    assert row(found, "similar_blocks").overall.mean == np.mean(counts[1]) - np.mean(counts[0])
    assert files["depth.png"].startswith(b"\x89PNG")
    text = files["comparison.md"].decode()
    assert "## b (2 runs) against a (3 runs)" in text and "8 images that all runs were measured on" in text
    assert "| a | 3 | 1,234 |" in text and "effect \\[run SD\\]" in text and "One run each" not in text
    cells = list(csv.DictReader(io.StringIO(files["differences.csv"].decode())))
    assert {(x["runs"], x["minus_runs"]) for x in cells} == {("2", "3")}
    entropy = next(x for x in cells if x["metric"] == "row_entropy" and x["layer"] == "2")
    assert float(entropy["effect"]) == pytest.approx(r.cells.effect[1])
    rows = list(csv.DictReader(io.StringIO(files["comparison.csv"].decode())))
    assert [x["method"] for x in rows] == ["a", "a", "a", "b", "b"]


def test_patterns_and_paths_are_the_same_comparison(file, tmp_path):
    a, b = methods(file)
    one, _ = run_bytes({"a": a, "b": b}, tmp_path / "paths")
    two, _ = run_bytes([f"a={tmp_path}/a*.h5", f"b={tmp_path}/b*.h5"], tmp_path / "patterns")
    np.testing.assert_array_equal(row(one, "row_entropy").cells.ci, row(two, "row_entropy").cells.ci)


def test_methods_of_other_depths_and_heads_are_compared_by_what_they_share(file, tmp_path):
    a = [file(f"a{seed}", seed=seed, model="vit", layers=3, heads=2) for seed in range(2)]
    b = [file(f"b{seed}", seed=9 + seed, model="deep", layers=5, heads=3) for seed in range(2)]
    found, files = run_bytes({"a": a, "b": b}, tmp_path / "out")
    assert row(found, "row_entropy").depth == "relative" and b"equal relative depth" in files["comparison.md"]
    assert row(found, "head_divergence").cells.mean.shape == (3,)


def test_what_one_run_of_a_method_lacks_is_not_compared(file, tmp_path):
    a = [file("a0", seed=0, model="vit", width=4), file("a1", seed=1, model="vit")]
    b = [file(f"b{seed}", seed=9 + seed, model="deep", width=4) for seed in range(2)]
    found, _ = compare({"a": a, "b": b}, out=tmp_path / "out")
    assert row(found, "token_similarity").why == "it was not measured in all runs"
    assert row(found, "row_entropy").cells is not None


def test_runs_of_one_group_that_are_none_are_refused(file, tmp_path):
    a = [file(f"a{s}", seed=s, model="vit", recipe={"lr": 1e-3, "seed": s}) for s in range(2)]
    slow = file("slow", seed=5, model="vit", recipe={"lr": 3e-3, "seed": 0})
    with pytest.raises(InputError, match=r"group b: a0 and slow differ in lr \(0.001, 0.003\)"):
        run_bytes(
            {"a": [a[1], file("a9", seed=9, model="vit", recipe={"lr": 1e-3})], "b": [a[0], slow]}, tmp_path / "o"
        )
    with pytest.raises(InputError, match="no order in common"):
        others = [file(f"b{s}", seed=7 + s, model="deep") for s in range(2)]
        run_bytes({"a": a, "b": others}, tmp_path / "o", match_heads=True)
    with pytest.raises(InputError, match="nothing to compare"):
        compare({}, out=tmp_path)


def test_single_runs_say_that_they_are_two_checkpoints(file, tmp_path):
    _, files = run([file("one"), file("two", seed=1)], tmp_path / "out")
    said = "One run each: about these two checkpoints, not about the methods."
    assert files["comparison.md"].count(said) == 1 and said in files["comparison.tex"]
    cells = list(csv.DictReader(io.StringIO(files["differences.csv"])))
    assert {(x["runs"], x["minus_runs"]) for x in cells} == {("1", "1")}
    assert {x["runs"] for x in csv.DictReader(io.StringIO(files["comparison.csv"]))} == {"1"}
    _, alone = run([file("three", seed=2)], tmp_path / "alone")
    assert "One run each" not in alone["comparison.md"]


def run_bytes(paths, out, **options):
    found, files = compare(paths, out=out, metrics=METRICS, resamples=200, **options)
    return found, {path.name: path.read_bytes() for path in files}


def test_models_of_unequal_heads_are_compared_in_all_blocks_by_what_needs_no_other_block(tmp_path):
    plain = unequal_heads.write(tmp_path / "plain.h5", heads=(3, 3, 3, 3), uniform=())
    pruned = unequal_heads.write(tmp_path / "pruned.h5", heads=(3, 2, 3, 1), uniform=(2,))
    for paths in ([plain, pruned], [pruned, plain]):
        found, files = run(paths, tmp_path / "out")
        entropy = row(found, "row_entropy")
        assert entropy.cells.axes == ("layer",) and entropy.cells.mean.shape == (4,)
        alone = [examine(path, metrics=["row_entropy"]).measurements for path in paths]
        of_block_2 = [e.get("trunk_2/row_entropy", e["row_entropy"]) for e in alone]
        means = [m.mean[m.block_numbers.index(2)].mean() for m in of_block_2]
        assert entropy.cells.mean[1] == pytest.approx(means[1] - means[0])
        assert len([r for r in found.differences if r.metric == "row_entropy"]) == 1
        assert row(found, "similar_blocks").cells is None
        assert "blocks against" not in files["comparison.md"]
        assert "of pruned not all blocks have equally many heads" in files["comparison.md"]
        assert "Cannot say of similar_blocks" in files["comparison.md"]
    found, files = run([pruned, unequal_heads.write(tmp_path / "twin.h5", heads=(3, 2, 3, 1))], tmp_path / "twins")
    assert files["comparison.md"].count("not all blocks have equally many heads") == 1
    assert {r.stage for r in found.differences if r.cells is not None} == {"trunk", "trunk_2", "trunk_3"}


def test_what_differs_between_two_captures_is_said_in_words_and_once(file, tmp_path):
    one = file("one", layers=2, part=Part(layers=(0, 2)))
    for other, words in ((file("two", layers=2, part=Part(layers=(1, 3))), "layers 2, 4"), (file("all"), "all layers")):
        _, files = compare([one, other], out=tmp_path / "out", metrics=["row_entropy", "layer_similarity"])
        text = files[0].read_text()
        (told,) = [line for line in text.splitlines() if line.startswith("Cannot say of")]
        assert "row_entropy" in told and "layer_similarity" in told and "{" not in told
        assert f"of one layers 1, 3 were kept, of the other {words}: capture both with the same " in told
        assert "relative depth" not in text and "| metric |" not in text


def test_what_rounding_of_stored_maps_can_make_is_no_difference(file, tmp_path):
    one, same = file("one"), file("same", dtype="bfloat16")
    found, files = run([one, same], tmp_path / "out")
    entropy = row(found, "row_entropy")
    assert (entropy.cells.mean != 0).any() and (np.abs(entropy.cells.mean) < entropy.rounding).all()
    assert "0 of 6 |" in next(line for line in files["comparison.md"].splitlines() if "| row_entropy" in line)
    assert "more than stored maps are rounded by" in files["comparison.md"]
    assert row(run([one, file("other", seed=1)], tmp_path / "far")[0], "row_entropy").rounding.max() < 1e-6
    assert "pairs | " in next(line for line in files["comparison.md"].splitlines() if "| layer_similarity" in line)
