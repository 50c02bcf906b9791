"""The wheel holds the program with its templates and recipes, and the licence, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import attnprobe

pytest.importorskip("setuptools", minversion="77", reason="wheels are built by setuptools 77 or later")

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of this checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("attnprobe", "tests", "examples", "docs", "notebooks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True, timeout=120)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_every_file_of_the_package_is_in_it_and_no_other(wheel):
    about = f"attnprobe-{attnprobe.__version__}.dist-info"
    inside = {name for name in wheel.namelist() if not name.startswith(f"{about}/")}
    files = {path for path in (ROOT / "attnprobe").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert inside == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"attnprobe/py.typed", "attnprobe/recipes/digits_vit_16.yaml"} <= inside
    assert {"attnprobe/reports/templates/report.html", "attnprobe/view/templates/explorer.js"} <= inside
    assert wheel.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_its_metadata_say_version_licence_and_program(wheel):
    about = f"attnprobe-{attnprobe.__version__}.dist-info"
    facts = Parser().parsestr(wheel.read(f"{about}/METADATA").decode())
    assert (facts["Version"], facts["License-Expression"]) == (attnprobe.__version__, "Apache-2.0")
    assert facts.get_payload() == (ROOT / "README.md").read_text()
    assert b"attnprobe = attnprobe.__main__:program" in wheel.read(f"{about}/entry_points.txt")
