"""Capture and live measurement, whole or in part, by one process or several: the numbers are the same."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import attnprobe as ap
from attnprobe.capturing import Capture, Recording, stream
from attnprobe.core.errors import CaptureError, InputError, WorkError
from attnprobe.core.spec import CaptureSpec, ReportSpec
from attnprobe.data import folder as folder_listing
from attnprobe.data import image_files
from attnprobe.io import fs
from attnprobe.io.ranks import ALONE
from attnprobe.metrics.engine import sink
from attnprobe.models import build_model
from attnprobe.store import MapWriter, job, layout
from attnprobe.store.stored import StoredMaps
from attnprobe.workflows.capture import capture_file, measure_live
from attnprobe.workflows.measure import examine
from attnprobe.workflows.measured import examine_measured
from attnprobe.workflows.report import report
from attnprobe.workflows.task import Task, tasks
from tests.model_folder import model_folder
from tests.two_processes import under_torchrun


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model") / "deep")


METRICS = ("row_entropy", "layer_similarity", "similar_blocks", "token_similarity")
COMMON = {"data": "digits", "images": 150, "untrained": 20, "batch_size": 16}


def live_of(model, out, **options):
    return measure_live(CaptureSpec(model, **options), out=out, metrics=METRICS, formats=("json",))


def test_live_measurements_are_those_of_the_stored_maps(checkpoint, tmp_path):
    (live,), files = live_of(checkpoint, out=tmp_path / "live", **COMMON)
    assert [f.name for f in files] == ["measurements.json"]
    out = capture_file(CaptureSpec(checkpoint, dtype="float32", **COMMON), out=tmp_path / "maps.h5")
    stored = examine(out, metrics=METRICS)
    assert live.measurements.keys() == stored.measurements.keys() and live.layers == stored.layers
    for name, m in stored.measurements.items():
        other = live.measurements[name]
        np.testing.assert_allclose(other.mean, m.mean, atol=1e-6)
        assert other.image_ids == m.image_ids and other.baselines.keys() == m.baselines.keys()
    assert not [p for p in (tmp_path / "live").rglob("*") if p.suffix == ".h5"]


@pytest.mark.promise("capture-killed")
def test_shards_that_a_killed_process_left_beside_its_file_go_when_the_command_is_run_again(
    checkpoint, tmp_path, monkeypatch
):
    spec = CaptureSpec(checkpoint, data="digits", images=12, untrained=4, batch_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(job.parts, "discard", lambda _folder: None)
        made = capture_file(spec, out=tmp_path / "maps.h5")
    assert len(list(tmp_path.glob("*.parts"))) == 2
    before = made.read_bytes()
    assert capture_file(spec, out=tmp_path / "maps.h5") == made and made.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.h5", "maps.untrained.h5"]


@pytest.mark.promise("capture-stopped")
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_measure_what_one_process_measures_bit_for_bit(checkpoint, tmp_path, world, monkeypatch):
    (one,), _ = live_of(checkpoint, out=tmp_path / "one", **COMMON)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    found = []
    for rank in range(world):  # whoever comes first does all but what others hold, so hold some
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr(sink, "shared_out", first_piece_only if rank < world - 1 else sink.shared_out)
        found += live_of(checkpoint, out=tmp_path / "several", **COMMON)[0]
        monkeypatch.undo()
        monkeypatch.setenv("WORLD_SIZE", str(world))
    (several,) = found
    for name, m in one.measurements.items():
        other = several.measurements[name]
        for field in ("mean", "std", "ci", "per_image"):
            np.testing.assert_array_equal(getattr(other, field), getattr(m, field))
        assert other.summary == m.summary and other.image_ids == m.image_ids


def first_piece_only(rank, n, claims, is_done):
    mine = rank.in_turn(n)[0]
    if not is_done(mine):
        yield mine


@pytest.mark.promise("capture-stopped")
def test_a_stopped_live_measurement_goes_on_and_another_does_not_mix_in(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "live"
    original, made = sink.measure_slice, []

    def stop_at_second(*arguments):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(1)
        return original(*arguments)

    arguments = {**COMMON, "untrained": 0}
    monkeypatch.setattr(sink, "measure_slice", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        live_of(checkpoint, out=out, **arguments)
    monkeypatch.undo()
    kept = {p: p.stat().st_mtime_ns for p in (out / "slices").glob("s*.npz")}
    assert len(kept) == 1
    (live,), _ = live_of(checkpoint, out=out, **arguments)
    assert live.measurements["row_entropy"].n_images == 150
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())
    with pytest.raises(InputError, match="another model, images, options or metrics"):
        live_of(checkpoint, out=out, **{**arguments, "images": 90})


def same_bits(a, b):
    assert a.measurements.keys() == b.measurements.keys()
    for name, m in a.measurements.items():
        other = b.measurements[name]
        for field in ("mean", "std", "ci", "per_image", "replicates"):
            np.testing.assert_array_equal(getattr(other, field), getattr(m, field))
        assert (other.summary, other.settings, other.image_ids) == (m.summary, m.settings, m.image_ids)


FOLDED = {"metrics": METRICS, "formats": ("json",), "keep_values": 40}


@pytest.mark.promise("capture-stopped")
@pytest.mark.parametrize("world", [2, 3])
def test_folded_sums_are_the_same_bits_for_any_number_of_processes(checkpoint, tmp_path, world, monkeypatch):
    monkeypatch.setattr(sink, "SLICE", 16)
    monkeypatch.setattr(sink, "LARGER", 1)
    spec = CaptureSpec(checkpoint, **COMMON)
    (one,), _ = measure_live(spec, out=tmp_path / "one", **FOLDED)
    found = []
    by_ranks(world, monkeypatch, lambda: found.extend(measure_live(spec, out=tmp_path / "several", **FOLDED)[0]))
    same_bits(one, found[0])
    m = one.measurements["row_entropy"]
    assert (m.n_images, len(m.per_image), len(m.replicates)) == (150, 40, 400)
    assert m.baselines["untrained"].replicates is None and m.baselines["untrained"].n_images == 20
    left = sorted(path.name for path in (tmp_path / "one" / "slices").glob("*.npz"))
    assert left == ["s000000+8.npz", "s000008.npz", "s000009.npz"], "150 images in ten slices, eight of them merged"
    whole = live_of(checkpoint, out=tmp_path / "whole", **COMMON)[0][0].measurements
    for name, m in one.measurements.items():
        np.testing.assert_allclose(m.mean, whole[name].mean, rtol=1e-9)


@pytest.mark.promise("capture-killed")
def test_a_folded_measurement_that_was_stopped_has_the_bits_of_one_that_was_not(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sink, "SLICE", 16)
    monkeypatch.setattr(sink, "LARGER", 1)
    spec = CaptureSpec(checkpoint, **{**COMMON, "untrained": 0})
    (one,), _ = measure_live(spec, out=tmp_path / "one", **FOLDED)
    for strike in (9, 25, 40):
        monkeypatch.setattr(fs, "matched", 0)
        monkeypatch.setenv("ATTNPROBE_FAULT", f"any:{strike}:EIO")
        with pytest.raises(WorkError):
            measure_live(spec, out=tmp_path / "stopped", **FOLDED)
    monkeypatch.delenv("ATTNPROBE_FAULT")
    (stopped,), _ = measure_live(spec, out=tmp_path / "stopped", **FOLDED)
    same_bits(one, stopped)
    with pytest.raises(InputError, match="another model, images, options or metrics"):
        measure_live(spec, out=tmp_path / "stopped", **{**FOLDED, "keep_values": 41})


def test_the_untrained_twin_has_left_the_device_before_the_model_comes_there(checkpoint, tmp_path, monkeypatch):
    happened, init, release = [], Capture.__post_init__, Task.release

    def made(self):
        happened.append("on the device")
        init(self)

    def released(self):
        happened.append("off the device")
        release(self)

    monkeypatch.setattr(Capture, "__post_init__", made)
    monkeypatch.setattr(Task, "release", released)
    spec = CaptureSpec(checkpoint, data="digits", images=4, untrained=2)
    capture_file(spec, out=tmp_path / "maps.h5")
    measure_live(spec, out=tmp_path / "live", formats=())
    assert happened == ["on the device", "off the device", "on the device"] * 2


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the forward passes that are stored or measured, in the order they are made."""
    sizes, run, sample = [], Recording.run, Capture.sample

    def noted(self, pixels):
        sizes.append(len(pixels))
        return run(self, pixels)

    def unnoted(self):
        taken = sample(self)
        sizes.pop()
        return taken

    monkeypatch.setattr(Recording, "run", noted)
    monkeypatch.setattr(Capture, "sample", unnoted)
    return sizes


