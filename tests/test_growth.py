"""Slopes of costs of known growth, and the script that measures real ones, at tiny sizes."""

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)  # as of a script
    return runpy.run_path(str(BENCHMARKS / "growth.py"))


@pytest.mark.parametrize("power", [0, 0.5, 1, 2, 3])
def test_the_slope_of_a_power_is_its_exponent(growth, power):
    x = [17, 65, 197, 577, 1374]
    assert growth["slope"](x, [0.3 * n**power for n in x]) == pytest.approx(power, abs=1e-12)


def test_a_sum_of_powers_nears_the_largest_from_below(growth):
    x = [2**k for k in range(20)]
    slopes = [growth["slope"](x[k : k + 2], [50 + 7 * n + n**2 for n in x[k : k + 2]]) for k in range(19)]
    assert slopes == sorted(slopes) and slopes[0] < 0.5 and 1.99 < slopes[-1] < 2


def test_what_has_no_logarithm_has_no_slope(growth):
    assert math.isnan(growth["slope"]([1, 2], [0, 3])) and math.isnan(growth["slope"]([1], [3]))


def test_growth_above_theory_is_bold_and_growth_of_theory_is_not(growth):
    base = growth["Sizes"]()
    sweeps = {"heads": (base, (3, 6, 12))}
    found = {
        ("to disk", growth["Sizes"](heads=n)): {"cpu": n**1.3, "memory": n * 2.0**20, "written": 5e6}
        for n in (3, 6, 12)
    }
    rows = growth["markdown"](sweeps, found).splitlines()[2:]
    assert [row.split(" | ")[-2] for row in rows] == ["**1.30**", "1.00", "0.00"]
    assert rows[1].startswith("| heads 3 to 12 | to disk | memory, MiB | 3.0 | 12.0 | 1.00 |")


@pytest.mark.slow
def test_the_script_measures_every_point_draws_it_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--quick", "--out", "growth.json"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    first = subprocess.run(command, **options)
    points = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert len(points) == 6 and not [point for point in points if "why" in point], points
    assert all(point["cpu"] > 0 and point["memory"] > 0 and point["written"] > 20_000 for point in points)
    assert first.stdout.count("\n| images 8 to 16 |") == first.stdout.count("\n| processes 1 to 2 |") == 6
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    again = subprocess.run(command, **options)
    assert again.stdout == first.stdout and again.stderr == ""
