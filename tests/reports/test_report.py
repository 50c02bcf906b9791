import pytest

from attnprobe.core.errors import InputError, WorkError
from attnprobe.io import fs
from attnprobe.reports import write_report
from tests.reports.formulas import examined


@pytest.fixture(scope="module")
def run():
    return examined("vit_16", layers=3, heads=2, pictures=0)


def test_four_files_in_the_order_asked_for(run, tmp_path):
    out = tmp_path / "new" / "report"
    files = write_report([run], out, ("csv", "html", "md", "json"))
    assert [f.name for f in files] == ["measurements.csv", "report.html", "report.md", "measurements.json"]
    assert sorted(out.iterdir()) == sorted(files)
    assert all(f.stat().st_size > 500 for f in files)


def test_an_earlier_report_is_replaced(run, tmp_path):
    (tmp_path / "report.md").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    write_report([run], tmp_path, ("md",))
    assert "vit_16" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("operation", ["create", "reserve", "write", "fsync", "rename"])
def test_a_full_disk_leaves_the_earlier_report_whole(operation, run, tmp_path, monkeypatch):
    (tmp_path / "report.md").write_text("old")
    monkeypatch.setattr(fs, "matched", 0)
    monkeypatch.setenv("ATTNPROBE_FAULT", f"{operation}:1:ENOSPC")
    with pytest.raises(WorkError, match="no space left on the disk while writing report.md"):
        write_report([run], tmp_path, ("md",))
    assert [f.name for f in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "old"


def test_an_unknown_format_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(InputError, match="Did you mean 'html'"):
        write_report([run], tmp_path, ("md", "htm"))
    assert not list(tmp_path.iterdir())


def test_runs_need_different_names_and_there_must_be_one(run, tmp_path):
    with pytest.raises(InputError, match="two runs are named 'vit_16'"):
        write_report([run, run], tmp_path)
    with pytest.raises(InputError, match="nothing to report"):
        write_report([], tmp_path)


def test_files_are_utf8_whatever_a_name_holds(tmp_path):
    for file in write_report([examined("\ud800数", layers=2, heads=1, pictures=0)], tmp_path, ("csv", "md", "json")):
        text = file.read_bytes().decode("utf-8")
        assert "数" in text or "\\u6570" in text
