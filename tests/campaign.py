"""The reliability campaign: each promise, how often it was tried, and how often it held.

    python -m tests.campaign [--quick] [PROMISE ...]

A promise is tried by the tests that carry its mark, `@pytest.mark.promise("capture-killed")`. A test counts as one try
unless it says how many it made, `record_property("tried", 500)`. `--quick` leaves out those that are marked slow.
"""

import argparse
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

PROMISES = {
    "capture-killed": "kill -9 in a capture, at every operation and at random: no committed image lost or doubled",
    "capture-stopped": "a stopped and resumed capture, by 1 to 4 processes, gives the bits of an unbroken one",
    "train-killed": "kill -9 in training: the next start ends with the bits of an unbroken run",
    "commands-killed": "kill -9 at every file operation of a command: run again, it gives the undisturbed files",
    "killed-at-random": "kill -9 of a command at a random moment: run again, it gives the undisturbed files",
    "stop-requested": "SIGTERM or Ctrl-C at a random moment: exit 75 or 130, right numbers or none, and it goes on",
    "disk-full": "a disk of any size that fills up: exit 1, one line, complete after the next run",
    "io-faults": "any file operation that fails, is cut short or is interrupted: one line, no torn file",
    "power-lost": "a file has its name only after its bytes, and is acknowledged only after its name, on the disk",
    "maps-changed": "a changed byte or length of a maps file is found before HDF5 reads it",
    "checkpoint-changed": "a changed byte of a checkpoint is found before it is used",
    "files-hostile": "a hostile file given to any command: one line, bounded time and memory, nothing run or fetched",
    "names-hostile": "hostile text in every field of page, explorer, notebook, table and terminal stays text",
    "images-bad": "damaged images are named and skipped, and no image gets another's label",
    "command-lines": "any command line: a documented exit code, one line, never a traceback",
    "two-starts": "of two starts in one folder one works and the other says so, exit 75",
    "reading-meanwhile": "a folder that is being written gives right values to whoever reads it",
    "processes-killed": "a killed process of several ends the others in time, and the next start completes",
    "viewer": "the viewer answers its own page alone, and ends in two seconds by signal, whatever it is doing",
    "memory-short": "a batch that does not fit is halved; numbers stay the same",
    "not-finite": "maps with NaN or infinities are counted, named and left out of every mean",
    "resources-end": "open files, threads, shared memory or a loader process that run out: one line, nothing lost",
    "older-versions": "what 0.1.0 wrote opens, and what it began is begun anew with one line that says so",
}


@dataclass
class Tally:
    """Tries of one promise."""

    tried: int = 0
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Campaign:
    """pytest's plugin that counts tries by promise."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self.wanted = set(wanted)
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.promise_of: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests that carry the mark of a wanted promise."""
        marks = {item: item.get_closest_marker("promise") for item in items}
        kept = [item for item, mark in marks.items() if mark is not None and mark.args[0] in self.wanted]
        self.promise_of = {item.nodeid: marks[item].args[0] for item in kept}
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once, when it was called, or when it failed before or after."""
        tally = self.tallies[self.promise_of[report.nodeid]]
        tally.seconds += report.duration
        if report.when == "call" and not report.skipped:
            tally.tried += int(dict(report.user_properties).get("tried", 1))
        if report.failed:
            tally.broken.append(report.nodeid)


def table(tallies: dict[str, Tally]) -> str:
    """Markdown: promise, tries, tests in which it did not hold, minutes."""
    rows = [("promise", "tried", "did not hold", "minutes"), ("---", "---", "---", "---")]
    for name, tally in sorted(tallies.items(), key=lambda item: list(PROMISES).index(item[0])):
        broken = "; ".join(tally.broken) or "0"
        rows.append((f"**{name}**: {PROMISES[name]}", f"{tally.tried:,}", broken, f"{tally.seconds / 60:.1f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; returns 0 if every promise held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("promises", nargs="*", metavar="PROMISE", help=f"of {', '.join(PROMISES)}; all if none")
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes")
    options = parser.parse_args(arguments)
    if unknown := set(options.promises) - set(PROMISES):
        parser.error(f"no promise {min(unknown)!r}; there are {', '.join(PROMISES)}")
    campaign = Campaign(options.promises or PROMISES)
    begun = time.monotonic()
    plugins: list[Any] = [campaign]
    code = pytest.main(["-q", "-m", "not gpu and not slow" if options.quick else "not gpu"], plugins)
    print(table(campaign.tallies))
    print(f"\n{(time.monotonic() - begun) / 60:.0f} minutes, {os.cpu_count()} cores, {platform.machine()}, "
          f"Python {platform.python_version()}, {platform.system()}")  # fmt: skip
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
