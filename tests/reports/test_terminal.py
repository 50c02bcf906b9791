import io

import pytest
from rich.console import Console

from attnprobe.reports import print_report, verdict
from attnprobe.reports.kinds import NAMES
from tests.reports.formulas import examined


def printed(runs, *, details=False, **options):
    file = io.StringIO()
    print_report(runs, Console(file=file, **options), details=details)
    return file.getvalue()


RUNS = [
    examined("vit_16", similar=range(9, 17)),
    examined("deepvit_16", similar=(3, 7), effective_similar=(), untrained=range(2, 17), notes=("a note",)),
    examined("a run whose name is longer than any column can be wide", layers=4, certificate={}, images=4),
    examined("数字のモデル", layers=4),
]


@pytest.mark.parametrize("runs", [RUNS[:1], RUNS[:2], RUNS[:3], RUNS], ids=len)
def test_it_fits_eighty_columns(runs):
    lines = printed(runs, width=80).splitlines()
    commands = [line for line in lines if line.startswith("    attnprobe ")]  # not wrapped, so that they can be copied
    assert max(len(line.rstrip()) for line in lines if line not in commands) <= 80
    for e in runs:
        assert any(e.name[:8] in line for line in lines)


def test_one_run_is_the_number_that_decides_each_kind_in_lines_that_do_not_wrap():
    lines = printed(RUNS[:1], width=80).splitlines()
    table, told = lines[:12], lines[12:]
    assert [line.split()[0] for line in table[1:]] == list(NAMES)
    repetition = next(f for f in verdict(RUNS[0]).findings if f.kind == "repetition")
    (line,) = (line for line in table if line.startswith("repetition"))
    assert f"{len(repetition.blocks)} of {repetition.of}" in line and f"> {repetition.bar:.3f}" in line
    assert f"{repetition.number:.3f} ({repetition.low:.3f}" in line
    assert told[0].startswith("vit_16: repetition from block 9: ") and len(lines) <= 25


def test_several_runs_are_a_column_each_with_accuracy_and_one_verdict_each():
    text = printed(RUNS[:2], width=80)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:13]] == ["accuracy", *NAMES] and lines[1].count("95.0%") == 2
    assert text.index("massive_activations") < text.index("One run each") < text.index("vit_16: repetition")
    assert "! a note" in text and len(lines) <= 35


def test_details_are_the_table_of_measurements_and_each_kind_with_its_definition():
    text = printed(RUNS[:2], details=True, width=80)
    for words in ("similar blocks", "8 of 16 (8–8)", "0 of 16 (0–0)", "2 of 16 (2–2)", "row entropy [nats]", "95.0%"):
        assert words in text
    text = " ".join(text.split())
    assert "- sink collapse: no, 0 (0–0) of 16 blocks; attention on one token" in text
    assert text.index("row entropy") < text.index("vit_16: repetition") < text.index("tau=0.9")


def test_a_pipe_gets_whole_sentences_and_no_colour():
    text = printed(RUNS[:2], soft_wrap=True)
    assert any(line.startswith("deepvit_16: none of 11 kinds") for line in text.splitlines())
    assert "\x1b" not in text


def test_names_cannot_move_the_cursor_or_set_colours():
    hostile = examined("\x1b[2J[bold red]x[/] \u202e:boom:", layers=4)
    text = printed([hostile], width=80, force_terminal=True)
    assert "\x1b[2J" not in text and "\u202e" not in text
    assert "[bold" in text and ":boom:" in text
