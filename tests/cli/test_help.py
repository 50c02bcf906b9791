"""Help of every command: short, as wide as a terminal, complete, and with examples that are understood."""

import re
import shlex

import pytest
import tyro

from attnprobe.cli import app
from attnprobe.cli.help import options
from attnprobe.core.spec import CaptureSpec, EvaluateSpec, ImportOptions, ReportSpec

LONG = {"capture", "inspect", "evaluate", "report", "verify-drops", "prune"}
"""Commands with so many options that those people use first stand before the others."""

FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


def examples(page):
    return re.findall(r"^  \$ (.*)$", page.replace(" \\\n      ", " "), re.M)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_help_is_short_fits_a_terminal_and_tells_no_default_that_is_nothing(call_command, name):
    code, out, err = call_command(name, "--help")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert len(lines) < 60 and max(map(len, lines)) <= 80
    assert not re.search(r"\bNone\b|\bFalse\b|\[\]|''|\{|default: ", out)


@pytest.mark.parametrize("name", app.COMMANDS)
def test_help_lists_the_options_that_tyro_parses_and_no_other(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        tyro.cli(app.COMMANDS[name], args=["--help"], config=(tyro.conf.FlagCreatePairsOff,))
    calls = re.findall(r"^. (-.*?)(?:  |.$)", capsys.readouterr().out, re.M)  # a text stands two spaces further right
    parsed = {flag for call in calls for flag in FLAG.findall(call)}
    assert {flag for option in options(app.COMMANDS[name]) for flag in option.flags} == parsed - {"-h", "--help"}


@pytest.mark.parametrize("name", sorted(LONG))
def test_a_long_command_shows_about_five_options_first_and_all_others_below(call_command, name):
    _, out, _ = call_command(name, "--help")
    first, _, rest = out.partition("Options [default]:\n")[2].partition("\nAdvanced:\n")
    rows = {part: len(re.findall(r"^  -", text, re.M)) for part, text in (("first", first), ("rest", rest))}
    flagged = [option for option in options(app.COMMANDS[name]) if option.flags]
    assert 3 <= rows["first"] <= 7 and rows["rest"] > 4 and sum(rows.values()) == len(flagged)


def test_only_long_commands_part_their_options(call_command):
    parted = {name for name in app.COMMANDS if "Advanced:" in call_command(name, "--help")[1]}
    assert parted == LONG


@pytest.mark.parametrize("name", app.COMMANDS)
def test_examples_stand_on_both_pages_are_those_of_the_docstring_and_are_understood(call_command, name):
    written = [line.strip()[2:] for line in (app.COMMANDS[name].__doc__ or "").splitlines() if line.startswith("    $")]
    for asked in ("--help", "--help-all"):
        assert examples(call_command(name, asked)[1]) == written
    assert written
    for line in written:
        words = shlex.split(re.sub(r"^.*-m (?=attnprobe)| > .*$", "", line))
        assert words[0] == "attnprobe" and callable(app._parsed(words[1], words[2:]))


def test_help_all_tells_what_help_leaves_out(call_command):
    brief, full = (" ".join(call_command("capture", asked)[1].split()) for asked in ("--help", "--help-all"))
    assert "--queries all|cls|A:B rows to keep [all]" in brief and "cls is the class token's row" not in brief
    assert "rows to keep. cls is the class token's row; a slice such as 0:5 counts queries from 0. [all]" in full
    assert "capture --help-all says more" in brief and "--help-all" not in full
    assert "--help-all" not in call_command("demo", "--help")[1], "it leaves nothing out"


def test_help_is_given_wherever_it_is_asked_for(call_command):
    page = call_command("capture", "--help")[1]
    assert call_command("capture", "runs/vit", "--data", "digits", "-h")[1] == page
    assert call_command("--help-all")[1] == call_command()[1]


@pytest.mark.parametrize("spec", [CaptureSpec, EvaluateSpec, ReportSpec, ImportOptions])
def test_every_option_says_what_it_is(spec):
    for option in options(spec):
        assert len(option.text) > 10 and option.text.endswith("."), option.call