def by_ranks(world, monkeypatch, work):
    """Each of `world` processes does its first piece, and the last all that is left then."""
    for rank in range(world):
        with monkeypatch.context() as patch:
            patch.setenv("WORLD_SIZE", str(world))
            patch.setenv("RANK", str(rank))
            if rank < world - 1:
                patch.setattr(job, "shared_out", first_piece_only)
                patch.setattr(sink, "shared_out", first_piece_only)
            work()


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shard_images", [1, 24, 1000])
def test_every_forward_pass_but_the_last_is_of_one_size_whatever_a_shard_is(
    checkpoint, photos, tmp_path, monkeypatch, passes, shard_images, workers, world
):
    monkeypatch.setattr(layout, "MOST_SHARD_IMAGES", shard_images)
    spec = CaptureSpec(checkpoint, data=str(photos), untrained=0, workers=workers, batch_size=6)
    by_ranks(world, monkeypatch, lambda: capture_file(spec, out=tmp_path / "maps.h5"))
    assert sorted(passes) == [2, *[6] * 6], "38 images, each in one forward pass"
    monkeypatch.setattr(sink, "SLICE", shard_images)
    passes.clear()
    by_ranks(world, monkeypatch, lambda: measure_live(spec, out=tmp_path / "live", metrics=METRICS, formats=()))
    assert sorted(passes) == [2, *[6] * 6]


