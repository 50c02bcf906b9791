"""The arrows between packages are a test: a stage that imports another stage fails here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attnprobe

ROOT = Path(attnprobe.__file__).parent
ALLOWED = {
    "core": set(),
    "data": {"core"},
    "models": {"core"},
    "training": {"core"},
    "capture": {"core"},
    "store": {"core"},
    "metrics": {"core"},
    "plots": {"core"},
    "view": {"core"},
    "reports": {"core", "plots", "view"},
}


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return names


@pytest.mark.parametrize("stage", ALLOWED)
def test_stage_imports_only_what_the_map_allows(stage):
    paths = sorted((ROOT / stage).rglob("*.py"))
    assert paths, f"attnprobe/{stage} is empty"
    for path in paths:
        for other in (name.split(".")[1] for name in imported(path) if name.startswith("attnprobe.")):
            assert other == stage or other in ALLOWED[stage], f"{path.relative_to(ROOT)} imports attnprobe.{other}"


def test_every_folder_is_on_the_map():
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert folders == set(ALLOWED)


def test_command_line_imports_nothing_heavy_before_a_command_runs():
    top = [name for name in imported_at_top(ROOT / "cli.py") if name.startswith("attnprobe")]
    parts = {path.stem for path in ROOT.glob("cli_*.py")}
    light = {f"attnprobe.{part}" for part in parts}
    assert set(top) <= {"attnprobe.core.errors", "attnprobe.core.visible", *light}
    for part in parts:
        assert {name for name in imported_at_top(ROOT / f"{part}.py") if name.startswith("attnprobe")} <= light


def imported_at_top(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("code", ["import attnprobe", "import attnprobe.cli"])
def test_importing_does_not_load_torch_matplotlib_or_h5py(code):
    check = f"{code}; import sys; print([m for m in ('torch', 'matplotlib', 'h5py', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_longer_than_a_sitting():
    long = {p.relative_to(ROOT): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_public_names_exist_and_capture_is_both_call_and_package():
    missing = [name for name in attnprobe.__all__ if not hasattr(attnprobe, name)]
    assert not missing
    assert callable(attnprobe.capture)
    assert callable(attnprobe.capture.record)
