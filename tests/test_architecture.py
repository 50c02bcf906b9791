"""The arrows between packages are a test: a folder that imports one beside or above it fails here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attnprobe

ROOT = Path(attnprobe.__file__).parent
STAGES = {"data", "models", "training", "capturing", "store", "metrics", "plots", "reports", "view"}
GROUND = {"core", "io", "stats"}
ALLOWED = {
    "core": set(),
    "io": {"core"},
    "stats": {"core", "io"},
    **dict.fromkeys(STAGES, GROUND),
    "reports": GROUND | {"plots", "view"},
    "workflows": GROUND | STAGES,
    "cli": GROUND | {"workflows"},
}
"""What each folder may import besides itself."""

LATE = STAGES
"""What a command may import when it runs, and never before."""


def imported(path: Path, top_only: bool = False) -> set[str]:
    """Names of the modules that a file imports, `from a import b` as a and as a.b."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def folders_of(names: set[str]) -> set[str]:
    found = {name.split(".")[1] for name in names if name.startswith("attnprobe.")}
    return {name for name in found if (ROOT / name).is_dir()}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_the_map_allows(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, f"attnprobe/{folder} is empty"
    allowed = ALLOWED[folder] | {folder} | (LATE if folder == "cli" else set())
    for path in paths:
        assert folders_of(imported(path)) <= allowed, path.relative_to(ROOT)


def test_every_folder_is_on_the_map():
    assert {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(ALLOWED)


def test_the_top_level_holds_the_public_names_and_the_program_alone():
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_no_two_files_import_each_other_in_a_circle():
    modules = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p for p in ROOT.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items() if path.name != "__init__.py"}
    left = {name: imported(path) & set(modules) - {name} for name, path in modules.items()}
    while ready := [name for name, needs in left.items() if not needs & set(left)]:
        for name in ready:
            del left[name]
    assert not left, f"in or above a circle: {sorted(left)}"


def test_command_line_imports_nothing_heavy_before_a_command_runs():
    for path in (ROOT / "cli").glob("*.py"):
        assert folders_of(imported(path, top_only=True)) <= {"cli", "core"}, path.name


@pytest.mark.parametrize("code", ["import attnprobe", "import attnprobe.cli.app"])
def test_importing_does_not_load_torch_matplotlib_or_h5py(code):
    check = f"{code}; import sys; print([m for m in ('torch', 'matplotlib', 'h5py', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_longer_than_a_sitting():
    long = {p.relative_to(ROOT): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_public_names_exist_and_capture_is_a_plain_function():
    import attnprobe.capturing  # the package that it comes from has another name, so nothing can hide it

    assert not [name for name in attnprobe.__all__ if not hasattr(attnprobe, name)]
    assert attnprobe.capture is attnprobe.capturing.capture
    assert type(attnprobe.capture) is type(lambda: None)


def test_no_function_has_more_than_eight_parameters():
    """A metric's settings aside: a user names each of them, as in similar_blocks:tau=0.8."""
    many = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                is_metric = any(ast.unparse(decorator).startswith("metric") for decorator in node.decorator_list)
                settings = [] if is_metric else node.args.kwonlyargs
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *settings) if a.arg != "self"]
                many += [f"{path.relative_to(ROOT)}: {node.name}"] if len(names) > 8 else []
    assert not many