def test_what_a_batch_is_stays_with_a_capture_whatever_is_asked_for_when_it_is_resumed(
    checkpoint, photos, tmp_path, monkeypatch, passes
):
    monkeypatch.setattr(layout, "MOST_SHARD_IMAGES", 1)
    append = MapWriter.append

    def stop_at_third(self, maps):
        if len(passes) == 3:
            self.settle()  # a stop may drop what its thread has not begun
            raise KeyboardInterrupt
        append(self, maps)

    spec = CaptureSpec(checkpoint, data=str(photos), untrained=0, batch_size=6)
    whole = capture_file(spec, out=tmp_path / "whole.h5")
    passes.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MapWriter, "append", stop_at_third)
        capture_file(spec, out=tmp_path / "maps.h5")
    resumed = capture_file(replace(spec, batch_size=16, workers=1), out=tmp_path / "maps.h5")
    assert passes == [6, 6, 6, 6, 6, 6, 6, 2]
    with ap.open_maps(whole) as one, ap.open_maps(resumed) as other:
        assert one.attrs["batch_images"] == other.attrs["batch_images"] == 6
        for site in one.sites():
            assert torch.equal(one.maps(site=site).values, other.maps(site=site).values)
        assert torch.equal(one.probability, other.probability)


@pytest.mark.promise("memory-short")
def test_a_batch_that_does_not_fit_into_memory_is_a_power_of_two_and_pinned(checkpoint, photos, tmp_path, monkeypatch):
    per_image = 4 * 2 * 3 * 6 * 17 * 17
    monkeypatch.setattr(stream, "BATCH_BYTES", 7 * per_image)
    spec = CaptureSpec(checkpoint, data=str(photos), untrained=0, batch_size=30)
    with ap.open_maps(capture_file(spec, out=tmp_path / "maps.h5")) as reader:
        assert reader.attrs["batch_images"] == 4


