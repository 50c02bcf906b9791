"""A hostile file given to any command that reads such files: one line, in bounded time and memory, and nothing else."""

import re
from pathlib import Path

import pytest

from tests.hostile import checkpoints, maps
from tests.hostile.calling import call
from tests.hostile.cases import Case, cases

ALL = list(cases())
QUICK = ALL[::89]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder that is not the command's output."""
    paths = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0].partition(".")[0] != "out")
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths if not path.is_dir()}


def problems(case: Case, folder: Path) -> list[str]:
    """Promises that a command breaks."""
    case.make(folder / case.place)
    maps.write(folder / "honest.h5")
    checkpoints.write_folder(folder / "model") if not (folder / "model").exists() else None
    before = snapshot(folder)
    outcome = call([part.replace("FILE", case.place) for part in case.command], folder)
    lines = outcome.err.splitlines()
    broken = []
    if outcome.code not in ((2,) if case.refused else (0, 2, 75)):
        broken.append(f"exit code {outcome.code}")
    if outcome.code and len(lines) != 1:
        broken.append(f"{len(lines)} lines")
    if "Traceback" in outcome.err or "bug:" in outcome.err:
        broken.append("a bug")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", outcome.err + outcome.out):
        broken.append("control characters")
    if outcome.reached:
        broken.append(f"reached {outcome.reached}")
    if "run" not in case.name and case.place != "out.parts" and snapshot(folder) != before:
        broken.append(f"files beside {sorted(set(snapshot(folder)) ^ set(before))}")
    return [*broken, outcome.err[-600:]] if broken else []


@pytest.mark.promise("files-hostile")
@pytest.mark.parametrize("case", QUICK, ids=str)
def test_a_hostile_file_is_refused_in_one_line(case, tmp_path):
    assert not problems(case, tmp_path)


@pytest.mark.promise("files-hostile")
@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_hostile_file_is_refused_by_every_command_in_one_line(case, tmp_path):
    assert not problems(case, tmp_path)
