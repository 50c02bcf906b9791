"""The last line of a long command, on a terminal: a next command that is understood."""

import io
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnprobe.cli import app
from attnprobe.cli.options import say_next

RUN = SimpleNamespace(path=Path("runs/vit"))
TRAINED = SimpleNamespace(run=RUN, top1=0.5, best=0.5, best_epoch=1, log=(), warnings=())
PAGE = [Path("page/report.html"), Path("page/report.md")]
PRUNED = SimpleNamespace(path=Path("small"), data="digits", data_dir=None)

CASES = {
    "capture": ("capture runs/vit", "capture.capture_file", Path("maps.h5"), ["report maps.h5"]),
    "live": ("capture runs/vit --stats-only", "capture.measure_live", ([], PAGE), []),
    "import": ("import a.npy -o m.h5", "import_maps.import_maps", Path("m.h5"), ["report m.h5"]),
    "train": ("train digits_vit_16 -o runs/vit", "train.train", TRAINED, ["capture runs/vit"]),
    "seeds": ("train digits_vit_16 -o runs/vit --seeds 0-1", "train.train_seeds", [TRAINED] * 2,
              ["capture runs/vit", "compare 'vit=runs/vit_s*'"]),
    "evaluate": ("evaluate runs/vit --data digits", "evaluate.evaluate", SimpleNamespace(text=lambda **_: ""),
                 ["capture runs/vit --data digits"]),
    "report": ("report 'my maps.h5'", "report.report", ([], PAGE), ["view 'my maps.h5'"]),
    "prune": ("prune runs/vit --blocks 2 -o small", "prune.prune", PRUNED, ["capture small --data digits"]),
    "demo": ("demo", "demo.demo", ([], PAGE), []),
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("line", "workflow", "result", "commands"), CASES.values(), ids=CASES)
def test_the_last_line_names_what_to_do_next(monkeypatch, capsys, line, workflow, result, commands):
    monkeypatch.setattr(f"attnprobe.workflows.{workflow}", lambda *_args, **_options: result)
    for module in ("capture", "report", "train"):
        monkeypatch.setattr(f"attnprobe.cli.{module}.show", lambda *_args, **_options: None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    name, *arguments = shlex.split(line)
    app._parsed(name, arguments)()
    last = sys.stderr.getvalue().splitlines()[-1]
    assert last.startswith("next: ")
    assert ("open page/report.html in a browser" in last) is (result == ([], PAGE))
    for command in commands:
        assert f"attnprobe {command}" in last
        name, *arguments = shlex.split(command)
        assert callable(app._parsed(name, arguments))
    assert "next:" not in capsys.readouterr().out, "data alone"


def test_a_program_and_the_other_processes_of_a_job_get_no_advice(monkeypatch):
    for stream, rank in ((io.StringIO(), "0"), (Terminal(), "1")):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("RANK", rank)
        say_next("attnprobe report maps.h5")
        assert stream.getvalue() == ""
