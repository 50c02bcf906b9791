"""What a terminal shows while a command works, and that nothing else is shown anything."""

import io
import re
import sys

from attnprobe.io.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_what_runs_how_far_it_is_and_the_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress("capture maps.h5", 360, done=40) as advance:
        for _ in range(4):
            advance(40, "16 images/s")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stderr.getvalue())
    assert re.search(r"capture maps\.h5 .* 200/360 [-\d]:[-\d]+:[-\d]+ 16 images/s", shown), shown


def test_a_file_and_the_other_processes_of_a_job_see_nothing(monkeypatch):
    for stream, rank in ((io.StringIO(), "0"), (Terminal(), "1")):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("RANK", rank)
        with progress("capture", 4) as advance:
            advance(4)
        assert stream.getvalue() == ""
