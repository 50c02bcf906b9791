from typing import get_args, get_type_hints

from attnprobe.cli.report import plot
from attnprobe.plots import PLOTS


def test_the_command_offers_every_figure_that_can_be_drawn():
    assert get_args(get_type_hints(plot)["figure"]) == tuple(PLOTS)
