from typing import get_args, get_type_hints

from attnprobe.cli.report import plot
from attnprobe.workflows.figure import KINDS


def test_the_command_offers_every_figure():
    assert get_args(get_type_hints(plot)["figure"]) == tuple(KINDS)