@pytest.mark.promise("older-versions")
def test_what_an_older_version_began_is_begun_anew_and_said_so(checkpoint, photos, tmp_path):
    spec, out = CaptureSpec(checkpoint, data=str(photos), untrained=0), tmp_path / "maps.h5"
    task, _ = tasks(spec, ALONE)
    with pytest.raises(KeyboardInterrupt), MapWriter(out, task.plan) as writer:
        writer.begin(task.capturing.sample())  # as 0.1.0 did, without a batch
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="was begun by an older attnprobe"):
        capture_file(spec, out=out)
    live = tmp_path / "live"
    (live / "slices").mkdir(parents=True)
    (live / "slices" / "plan.json").write_text(json.dumps({**task.plan.facts(), "metrics": list(METRICS)}))
    with pytest.raises(InputError, match="was begun by an older attnprobe"):
        measure_live(spec, out=live, metrics=METRICS)
    shutil.rmtree(tmp_path / "maps.parts")
    assert capture_file(spec, out=out) == out


def test_a_finished_capture_is_found_done_and_one_of_anything_else_is_refused(checkpoint, tmp_path, monkeypatch):
    out, baseline = tmp_path / "maps.h5", tmp_path / "maps.untrained.h5"
    spec = CaptureSpec(checkpoint, **COMMON)
    capture_file(spec, out=out)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out, baseline)}
    with monkeypatch.context() as forbidden:
        forbidden.setattr(Task, "capturing", property(lambda _: pytest.fail("the model ran")))
        assert capture_file(spec, out=out) == out
        for change in ({"images": 149}, {"what": ("weights",)}, {"dtype": "float32"}, {"heads": "1"}):
            with pytest.raises(InputError, match="exists, of another model, images or options"):
                capture_file(replace(spec, **change), out=out)
        (tmp_path / "other.h5").write_bytes(b"no maps")
        with pytest.raises(InputError, match="exists"):
            capture_file(spec, out=tmp_path / "other.h5")
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out, baseline)}
    baseline.unlink()
    assert capture_file(spec, out=out) == out and ap.open_maps(baseline).n_images == 20
    capture_file(replace(spec, overwrite=True), out=out)
    assert out.stat().st_mtime_ns > before[out][1]


def test_a_selection_reaches_the_file_and_the_numbers(checkpoint, tmp_path):
    chosen = {"layers": "1,3", "heads": "2-3", "queries": "cls", "what": ("weights",)}
    out = capture_file(CaptureSpec(checkpoint, **chosen, **COMMON), out=tmp_path / "part.h5")
    maps = ap.open_maps(out).maps(site="weights")
    assert maps.values.shape == (150, 2, 2, 1, 17) and maps.part.layers == (0, 2) and maps.part.queries == (0,)
    entropy = examine(out, metrics=METRICS[:1]).measurements["row_entropy"]
    assert entropy.coords == {"layer": [1, 3], "head": [2, 3]}
    assert ap.open_maps(out).attrs["settings"]["layers"] == [1, 3]
    with pytest.raises(InputError, match=r"another settings\.layers|exists"):
        capture_file(CaptureSpec(checkpoint, **COMMON), out=tmp_path / "part.h5")


def test_torchrun_writes_the_file_of_one_process(checkpoint, tmp_path):
    options = ["--data", "digits", "--images", "100", "--untrained", "0", "--device", "cpu"]
    two = tmp_path / "two.h5"
    done = under_torchrun("capture", str(checkpoint), *options, "-o", str(two))
    assert done.returncode == 0, done.stderr
    one = capture_file(
        CaptureSpec(checkpoint, data="digits", images=100, untrained=0, device="cpu"), out=tmp_path / "one.h5"
    )
    a, b = ap.open_maps(one), ap.open_maps(two)
    assert a.image_ids == b.image_ids and b.complete
    for site in ("weights", "effective"):
        assert torch.equal(a.maps(site=site).values, b.maps(site=site).values)


