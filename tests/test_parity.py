"""Golden numbers of the authors' own code, where they are at hand; elsewhere the loop-written references must do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity import variants
from tests.parity.__main__ import CHECKERS, main
from tests.parity.difference import compare

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
FILES = sorted(GOLDEN.glob("*.json")) if GOLDEN.is_dir() else []
MODELS = [path for path in FILES if variants.covers(path)]
COVERED = [(path, checker) for path in FILES for checker in CHECKERS if checker.covers(path)]


@pytest.mark.skipif(not FILES, reason="no golden files here; tests/models has loop-written references")
@pytest.mark.parametrize(("path", "checker"), COVERED, ids=lambda value: getattr(value, "stem", ""))
def test_ours_equal_the_authors_numbers(path, checker):
    for name, differences in checker.check(path, quick=True):
        bad = [d for d in differences if not d.excess <= 1]
        assert not bad, f"{name}: {bad}"


@pytest.mark.skipif(not FILES, reason="no golden files here")
def test_a_changed_weight_is_noticed(tmp_path):
    source = MODELS[0]
    golden = load_file(source.with_suffix(".safetensors"))
    name = next(k for k in golden if k.endswith("blocks.0.attn.qkv.weight") and k.startswith("state/"))
    golden[name] = golden[name] * 1.001
    save_file(golden, tmp_path / f"{source.stem}.safetensors")
    (tmp_path / source.name).write_text(source.read_text())
    assert main([str(tmp_path)]) == 1


@pytest.mark.skipif(not FILES, reason="no golden files here")
def test_an_option_nobody_knows_is_refused():
    description = json.loads(MODELS[0].read_text())
    description["config"]["new_option"] = 1
    with pytest.raises(KeyError, match="new_option"):
        variants.build(description)


def test_a_nan_counts_as_a_difference():
    difference = compare("x", torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-3, 1e-3)
    assert not difference.excess <= 1


def test_a_folder_without_golden_files_fails(tmp_path):
    assert main([str(tmp_path)]) == 1


@pytest.mark.skipif(not FILES, reason="no golden files here")
def test_a_file_that_cannot_be_compared_is_a_failed_line_and_hides_no_other(tmp_path, capsys):
    source = MODELS[0]
    description = json.loads(source.read_text())
    for name, options in {"a_unknown": {"new_option": 1}, "c_whole": {}}.items():
        changed = {**description, "config": {**description["config"], **options}}
        (tmp_path / f"{name}.json").write_text(json.dumps(changed))
        save_file(load_file(source.with_suffix(".safetensors")), tmp_path / f"{name}.safetensors")
    (tmp_path / "b_cut.json").write_text("{")
    (tmp_path / "b_cut.safetensors").write_bytes(b"")
    assert main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line[:4] in ("ok  ", "FAIL")] == [
        ["FAIL", "a_unknown"],
        ["FAIL", "b_cut"],
        ["ok", "c_whole"],
        ["ok", "c_whole"],
    ]
    assert "not compared: KeyError" in lines[0] and "new_option" in lines[0]
    assert lines[-1] == "3 files, 2 of 4 comparisons out of tolerance"


@pytest.mark.parametrize("variant", ["deepvit", "refiner"])
def test_qk_scale_and_qkv_bias_of_a_description_are_understood(variant):
    geometry = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "mlp_ratio": 2, "depth": 2}
    own = {
        "deepvit": {"apply_transform": [True, False]},
        "refiner": {"share_blocks": [0, 1], "apply_transform": [1, 0]},
    }
    config = {**geometry, **own[variant], "qk_scale": 0.3, "qkv_bias": False}
    model = variants.build({"name": "x", "variant": variant, "config": config})
    assert [block.attn.scale for block in model.blocks] == [0.3, 0.3]
    assert all(block.attn.qkv.bias is None for block in model.blocks)
