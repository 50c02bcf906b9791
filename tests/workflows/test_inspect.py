"""What inspect promises is what a capture then holds."""

import io

import pytest
from rich.console import Console

import attnprobe as ap
from attnprobe.core.errors import CaptureError
from attnprobe.core.spec import CaptureSpec
from attnprobe.workflows import inspect as inspection
from attnprobe.workflows.capture import capture_file
from tests.cli.test_app import run  # noqa: F401  a fixture


@pytest.fixture
def console():
    return Console(width=80, record=True, force_terminal=False, file=io.StringIO())


def test_what_is_promised_is_what_the_file_holds(tmp_path, console):
    found = inspection.inspect_model(CaptureSpec("deepvit_16_digits", data="digits", images=20))
    (stage,) = found.stages
    out = capture_file(CaptureSpec("deepvit_16_digits", data="digits", images=20), out=tmp_path / "maps.h5")
    reader, (stored,) = inspection.inspect_maps(out)
    assert (stage.layers, stage.heads, stage.queries, stage.keys) == (stored.layers, 6, 17, 17)
    assert (stage.rows, stage.cols, stage.prefix) == (stored.rows, stored.cols, ("cls",)) == (4, 4, ("cls",))
    assert stage.sites == stored.sites == "weights, effective" and stage.routes == stored.routes == {"taps": 16}
    assert stage.image_bytes == stored.image_bytes == 2 * (2 * 16 * 6 * 17 * 17 + 16 * 17 * 96)
    assert 0.5 < 20 * found.stored_bytes / out.stat().st_size < 2
    inspection.print_maps(reader, (stored,), console)
    told = " ".join(console.export_text().split())
    assert "20 images of digits" in told and "16x6" in told


def test_everything_fits_80_columns_and_the_command_says_all_that_was_chosen(console):
    found = inspection.inspect_model(
        CaptureSpec("vit_16_digits", data="my images", images=7, what=("weights",), dtype="float32", img_size=64)
    )
    assert found.spec.command == (
        "attnprobe capture vit_16_digits --data 'my images' --images 7 --img-size 64 --what weights --dtype float32"
    )
    inspection.print_inspection(found, console)
    *lines, command = console.export_text().rstrip().splitlines()
    assert max(map(len, lines)) <= 80 and command == f"$ {found.spec.command}"
    assert "1+8x8" in "".join(lines) and "the first is cls" in "".join(lines)


def test_a_part_and_values_are_counted_and_stand_in_the_command(tmp_path):
    chosen = {"what": ("weights", "values"), "layers": "1-2,16", "heads": "2", "queries": "cls"}
    found = inspection.inspect_model(CaptureSpec("vit_16_digits", data="digits", images=20, **chosen))
    out = capture_file(CaptureSpec("vit_16_digits", data="digits", images=20, **chosen), out=tmp_path / "maps.h5")
    _, (stored,) = inspection.inspect_maps(out)
    (stage,) = found.stages
    assert (len(stage.layers), stage.heads, stage.queries) == (len(stored.layers), stored.heads, stored.queries)
    assert stage.image_bytes == stored.image_bytes == 2 * 3 * (17 + 17 * 16)
    assert found.spec.command.endswith("--what weights values --layers 1-2,16 --heads 2 --queries cls")


def test_a_model_without_maps_says_why():
    with pytest.raises(CaptureError, match="no softmax"):
        inspection.inspect_model(CaptureSpec("swiftformer_xs"))


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (999, "999 B"), (32.2e6, "32.2 MB"), (1.5e12, "1.5 TB")])
def test_sizes(n, text):
    assert inspection.size(n) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations(seconds, text):
    assert inspection.duration(seconds) == text


def test_the_command_line_shows_models_and_files(run, tmp_path):  # noqa: F811
    code, out, _ = run("inspect", "vit_16_digits", "--images", "20", "--data", "digits")
    command = out.strip().splitlines()[-1].removeprefix("$ attnprobe ")
    assert code == 0 and command == "capture vit_16_digits --data digits --images 20"
    code, out, err = run(*command.split(), "-o", "maps.h5")
    assert code == 0, err
    code, out, _ = run("inspect", "maps.h5")
    assert code == 0 and "20 images" in out and len(ap.open_maps("maps.h5")) == 20


def test_queries_and_keys_are_offered_where_they_are_smaller_and_maps_can_be_made_of_them(tmp_path, console):
    chosen = {"img_size": 128, "data": "digits", "images": 3, "what": ("weights", "effective")}
    found = inspection.inspect_model(CaptureSpec("vit_16_digits", **chosen))
    assert found.qk_bytes < found.stored_bytes, "257 tokens, heads of width 16"
    inspection.print_inspection(found, console)
    assert "with --store qk about" in console.export_text()
    asked = inspection.inspect_model(CaptureSpec("vit_16_digits", store="qk", **chosen))
    assert asked.spec.command.endswith("--what weights effective --store qk") and asked.stored_bytes == asked.qk_bytes
    out = capture_file(CaptureSpec("vit_16_digits", store="qk", **chosen), out=tmp_path / "maps.h5")
    assert 0.5 < 3 * asked.stored_bytes / out.stat().st_size < 2
    _, (stored,) = inspection.inspect_maps(out)
    assert stored.image_bytes == asked.stages[0].image_bytes == 4 * 2 * 16 * 6 * 257 * 16
    assert inspection.inspect_model(CaptureSpec("deepvit_16_digits", **chosen)).qk_bytes is None
