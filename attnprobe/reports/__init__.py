"""Examined models -> a verdict in words, tables, and pages that can be sent to others.

Question: what comes first? Choice: the answer in one sentence, then its settings and every reason to doubt it, then
numbers, then figures: most readers stop after the first line, so it must not be surer than the rest. It names kinds of
collapse, each by a number of its own; without any it says that none was found, never that a model is healthy.
Question: a live page or a dead one? Choice: one file without network, which opens in ten years and in a mail, and shows
all but the attention explorer (see `attnprobe.view`) without a script. Text from outside is escaped, hidden characters
are spelt out, and a Content-Security-Policy forbids every script but that one, by its hash.
Question: compare with the untrained network, or with a threshold? Choice: a bar decides (`reports.kinds`) and the
untrained network is shown as a reference, for it is near uniform itself, and a model that stayed so has collapsed none
the less.
Question: when may something be removed? Choice: where a loss beyond a tolerance (2 %) can be excluded on labelled
images (`core.evidence`); similarity alone advises nothing but to try. One half of the images chooses and numbers are of
the other: on the images that chose, what was chosen gained up to 2.5 points that it lost elsewhere.
"""

from attnprobe.reports.report import write_report
from attnprobe.reports.tables import long_table, summary_table
from attnprobe.reports.terminal import print_report
from attnprobe.reports.verdict import Verdict, verdict

__all__ = ["Verdict", "long_table", "print_report", "summary_table", "verdict", "write_report"]
