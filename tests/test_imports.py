"""What a fresh interpreter loads, and what it can do without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnprobe
from attnprobe.core.spec import CaptureSpec
from attnprobe.workflows.capture import capture_file

EVERY_MODULE = """
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys(("resource", "fcntl", "pwd", "grp", "termios"))
import attnprobe
for module in pkgutil.walk_packages(attnprobe.__path__, "attnprobe."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("LOADED", *(name for name in sys.modules if name.startswith("attnprobe.")))
"""

COMMAND = """
import sys
from attnprobe.cli import app
try:
    app.main(sys.argv[1:])
finally:
    print("LOADED", *sorted(sys.modules))
"""

MODELS = {"timm", "torchvision", "transformers", "torch._dynamo"}
"""Seconds of imports that only models, training and some data sets need."""


def fresh(code, *arguments):
    """The output of code in an interpreter of its own."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_loads_where_the_modules_of_unix_are_missing():
    loaded = set(fresh(EVERY_MODULE).split("LOADED")[1].split())
    package = Path(attnprobe.__file__).parent
    files = {".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
             for path in package.rglob("*.py") if path.name != "__main__.py"}  # fmt: skip
    assert loaded | {"attnprobe"} == files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    spec = CaptureSpec("vit_16_digits", data="digits", images=4, initial=True)
    return [capture_file(spec, out=folder / name) for name in ("one.h5", "two.h5")]


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("--help", {*MODELS, "torch", "numpy", "scipy"}),
        ("report --help", {*MODELS, "torch", "numpy", "scipy"}),
        ("list metrics", {*MODELS, "matplotlib", "pandas"}),
        ("explain similar_blocks", {*MODELS, "scipy.stats"}),
        ("inspect FILE", {*MODELS, "scipy.stats", "matplotlib", "pandas"}),
        ("report MAPS --formats json", {*MODELS, "seaborn"}),
        ("compare MAPS --metric row_entropy --metric content_overlap", {*MODELS, "scipy.stats", "seaborn"}),
    ],
)
def test_a_command_loads_no_more_than_it_needs(command, without, files, tmp_path):
    arguments = [{"MAPS": files, "FILE": files[:1]}.get(word, [word]) for word in command.split()]
    arguments = [word for words in arguments for word in words]
    out = ["-o", tmp_path / "out"] if "MAPS" in command else []
    loaded = set(fresh(COMMAND, *arguments, *out).rpartition("LOADED")[2].split())
    assert "attnprobe.cli.app" in loaded and not loaded & without
