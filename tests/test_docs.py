"""README and documentation show what works: commands that are understood, Python that runs, links that lead on."""

import re
import shlex
from pathlib import Path

import pytest

from attnprobe.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


COMMANDS = [
    (page.name, line)
    for page in PAGES
    for text in blocks(page, "")
    for line in re.findall(r"^(?:.*&& |torchrun .*? -m )?(attnprobe .*)$", text, re.M)
]
PYTHON = [pytest.param(page, text, id=f"{page.stem}{k}", marks=pytest.mark.slow if "ap.train" in text else ())
          for page in PAGES for k, text in enumerate(blocks(page, "python"))]  # fmt: skip


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 120


def test_commands_are_found_on_many_pages():
    assert len(COMMANDS) > 30 and len({page for page, _ in COMMANDS}) > 6


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_that_is_shown_is_understood(page, line):
    _, name, *arguments = shlex.split(line, comments=True)
    assert callable(app._parsed(name, arguments))


@pytest.mark.parametrize(("page", "text"), PYTHON)
def test_python_that_is_shown_runs(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "maps.h5" in text:
        app.main(["capture", "vit_16_digits", "--data", "digits", "--images", "4", "-o", "runs/vit/maps.h5"])
    made = {}
    exec(compile(text, str(page), "exec"), made)
    assert len(made.keys() - {"__builtins__"}) >= 2, "a module, and what was made with it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
