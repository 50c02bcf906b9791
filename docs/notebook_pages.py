"""Notebooks as pages, with the results of the copies that were executed before.

Building the pages runs no notebook. Executed copies are looked for in the folder that EXECUTED_NOTEBOOKS names, where
the tests leave them, or else in notebooks/executed, where this leaves them:

    jupyter nbconvert --execute --to notebook --output-dir notebooks/executed notebooks/*.ipynb

A notebook without a copy, or with one of other cells, is shown without results, and its page says so.
"""

import os
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"

NOT_EXECUTED = """!!! note
    Shown without its results: this page was built without an executed copy of the notebook.
"""
SLIDERS = "*In Jupyter, sliders appear here.*"


def on_files(files: Any, config: Any) -> None:
    """Adds a page, and its figures, for each notebook."""
    executed = Path(os.environ.get("EXECUTED_NOTEBOOKS") or NOTEBOOKS / "executed")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, figures = page(path, executed / path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in figures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))


def page(path: Path, executed: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and its figures by name, from the executed copy where that is of the same cells."""
    notebook = nbformat.read(path, as_version=4)
    copy = nbformat.read(executed, as_version=4) if executed.exists() else None
    is_current = copy is not None and _sources(copy) == _sources(notebook)
    shown = copy if is_current else notebook
    states = shown.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    for cell in shown.cells:
        outputs = cell.get("outputs", [])
        cell["outputs"] = [part for output in outputs for part in _for_a_page(output, states)]
    resources = {"unique_key": path.stem, "output_files_dir": path.stem}
    text, resources = MarkdownExporter().from_notebook_node(shown, resources)
    title, _, rest = text.partition("\n")
    source = f"`notebooks/{path.name}`"
    return "\n".join([title, "", source, "", "" if is_current else NOT_EXECUTED, rest]), resources.get("outputs", {})


def _sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def _for_a_page(output: NotebookNode, states: dict[str, Any]) -> list[NotebookNode]:
    """An output without what only a running notebook shows: no progress, and of a widget what it had drawn."""
    if output.output_type == "stream":
        return [output] if output.name == "stdout" else []
    data = output.get("data", {})
    if "<table" not in data.get("text/html", "<table"):  # made for Jupyter's own styles: its text reads better
        del data["text/html"]
    if WIDGET not in data:
        return [output]
    children = states.get(data[WIDGET]["model_id"], {}).get("state", {}).get("children", [])
    models = [states.get(child.removeprefix("IPY_MODEL_"), {}).get("state", {}) for child in children]
    drawn = [nbformat.from_dict(part) for model in models for part in model.get("outputs", [])]
    return [nbformat.v4.new_output("display_data", {"text/markdown": SLIDERS}), *drawn]
