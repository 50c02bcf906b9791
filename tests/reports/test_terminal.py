import io

import pytest
from rich.console import Console

from attnprobe.reports import print_report
from tests.reports.formulas import examined


def printed(runs, **options):
    file = io.StringIO()
    print_report(runs, Console(file=file, **options))
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
    assert max(len(line.rstrip()) for line in lines) <= 80
    for e in runs:
        assert any(e.name[:8] in line for line in lines)


def test_every_row_of_every_run_is_there():
    text = printed(RUNS[:2], width=80)
    for words in ("similar blocks", "8 of 16 (8–8)", "0 of 16 (0–0)", "2 of 16 (2–2)", "row entropy [nats]", "95.0%"):
        assert words in text


def test_the_verdict_its_settings_and_its_warnings_follow_the_table():
    text = " ".join(printed(RUNS[:2], width=80).split())
    assert "vit_16: repetition from block 9: blocks 9–16 copying content" in text
    assert "! a note" in text and "- sink collapse: no, 0 (0–0) of 16 blocks; attention on one token" in text
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
