"""Summary lines state what a thing is or returns: none opens with Of, Where or Whether, none is a question."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import attnprobe

PACKAGE = Path(attnprobe.__file__).parent
PAGES = [PACKAGE.parent / "README.md", *sorted((PACKAGE.parent / "docs" / "pages").glob("*.md"))]
OPTIONS = [*(PACKAGE / "cli").glob("*.py"), PACKAGE / "training" / "config.py", PACKAGE / "core" / "spec.py"]
OPENING = r"(Of|Where|Whether)\b|.*\?$"
RIDDLE = re.compile(OPENING, re.IGNORECASE)
RIDDLE_OF_A_DOCSTRING = re.compile(rf"{OPENING}|(What|Which|Why|How|When|Who)\b|.*(\.\.\.|…)$", re.IGNORECASE)


def summaries(path: Path) -> Iterator[str]:
    """First lines of the docstrings of a file's module, and of its public classes and functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            yield summary if not getattr(node, "name", "").startswith("_") else ""


def option_texts(path: Path) -> Iterator[str]:
    """Texts from which help is made: strings below the fields of classes, and arguments in docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            texts = [field.value for field in node.body if isinstance(field, ast.Expr)]
            yield from (text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str))
        if isinstance(node, ast.FunctionDef):
            yield from re.findall(r"^    \w+: (.*)", (ast.get_docstring(node) or "").partition("Args:")[2], re.M)


@pytest.mark.parametrize("line", ["Whether it fits.", "Of the head", "Is it so?", "where it is"])
def test_a_riddle_is_known_as_one(line):
    assert RIDDLE.match(line) and RIDDLE_OF_A_DOCSTRING.match(line)
    assert RIDDLE_OF_A_DOCSTRING.match("What it is.") and not RIDDLE_OF_A_DOCSTRING.match("True if it fits.")


def test_no_docstring_opens_with_a_riddle():
    named = [(path.name, line) for path in PACKAGE.rglob("*.py") for line in summaries(path)]
    assert named and not [(name, line) for name, line in named if RIDDLE_OF_A_DOCSTRING.match(line)]


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_no_option_is_explained_by_a_riddle(path):
    assert not [text for text in option_texts(path) if RIDDLE.match(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_riddle_for_title_or_first_paragraph(page):
    opening = re.search(r"^# (.+)\n+(?:[<!\[].*\n+)*([^\n]+)", page.read_text(), re.M)
    assert opening and not [line for line in opening.groups() if RIDDLE.match(line)]
