"""Every stage in a row, on real images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import attnprobe as ap
from attnprobe.core.errors import CheckpointError, InputError, WorkError
from attnprobe.core.spec import CaptureSpec, ReportSpec
from attnprobe.io.config import read_yaml
from attnprobe.io.reference import UserImages
from attnprobe.io.run import Run, untrained_maps
from attnprobe.metrics import DEFAULT
from attnprobe.models import build_model
from attnprobe.models.describe import config_json
from attnprobe.reports.tables import summary_table
from attnprobe.workflows import capture as capture_module
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.measure import examine
from attnprobe.workflows.report import gate, report
from attnprobe.workflows.train import train
from tests.store.capturing import capture as store_maps
from tests.two_processes import under_torchrun

TINY = {"epochs": 2, "warmup_epochs": 1, "model_kwargs": {"depth": 3, "embed_dim": 24}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny ViT and a tiny DeepViT, trained and captured."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in ("digits_vit_16", "digits_deepvit_16"):
        train(recipe, folder / recipe, settings=TINY)
        capture_file(CaptureSpec(folder / recipe, images=40, untrained=20, batch_size=16))
    return folder


def test_maps_on_disk_are_the_models_own(runs):
    run = runs / "digits_deepvit_16"
    reader = ap.open_maps(run / "maps.h5")
    model = ap.load_model(run)
    images = ap.load_images("digits", "val", spec=ap.input_spec(model), limit=40)
    live = list(ap.capture(model, images, ("weights", "effective"), tokens=True, batch_size=40))
    for site, maps in zip(("weights", "effective"), live, strict=True):
        stored = reader.maps(site=site)
        assert stored.image_ids == maps.image_ids
        expected = maps.values.to(torch.bfloat16).float()
        torch.testing.assert_close(stored.values, expected, rtol=8e-3, atol=1e-6)  # one step of bfloat16
        assert (stored.values == expected).float().mean() > 0.99
    assert reader.attrs["variant"] == "deepvit" and reader.attrs["certificate"]["output_equal"]


def test_examining_gives_measurements_baselines_pictures_and_provenance(runs):
    vit, deep = (examine(runs / name) for name in ("digits_vit_16", "digits_deepvit_16"))
    assert "similar_blocks@weights" in deep.measurements and "similar_blocks@weights" not in vit.measurements
    for e in (vit, deep):
        assert {"untrained", "uniform"} <= set(e.measurements["layer_similarity"].baselines)
        assert e.info["n_images"] == 40 and 0 <= e.info["accuracy"] <= 1
        picture = e.pictures[0]
        assert picture.pixels.shape == (32, 32, 3) and picture.attention.shape == (3, 6, 4, 4)
        assert set(e.measurements) >= set(DEFAULT)


def test_images_that_are_not_the_captured_ones_are_said_to_be_others(runs):
    with pytest.warns(UserWarning, match="maps.h5 is of other images than fractals.*, and 0 of its 40 names are there"):
        examined = examine(runs / "digits_vit_16", metrics=["row_entropy"], user=UserImages("fractals:4:20"))
    assert not examined.pictures


def test_report_measures_what_a_live_capture_measures(runs):
    run = runs / "digits_vit_16"
    model = ap.load_model(run)
    images = ap.load_images("digits", "val", spec=ap.input_spec(model), limit=40)
    live = ap.measure(ap.capture(model, images, tokens=True))
    stored = examine(run).measurements
    for name in ("layer_similarity", "row_entropy", "token_similarity", "head_similarity"):
        np.testing.assert_allclose(stored[name].mean, live[name].mean, atol=4e-3)


def test_report_writes_its_files_and_names_both_runs(runs, tmp_path):
    examined, files = report(ReportSpec([runs / "digits_vit_16", runs / "digits_deepvit_16"], tmp_path / "page"))
    assert [e.name for e in examined] == ["digits_vit_16", "digits_deepvit_16"]
    assert {f.name for f in files} >= {"report.html", "measurements.json", "measurements.csv", "report.md"}
    content = json.loads((tmp_path / "page" / "measurements.json").read_text())
    assert "digits_deepvit_16" in json.dumps(content)
    html = (tmp_path / "page" / "report.html").read_text()
    assert "digits_vit_16" in html and html.count("<script>") == 1 and "script-src 'sha256-" in html
    assert '"told":[{"label":' in html and 'id="maps-0-1-0-0"' in html  # both runs can be explored on the same images


def test_conditions_are_measured_even_if_nobody_asked_and_misspelt_ones_open_no_file(runs, tmp_path):
    condition = "row_gini.mean < 2"
    examined, _ = report(ReportSpec([runs / "digits_vit_16"], tmp_path, formats=["json"], fail_on=[condition]))
    assert set(examined[0].measurements) >= {"row_gini", *DEFAULT}
    (outcome,) = gate(examined, [condition])
    assert outcome.holds and outcome.value == pytest.approx(examined[0].measurements["row_gini"].mean.mean())
    with pytest.raises(InputError, match="Did you mean 'row_gini'"):
        report(ReportSpec(["missing.h5"], tmp_path, fail_on=["row_gni.mean>1"]))


def test_a_run_is_not_mixed_with_other_options(runs):
    with pytest.raises(InputError, match="holds a run with other options: epochs"):
        train("digits_vit_16", runs / "digits_vit_16", settings={**TINY, "epochs": 3})


def test_a_run_goes_on_with_other_ways_of_working_but_not_with_other_lessons(tmp_path):
    first = train("digits_vit_16", tmp_path, settings=TINY)
    again = train("digits_vit_16", tmp_path, settings={**TINY, "auto_batch": True, "keep_checkpoints": 5})
    assert again.log == first.log
    assert read_yaml(tmp_path / "config.yaml")["keep_checkpoints"] == 5
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("auto_batch: true\n", ""))  # as an older version wrote it
    assert train("digits_vit_16", tmp_path, settings=TINY).log == first.log


def test_label_maps_of_patches_are_learnt_from(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for k in range(count):
            folder = tmp_path / "photos" / split / "ab"[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            picture = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{k}.png")
            (tmp_path / "maps" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            made = torch.stack([torch.full((2, 5, 6), 4.0), torch.zeros(2, 5, 6)]).half()
            torch.save(made, tmp_path / "maps" / "ab"[k % 2] / f"{k}.pt")
    options = {**TINY, "model": "refiner_16_digits", "dataset": str(tmp_path / "photos"), "epochs": 1,
               "warmup_epochs": 0, "batch_size": 6, "hflip": 0.5, "scale": [0.3, 1.0],
               "model_kwargs": {**TINY["model_kwargs"], "dense": True, "mix_token": True}}  # fmt: skip
    without = train("digits_vit_16", tmp_path / "without", settings=options)
    maps = {"token_label_data": str(tmp_path / "maps")}
    result = train("digits_vit_16", tmp_path / "with", settings={**options, **maps})
    assert result.log[0]["train_loss"] != without.log[0]["train_loss"]
    for wrong, said in (
        ({"mixup": 0.5}, "token_label_data needs mixup=0"),
        ({"dataset": "digits"}, "folders of images"),
        ({"model": "vit_16_digits", "model_kwargs": TINY["model_kwargs"]}, "no dense head"),
        ({"token_label_data": str(tmp_path / "none")}, "no label map a/0.pt"),
    ):
        with pytest.raises(InputError, match=said):
            train("digits_vit_16", tmp_path / said[:9], settings={**options, **maps, **wrong})


def test_capture_goes_on_after_being_interrupted(runs, tmp_path, monkeypatch):
    run, out = runs / "digits_vit_16", tmp_path / "maps.h5"
    spec = CaptureSpec(run, images=40, untrained=0, batch_size=8)

    class Stop(Exception):
        pass

    original, seen = capture_module.MapWriter.append, []

    def stop_at_third(self, maps):
        if len(seen) == 2:
            raise Stop
        seen.append(1)
        original(self, maps)

    monkeypatch.setattr(capture_module.MapWriter, "append", stop_at_third)
    with pytest.raises(Stop):
        capture_file(spec, out=out)
    assert not out.exists()
    monkeypatch.undo()
    capture_file(spec, out=out)
    ids = ap.open_maps(out).image_ids
    assert len(ids) == len(set(ids)) == 40


def test_a_command_stopped_between_its_two_files_can_be_run_again(runs, tmp_path, monkeypatch):
    out, spec = tmp_path / "maps.h5", CaptureSpec(runs / "digits_vit_16", images=20, untrained=10)

    class Stop(Exception):
        pass

    original = capture_module.fill

    def only_the_baseline(sink, *rest):
        if sink.path == out:
            with sink:
                raise Stop
        return original(sink, *rest)

    monkeypatch.setattr(capture_module, "fill", only_the_baseline)
    with pytest.raises(Stop):
        capture_file(spec, out=out)
    monkeypatch.undo()
    assert capture_file(spec, out=out) == out
    assert len(ap.open_maps(untrained_maps(out))) == 10
    with pytest.raises(InputError, match="overwrite=True"):
        capture_file(replace(spec, images=21), out=out)


def test_a_timm_model_and_a_folder_of_images(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.jpg", "b/3.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(path)
    out = capture_file(CaptureSpec("vit_16_digits", data=str(tmp_path / "images")), out=tmp_path / "maps.h5")
    with pytest.warns(UserWarning, match="without pictures: .*data='"):
        assert not examine(out).pictures
    examined = examine(out, user=UserImages(str(tmp_path / "images")))
    assert examined.info["n_images"] == 3 and len(examined.pictures) == 3
    assert not untrained_maps(out).exists(), "initial weights are their own baseline"


def test_torchrun_trains_one_run_and_says_how_it_ended(tmp_path):
    settings = ["epochs=1", "warmup_epochs=0", "model_kwargs={depth: 2, embed_dim: 24}", "batch_size=64"]
    chosen = [argument for setting in settings for argument in ("--set", setting)]
    run = tmp_path / "run"
    done = under_torchrun("train", "digits_vit_16", "-o", str(run), *chosen)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1 and Run(run).epochs() == [1]
    assert json.loads((run / "status.json").read_text()) == {"exit_code": 0, "message": ""}
    failed = under_torchrun("train", "digits_vit_16", "-o", str(tmp_path / "bad"), *chosen, "--set", "lr=1e30")
    assert failed.returncode == 1
    assert json.loads((tmp_path / "bad" / "status.json").read_text())["exit_code"] == 1


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_says_what_to_try(tmp_path, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("attnprobe.workflows.train.run_training", fails)
    with pytest.raises(WorkError, match=r"batch_size=64; .*batch_size=32 and grad_accum_steps=2"):
        train("digits_vit_16", tmp_path, settings=TINY)


def test_training_starts_from_another_runs_weights(runs, tmp_path):
    with pytest.warns(UserWarning, match="position table was resized"):
        result = train(
            "digits_vit_16",
            tmp_path,
            settings={**TINY, "epochs": 1, "warmup_epochs": 0, "lr": 1e-9, "min_lr": 1e-10, "weight_decay": 0.0,
                      "initial_checkpoint": str(runs / "digits_vit_16"), "img_size": 64},
        )  # fmt: skip
    before, after = ap.load_model(runs / "digits_vit_16"), ap.load_model(result.run.path)
    torch.testing.assert_close(after.blocks[1].mlp.fc1.weight, before.blocks[1].mlp.fc1.weight, atol=1e-6, rtol=0)
    assert after.pos_embed.shape[1] == 65


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["head", "layer", "everything"])
def test_maps_that_are_no_numbers_in_every_image_are_reported_not_crashed_on(tmp_path, make_maps, where):
    maps = make_maps(images=9, layers=4, heads=2)
    values = maps.values.clone()
    values[{"head": np.s_[:, 1, 0], "layer": np.s_[:, 2], "everything": np.s_[:]}[where]] = float("nan")
    path = store_maps(tmp_path / "maps.h5", [replace(maps, values=values)])
    (examined,), files = report(ReportSpec([path], tmp_path / "report"))
    assert all(file.stat().st_size for file in files) and {f.suffix for f in files} >= {".html", ".json"}
    entropy = examined.measurements["row_entropy"].mean
    assert np.isnan(entropy).sum() == {"head": 1, "layer": 2, "everything": 8}[where]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.weight", "blocks.2.mlp.fc1.weight", "head.weight", "pos_embed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_can_be_looked_at_if_asked(tmp_path, name, value):
    options = {"depth": 4, "embed_dim": 24, "num_heads": 3, "num_classes": 10}
    model = build_model("vit_16_digits", seed=0, **options)
    model.get_parameter(name).data.view(-1)[0] = value
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_json("vit_16_digits", model, options)))
    spec, out = CaptureSpec(tmp_path, data="digits", images=8, untrained=0), tmp_path / "maps.h5"
    with pytest.raises(CheckpointError, match="allow_nonfinite=True"):
        capture_file(spec, out=out)
    examined = examine(capture_file(replace(spec, allow_nonfinite=True), out=out), metrics=["row_entropy"])
    assert examined.measurements["row_entropy"].n_images == 8 and examined.certificate["output_equal"]


def test_of_a_model_of_several_stages_pictures_verdict_and_explorer_count_blocks_through_the_network(tmp_path):
    sizes = "img_size=32,patch_size=2,window_size=4,depths=(1,2,1),embed_dim=24,num_heads=(2,2,2),num_classes=10"
    name = f"swin_tiny_patch4_window7_224:{sizes}"
    spec = CaptureSpec(name, data="digits", images=6, untrained=0, initial=True)
    path = capture_file(spec, out=tmp_path / "swin.h5")
    e = examine(path, pictures=2)
    assert [picture.blocks for picture in e.pictures] == [(4,), (4,)] and e.pictures[0].pixels.shape == (32, 32, 3)
    shapes = e.maps.shapes()
    assert [(shape.kind, shape.layers, shape.n_blocks) for shape in shapes] == [
        ("window", (1,), 4), ("window", (2, 3), 4), ("self", (4,), 4),
    ]  # fmt: skip
    judged = {f.kind: f.levels.numbers for f in ap.verdict(e).findings if f.levels is not None}
    assert judged["near_uniform"] == judged["oversmoothing"] == (1, 2, 3, 4) and judged["repetition"] == (3,)
    rows = summary_table([e]).iloc[:, 0]
    assert rows["row entropy [nats]"].endswith(", stage2")
    assert rows["similar blocks"].endswith(", stage3") and rows["token similarity, last block"].endswith(", stage3")
