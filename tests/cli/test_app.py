"""The command line as a user meets it: help, one-line errors, exit codes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from safetensors.torch import save_file

import attnprobe
from attnprobe.cli import app as cli
from attnprobe.core.errors import STOPPED, CheckpointError, InputError, Stopped
from attnprobe.metrics import DERIVED
from attnprobe.models import build_model


@pytest.fixture
def run(call_command):
    return call_command


def check_one_line(code, err, expected_code, pattern):
    assert code == expected_code, err
    assert err.startswith("attnprobe: ") and err.count("\n") == 1 and "Traceback" not in err
    assert re.search(pattern, err), err


@pytest.fixture
def weights(tmp_path):
    model = build_model("vit_16_digits", num_classes=10, seed=0)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "unknown.safetensors")
    return model


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["reprot"], "no command 'reprot'. Did you mean 'report'"),
        (["train", "digits_vit_61", "-o", "x"], "no recipe named 'digits_vit_61'. Did you mean 'digits_vit_16'"),
        (["train", "digits_vit_16", "-o", "x", "--set", "epoch=1"], "no option named 'epoch'. Did you mean 'epochs'"),
        (["train", "digits_vit_16", "-o", "x", "--set", "model=deepvit_61"], "Did you mean 'deepvit_16'"),
        (["train", "digits_vit_16", "-o", "x", "--set", "dataset=digit"], "Did you mean 'digits'"),
        (["train", "digits_vit_16", "-o", "x", "--set", "model_kwargs={img_size: 30}"], "multiple of the patch size"),
        (["train", "none.yaml", "-o", "x"], "none.yaml cannot be read"),
        (["capture", "vit_16_digit"], "no model and no file named"),
        (["capture", "vit_16_digits"], "--data digits"),
        (["capture", "no/such/run", "--data", "digits"], "no checkpoint at no/such/run"),
        (["capture", "missing.pth", "--data", "digits"], "no checkpoint at missing.pth"),
        (["capture", "unknown.safetensors", "--data", "digits"], "does not say which model"),
        (["capture", "vit.safetensors", "--model", "deepvit_16", "--data", "digits"], "not a 'deepvit_16'"),
        (["capture", "vit.safetensors", "--model", "vit_16_digits", "--data", "empty"], "empty"),
        (["report", "nothing.h5"], "nothing.h5"),
        (["report", "foreign.h5"], "foreign.h5"),
        (["report", "runs", "--fail-on", "similar_blocks"], "is not METRIC"),
        (["report", "runs", "--metric", "row_entrpy"], "Did you mean 'row_entropy'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(run, weights, tmp_path, arguments, pattern):
    import h5py

    (tmp_path / "empty").mkdir()
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    code, _out, err = run(*arguments)
    check_one_line(code, err, 2, pattern)


def test_pickled_objects_truncation_and_nan_are_one_line_and_exit_2(run, weights, tmp_path):
    torch.save(weights, tmp_path / "module.pth")
    code, _, err = run("capture", "module.pth", "--data", "digits")
    check_one_line(code, err, 2, "nothing was run")
    whole = (tmp_path / "vit.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:1000])
    code, _, err = run("capture", "short.safetensors", "--model", "vit_16_digits", "--data", "digits")
    check_one_line(code, err, 2, "truncated")
    state = {**weights.state_dict(), "norm.weight": torch.full((96,), float("nan"))}
    save_file(state, tmp_path / "nan.safetensors")
    code, _, err = run("capture", "nan.safetensors", "--model", "vit_16_digits", "--data", "digits")
    check_one_line(code, err, 2, "NaN or infinite weights in 1 tensors")


def test_capture_then_the_same_again_then_report_and_nothing_is_overwritten(run, weights, tmp_path):
    arguments = ["capture", "vit.safetensors", "--model", "vit_16_digits", "--data", "digits", "--images", "20",
                 "--untrained", "10", "-o", "maps.h5"]  # fmt: skip
    code, out, err = run(*arguments)
    assert (code, out.strip(), err) == (0, "maps.h5", "")
    before = (tmp_path / "maps.h5").read_bytes()
    said = "attnprobe: maps.h5 holds this capture already; nothing was computed.\n"
    assert run(*arguments) == (0, "maps.h5\n", said), "as of train: it is done"
    code, _, err = run(*arguments, "--seed", "1")
    check_one_line(code, err, 2, "--overwrite")
    assert (tmp_path / "maps.h5").read_bytes() == before
    code, out, err = run("report", "maps.h5", "-o", "page")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "page").iterdir()} >= {"report.html", "measurements.json", "report.md"}
    assert "of 16 blocks" in out
    conditions = ["--fail-on", "similar_blocks.of > 15", "--fail-on", "accuracy > 1"]
    code, out, err = run("report", "maps.h5", "-o", "page", "--formats", "json", *conditions)
    check_one_line(code, err, 3, r"1 of 2 conditions of --fail-on met: maps: similar_blocks.of > 15 \(is 16\)")
    assert "FAIL  maps: similar_blocks.of > 15  (is 16)" in out and "pass  maps: accuracy > 1" in out
    code, out, _ = run("verify", "maps.h5")
    assert code == 0 and "20 images" in out
    damaged = bytearray(before)
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.h5").write_bytes(damaged)
    (tmp_path / "short.h5").write_bytes(before[: len(before) // 2])
    for name in ("damaged.h5", "short.h5"):
        code, _, err = run("report", name)
        check_one_line(code, err, 2, name)


@pytest.mark.parametrize(
    "name", ["similar_blocks", "head_types", "head_importance", "head_ablation", "attention_update"]
)
def test_what_is_measured_is_explained(run, name):
    code, out, _ = run("explain", name)
    assert code == 0 and len(out.splitlines()) > 5
    assert name in run("list", "metrics")[1]


@pytest.mark.parametrize("what", ["variants", "models", "recipes", "data", "metrics", "plots"])
def test_tables_are_listed(run, what):
    code, out, _ = run("list", what)
    assert code == 0 and len(out.splitlines()) >= 2


def test_list_alone_names_every_table(run):
    code, out, _ = run("list")
    tables = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and all(run("list", table)[0] == 0 for table in tables)
    assert all(table in run("list", "--help")[1] for table in tables)


def test_no_two_metrics_are_described_by_the_same_line(run):
    lines = [line.partition("  ")[2].strip() for line in run("list", "metrics")[1].splitlines()]
    assert len(set(lines)) == len(lines)


def test_variants_are_listed_with_paper_parameters_and_maps(run):
    code, out, _ = run("list", "variants")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["name", "arXiv", "year", "parameters", "maps", "what", "differs"]
    deepvit = next(line for line in lines if line.startswith("deepvit "))
    assert re.split(r"  +", deepvit)[1:5] == ["2103.11886", "2021", "24,426,664", "weights, effective"]
    assert re.split(r"  +", lines[1])[4] == "weights = effective"
    assert len(lines) == 1 + len(attnprobe.VARIANTS)


def test_no_arguments_show_how_to_start(run):
    code, out, _ = run()
    assert code == 0 and "attnprobe demo --fast" in out


def test_interrupts_and_bugs_end_as_one_line(run, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "demo", lambda: interrupted())
    code, _, err = run("demo")
    check_one_line(code, err, 130, "run the same command again")
    monkeypatch.setitem(cli.COMMANDS, "demo", lambda: 1 // 0)
    code, _, err = run("demo")
    check_one_line(code, err, 1, "bug: ZeroDivisionError")


@pytest.mark.promise("stop-requested")
def test_sigterm_is_exit_75_and_the_same_command_goes_on(tmp_path):
    import signal
    import time

    command = [sys.executable, "-m", "attnprobe", "train", "digits_vit_16", "-o", str(tmp_path / "run"),
               "--set", "epochs=200", "--set", "model_kwargs={depth: 2}"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "summary.csv"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    *progress, answer = err.splitlines(keepends=True)  # a slow machine is told how long it will take
    check_one_line(process.returncode, answer, 75, "run the same command again")
    assert all("at this speed" in line for line in progress), err
    assert len(log.read_text().splitlines()) >= 2


def test_explain_prints_what_the_metric_says_of_itself_and_lists_all_without_a_name(run):
    code, out, _ = run("explain", "similar_blocks")
    assert code == 0 and "Share of a block's token vectors that repeat those of the previous block" in out
    assert "r[threshold, l] = mean over h, t" in out and "Caveat:" in out and "tau=0.9" in out
    code, out, _ = run("explain")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == [*attnprobe.METRICS, *DERIVED]
    code, _, err = run("explain", "similar_block")
    check_one_line(code, err, 2, "Did you mean 'similar_blocks'")
    code, _, err = run("explain", "uniform")
    check_one_line(code, err, 2, "no metric and no kind of collapse is named 'uniform'. Did you mean 'near_uniform'")


def test_alone_it_shows_how_to_start_and_every_command_in_a_line_or_two(run):
    code, out, _ = run()
    assert code == 0 and out.index("attnprobe demo --fast") < out.index("All commands")
    assert max(map(len, out.splitlines())) <= 80 and len(out.splitlines()) < 40
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_the_version_is_told(run):
    assert run("--version") == (0, f"attnprobe {attnprobe.__version__}\n", "")


def test_every_kind_of_collapse_is_explained_by_its_bar_and_source(run):
    from attnprobe.reports.kinds import KINDS

    for kind in KINDS:
        code, out, _ = run("explain", kind.name)
        assert code == 0 and kind.words[1:] in out and f"{kind.bar:.3g}" in out and kind.source in out, kind.name


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["plot", "a"], r"Missing from attnprobe plot: -o FILE, --out FILE; attnprobe plot --help"),
        (["plot"], r"Missing from attnprobe plot: MAPS, -o FILE, --out FILE; attnprobe plot --help"),
        (["report", "a", "--data-di", "x"], r"Unrecognized options: --data-di, x \(did you mean --data-dir\?\)"),
        (["evaluate", "a", "--batch-size", "many"], r"Error parsing --batch-size: .*'many'"),
        (["verify-drops", "a", "--what", "x"], r"invalid choice 'x' for argument '--what'. .*'block', 'attention'"),
        (["explain", "a", "b"], "Unrecognized options: b"),
        (["list", "colours"], r"table='colours' is not a choice. .*Known: data, kinds, metrics"),
        (["capture", "m", "--site", "x"], r"'x' for argument '--site'. Expected one of \((?!.*None)"),
        (["capture", "vit_16_digits", "--data", "digits", "--images", "0"], "--images 0 must be at least 1"),
    ],
)
def test_usage_that_is_wrong_is_one_line(run, arguments, pattern):
    code, out, err = run(*arguments)
    check_one_line(code, err, 2, pattern)
    assert not out


def test_one_mistake_is_told_in_the_words_of_the_command_line_and_in_those_of_python(tmp_path, run):
    torch.save({"a": torch.zeros(2)}, file := tmp_path / "mine.pth")
    with pytest.raises(CheckpointError) as in_python:
        attnprobe.load_model(file)
    assert "model='deit_tiny_patch16_224'" in str(in_python.value) and "--" not in str(in_python.value)
    code, _, err = run("capture", str(file), "--data", "digits")
    check_one_line(code, err, 2, "--model deit_tiny_patch16_224")


def test_warnings_of_libraries_that_figures_cause_do_not_reach_the_terminal(run, monkeypatch):
    def noisy(*_):
        for category, module in ((UserWarning, "attnprobe.plots.style"), (RuntimeWarning, "attnprobe.metrics.rank")):
            warnings.warn_explicit("of a library", category, "x.py", 1, module=module)
        warnings.warn_explicit("of ours", UserWarning, "x.py", 1, module="attnprobe.workflows.measure")

    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(cli, "_parsed", lambda *_: noisy)
    with warnings.catch_warnings():
        code, _, err = run("schema")
    assert code == 0 and err == "attnprobe: of ours\n"


@pytest.mark.promise("stop-requested")
@pytest.mark.parametrize("error", [OSError("a descriptor"), SystemError("a result"), InputError("x")])
def test_a_stop_that_a_library_turns_into_an_error_of_its_own_is_still_a_stop(monkeypatch, capsys, error):
    def strikes():
        with contextlib.suppress(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        raise error

    monkeypatch.setitem(cli.COMMANDS, "verify", strikes)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(["verify"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 75 and capsys.readouterr().err == f"attnprobe: {STOPPED}\n"
