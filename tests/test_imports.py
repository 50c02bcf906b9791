"""What a fresh interpreter loads, and what it can do without."""

import os
import subprocess
import sys

EVERY_MODULE = """
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys(("resource", "fcntl", "pwd", "grp", "termios"))
import attnprobe
for module in pkgutil.walk_packages(attnprobe.__path__, "attnprobe."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def fresh(code):
    """The output of code in an interpreter of its own."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_loads_where_the_modules_of_unix_are_missing():
    fresh(EVERY_MODULE)
