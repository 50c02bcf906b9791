"""Any command line ends with a documented exit code and, if it fails, one line."""

import random
import re

import pytest

from attnprobe.cli import app as cli
from tests.hostile.calling import call

CODES = {0, 1, 2, 74, 75}
WORKING = {"demo", "view"}
"""Commands that begin to work or to serve without any argument."""

VALUES = ["", "0", "-1", "1e9", "nan", "None", "all", "1,2,x", "a=b", "a=", "=", ":", "::", "hf:", "onnx:",
          "local-dir:", "timm:", "digits:", "fractals:0:0", "fractals:-1:x", "torch/nothing", "/dev/null",
          "/dev/zero", ".", "..", "/", "missing", "missing.h5", "a\nb", "\x1b[31m", "é☃", "-", "--", "[]",
          "{}", "{a: [", "!!python/object:os.system x", "similar_blocks", "similar_blocks:",
          "similar_blocks:tau=", "similar_blocks:tau=x", "nothing:tau=1", "*", "(", "a" * 3000, "vit=",
          "vit=missing*", "=x", "9:3", "9:", ":9", "0-4", "4-0", "cuda", "cuda:99", "meta", "$(id)"]  # fmt: skip


def options_of(command):
    """Every option that the command's help names."""
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    return sorted(set(re.findall(r"--[a-z][a-z0-9-]+", text.getvalue())) - {"--help"})


def command_line(chance, options):
    """A command, mostly a real one, with arguments and options that are mostly nonsense."""
    command = chance.choice([*options, "reprot", "", "--version", "-x"])
    words = [chance.choice(VALUES) for _ in range(chance.choice((0, 1, 1, 1, 2, 3)))]
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        known = options.get(command) or ["--nothing"]
        words.insert(chance.randrange(len(words) + 1), chance.choice([*known, "--nothing", "-q", "--help"]))
        if chance.random() < 0.8:
            words.append(chance.choice(VALUES))
    return [command, *words]


def check(tmp_path, monkeypatch, times, seed):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    options = {command: options_of(command) for command in cli.COMMANDS if command not in WORKING}
    chance = random.Random(seed)
    for _ in range(times):
        line = command_line(chance, options)
        if any("\0" in word for word in line):
            continue
        outcome = call(line, tmp_path)
        assert outcome.code in CODES, (line, outcome)
        assert "Traceback" not in outcome.err and "bug:" not in outcome.err, (line, outcome)
        assert not outcome.code or len(outcome.err.splitlines()) == 1, (line, outcome)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", outcome.err), (line, outcome)
        assert not outcome.reached, (line, outcome)


@pytest.mark.promise("command-lines")
def test_a_hundred_command_lines(tmp_path, monkeypatch, record_property):
    check(tmp_path, monkeypatch, 100, seed=0)
    record_property("tried", 100)


@pytest.mark.slow
@pytest.mark.promise("command-lines")
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_thousand_command_lines(tmp_path, monkeypatch, seed, record_property):
    check(tmp_path, monkeypatch, 1000, seed)
    record_property("tried", 1000)