def test_maps_made_of_queries_and_keys_are_those_that_would_have_been_stored(tmp_path):
    options = {**COMMON, "images": 40, "untrained": 0}
    small = capture_file(CaptureSpec("vit_16_digits", store="qk", **options), out=tmp_path / "qk.h5")
    whole = capture_file(CaptureSpec("vit_16_digits", dtype="float32", **options), out=tmp_path / "maps.h5")
    with ap.open_maps(small) as ours, ap.open_maps(whole) as theirs:
        torch.testing.assert_close(ours.maps().values, theirs.maps().values, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.maps().tokens, theirs.maps().tokens, rtol=0, atol=1e-4)
        assert all(layer["rebuilt_error"] <= 1e-6 for layer in ours.attrs["certificate"]["layers"])
    one, two = (examine(path, metrics=METRICS).measurements for path in (small, whole))
    for name, m in one.items():
        np.testing.assert_allclose(m.mean, two[name].mean, atol=1e-5)
    with pytest.raises(InputError, match=r"another settings\.store|exists"):
        capture_file(CaptureSpec("vit_16_digits", **options), out=tmp_path / "qk.h5")
    with pytest.raises(InputError, match="in place of maps"):
        capture_file(
            CaptureSpec("vit_16_digits", store="qk", what=("tokens", "scores"), **options), out=tmp_path / "x.h5"
        )
    with pytest.raises(CaptureError, match="Store maps"):
        capture_file(CaptureSpec("deepvit_16_digits", store="qk", **options), out=tmp_path / "x.h5")


def test_scores_lie_beside_the_maps_and_are_not_measured(tmp_path):
    options = {**COMMON, "images": 40, "untrained": 0, "what": ("weights", "effective", "scores")}
    out = capture_file(CaptureSpec("deepvit_16_digits", dtype="float32", **options), out=tmp_path / "maps.h5")
    with ap.open_maps(out) as reader:
        assert reader.sites() == ("weights", "effective", "scores")
        scores, weights = (reader.maps(site=site).values for site in ("scores", "weights"))
    torch.testing.assert_close(scores.softmax(-1), weights)
    measurements = examine(out, metrics=METRICS[:3]).measurements
    assert {m.site for m in measurements.values()} == {"weights", "effective"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """38 images that are decoded one by one: they are not square."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k in range(38):
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(folder / f"n{k:02d}.png")
    return folder


def folder_of(path, copies=(), again=None, images=12):
    """Noise in PNG files; `copies` are byte for byte the first, and `again` replaces what is in one."""
    from PIL import Image

    path.mkdir()
    for k in range(images):
        seed = 0 if k in copies else 99 if k == again else k
        noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path / f"n{k:02d}.png")
    return path


def test_files_of_equal_pixels_are_named_and_counted_once(checkpoint, tmp_path):
    photos, options = folder_of(tmp_path / "photos", copies=(4, 7)), {"untrained": 0, "device": "cpu"}
    out = capture_file(CaptureSpec(checkpoint, data=str(photos), **options), out=tmp_path / "maps.h5")
    e = examine(out, metrics=METRICS, pictures=0)
    (live,), _ = live_of(checkpoint, data=str(photos), out=tmp_path / "live", **options)
    told = "2 images are copies of others, pixel by pixel, and counted once: n04.png = n00.png, n07.png = n00.png."
    assert e.notes == live.notes == (told,)
    assert {m.n_images for m in (*e.measurements.values(), *live.measurements.values())} == {10}
    named = {"formats": ["md"], "metrics": METRICS, "data": str(photos)}
    examined, _ = report(ReportSpec([out], tmp_path / "report", **named))
    page = (tmp_path / "report" / "report.md").read_text()
    assert examined[0].notes == (told,) and told in page


def test_files_replaced_under_their_names_are_not_paired(checkpoint, tmp_path):
    options = {"untrained": 0, "device": "cpu"}
    for name, again in (("one", None), ("two", 5)):
        place = tmp_path / name
        place.mkdir()
        photos = folder_of(place / "photos", again=again)
        capture_file(CaptureSpec(checkpoint, data=str(photos), **options), out=tmp_path / f"{name}.h5")
    found, _ = ap.compare(
        [tmp_path / "one.h5", tmp_path / "two.h5"], out=tmp_path / "out", metrics=METRICS, resamples=50
    )
    assert "11 images that both were measured on; 1 more of the same names have other pixels" in found.notes[0]
    assert {row.cells.n_images for row in found.differences if row.cells} == {11}
    grouped, _ = ap.compare(
        [tmp_path / "one.h5"] * 2, out=tmp_path / "grouped", metrics=METRICS, resamples=50, group="n(.)"
    )
    assert {row.cells.n_images for row in grouped.differences if row.cells} == {2}


@pytest.mark.parametrize("keep_values", [1000, 10])
@pytest.mark.parametrize("classes", [10, 7])
def test_measuring_without_maps_gives_the_accuracy_of_the_maps_file_or_the_same_word_on_its_absence(
    tmp_path, monkeypatch, keep_values, classes
):
    monkeypatch.setattr(sink, "SLICE", 8)
    torch.save(build_model("vit_16_digits", num_classes=classes, seed=0).state_dict(), tmp_path / "my.pth")
    options = {"architecture": "vit_16_digits", "data": "digits", "images": 40, "untrained": 0, "device": "cpu"}
    spec = CaptureSpec(tmp_path / "my.pth", **options)
    stored = ap.examine(capture_file(spec, out=tmp_path / "my.h5"), metrics=METRICS, pictures=0)
    how = {"metrics": METRICS, "formats": ("json",), "keep_values": keep_values}
    (live,), _ = measure_live(spec, out=tmp_path / "live", **how)
    names = ("accuracy", "n_labelled", "n_classes", "spec", "images")

    def said_of(e):
        return json.loads(json.dumps([e.info.get(name) for name in names]))

    for e in (live, examine_measured(tmp_path / "live")):
        assert said_of(e) == said_of(stored)
        assert ("accuracy" in e.info) is (classes == 10)
        said = [note for note in e.notes if note.startswith("no accuracy")]
        assert said == [note for note in stored.notes if note.startswith("no accuracy")] and len(said) == (classes == 7)


def test_a_capture_that_is_there_already_is_said_to_be(checkpoint, photos, tmp_path, call_command):
    command = ["capture", str(checkpoint), "--data", str(photos), "--device", "cpu", "-o", str(tmp_path / "maps.h5")]
    told = [call_command(*command) for _ in range(2)]
    assert [(code, out) for code, out, _ in told] == [(0, f"{tmp_path / 'maps.h5'}\n")] * 2
    assert ["holds this capture already; nothing was computed" in err for _, _, err in told] == [False, True]


@pytest.mark.promise("images-bad")
def test_a_folder_as_output_is_refused_with_the_name_of_a_file(checkpoint, photos, tmp_path, call_command):
    code, _, err = call_command("capture", str(checkpoint), "--data", str(photos), "-o", str(tmp_path))
    assert code == 2 and "is a folder" in err and ".h5" in err and "--overwrite" not in err


def test_transparency_is_said_once_of_a_capture_and_its_baseline(checkpoint, tmp_path, call_command):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 4), dtype=np.uint8)
    (tmp_path / "see").mkdir()
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "see" / f"{k}.png")
    command = ("capture", str(checkpoint), "--data", str(tmp_path / "see"), "-o", str(tmp_path / "x.h5"))
    code, _, err = call_command(*command, "--device", "cpu")
    assert code == 0 and (tmp_path / "x.untrained.h5").exists() and err.count("alpha channel") == 1


def test_bad_images_are_named_once_and_with_the_option_and_the_baseline_loses_no_other(
    checkpoint, photos, tmp_path, call_command
):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    names = sorted(path.name for path in folder.iterdir())
    for name in names[:2]:
        (folder / name).write_bytes(b"")
    n, out = len(names), tmp_path / "maps.h5"
    command = ["capture", str(checkpoint), "--data", str(folder), "--device", "cpu", "-o", str(out)]
    code, _, err = call_command(*command)
    assert code == 2 and "skip such images with --bad-images skip" in err
    code, _, err = call_command(*command, "--bad-images", "skip")
    assert code == 0 and err.count("cannot be read") == 1 and f"photos: 2 of {n} images cannot be read" in err
    assert len(ap.open_maps(out)) == len(ap.open_maps(tmp_path / "maps.untrained.h5")) == n - 2


@pytest.mark.promise("images-bad")
@pytest.mark.filterwarnings("ignore:image")
@pytest.mark.parametrize("keep_values", [100, 10])
def test_images_that_cannot_be_read_are_left_out_wherever_they_are_and_what_was_finished_stays(
    checkpoint, photos, tmp_path, monkeypatch, keep_values
):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    monkeypatch.setattr(sink, "SLICE", 6)
    monkeypatch.setattr(sink, "LARGER", 1)
    how = {"metrics": METRICS, "formats": ("json",), "keep_values": keep_values}
    spec = CaptureSpec(checkpoint, data=str(folder), untrained=0, batch_size=3, device="cpu")
    names = sorted(path.name for path in folder.iterdir())
    for name in (names[0], *names[12:18], names[20], names[-1]):  # the first, a whole slice, one of a batch, the last
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"^image '{names[0]}' of photos cannot be read: empty file"):
        measure_live(spec, out=tmp_path / "live", **how)
    (live,), _ = measure_live(replace(spec, bad_images="skip"), out=tmp_path / "live", **how)
    assert live.info["n_images"] == 29 == live.measurements["row_entropy"].n_images
    assert (
        live.notes[0] == f"9 images cannot be read and are left out: {names[0]}, {names[12]}, {names[13]} and 6 more."
    )
    for name in (names[0], *names[12:18], names[20], names[-1]):
        (folder / name).unlink()
    (alone,), _ = measure_live(spec, out=tmp_path / "alone", **how)
    for name, m in alone.measurements.items():
        np.testing.assert_allclose(live.measurements[name].mean, m.mean, rtol=1e-6)


def test_a_refused_image_ends_a_measurement_whose_finished_slices_stay(checkpoint, photos, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    monkeypatch.setattr(sink, "SLICE", 6)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[20]).write_bytes(b"no image")
    spec = CaptureSpec(checkpoint, data=str(folder), untrained=0, batch_size=6)
    with pytest.raises(InputError, match=f"^image '{names[20]}' of photos cannot be read: "):
        measure_live(spec, out=tmp_path / "live", metrics=METRICS, formats=())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "live" / "slices").glob("*.npz")}
    assert len(kept) == 3
    with pytest.warns(UserWarning, match="is skipped"):
        measure_live(replace(spec, bad_images="skip"), out=tmp_path / "live", metrics=METRICS, formats=())
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_processes_of_a_job_list_the_images_once(checkpoint, photos, tmp_path, monkeypatch):
    listed, real = [], folder_listing.list_folder
    monkeypatch.setattr(sink, "SLICE", 6)
    monkeypatch.setattr(layout, "MOST_SHARD_IMAGES", 6)
    monkeypatch.setattr(image_files, "list_folder", lambda *asked: listed.append(asked) or real(*asked))
    spec = CaptureSpec(checkpoint, data=str(photos), batch_size=6)
    for work in (
        lambda: measure_live(spec, out=tmp_path / "live", metrics=METRICS, formats=()),
        lambda: capture_file(spec, out=tmp_path / "maps.h5"),
    ):
        listed.clear()
        by_ranks(3, monkeypatch, work)
        assert len(listed) == 1
    assert not list(tmp_path.glob("**/*images*")), "the list goes when all is done"


def test_a_capture_under_autocast_is_another_plan_and_the_file_says_so(checkpoint, tmp_path):
    out, options = tmp_path / "maps.h5", {**COMMON, "images": 20, "untrained": 0, "dtype": "float32"}
    capture_file(CaptureSpec(checkpoint, amp="bf16", **options), out=out)
    with pytest.raises(InputError, match="another model, images or options"):
        capture_file(CaptureSpec(checkpoint, **options), out=out)
    assert capture_file(CaptureSpec(checkpoint, amp="bf16", **options), out=out) == out  # found done
    capture_file(CaptureSpec(checkpoint, **options), out=tmp_path / "exact.h5")
    low, exact = ([m.values.float() for m in ap.open_maps(path)] for path in (out, tmp_path / "exact.h5"))
    assert 0 < max((a - b).abs().max() for a, b in zip(low, exact, strict=True)) < 0.02
    with StoredMaps.open(out) as stored:
        assert stored.attrs["settings"]["autocast"] == "bf16"


def test_a_bound_below_one_image_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match="keep_values 0 must be 1 image or more"):
        measure_live(CaptureSpec("no_such_model", data="digits"), out=tmp_path / "live", keep_values=0)
    assert not list(tmp_path.iterdir())
