"""Do our variants reproduce the numbers recorded from the authors' own code?

    python -m tests.parity FOLDER

Checks every file of FOLDER somebody here understands: NAME.json / NAME.safetensors pairs of whole models (float32 with
the file's own tolerances, float64 to 1e-10), single parts (units), initialisers, and model sizes (params.json). Exits
1 if anything exceeds its tolerance or cannot be compared (an option that no model here has); lists what is not covered.
"""

import argparse
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

from tests.parity import initialisers, sizes, units, variants
from tests.parity.difference import Difference

CHECKERS = (variants, units, initialisers, sizes)
"""Modules with `covers(path)` and `check(path)`, asked in this order."""

NOTHING_TO_CHECK = {"verification.json"}
"""Records of how the golden files were made, with no number of a model in them."""


def comparisons_of(checker: Any, path: Path, quick: bool) -> Iterator[tuple[str, list[Difference]]]:
    """What a checker compares of a file; what stops it is one more comparison, which failed."""
    try:
        yield from checker.check(path, quick=quick)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        yield path.stem, [Difference(f"not compared: {type(error).__name__} {reason}", inf, inf)]


def covers(checker: Any, path: Path) -> bool:
    """Whether a checker understands a file; one that cannot be read is left to the first checker, to fail there."""
    try:
        return checker.covers(path)
    except (ValueError, AttributeError):
        return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of golden files")
    parser.add_argument("--quick", action="store_true", help="leave out what takes 10,000 steps of Adam")
    options = parser.parse_args(arguments)
    folder = options.folder
    checked, comparisons, failed, uncovered = 0, 0, 0, []
    for path in sorted(folder.glob("*.json")):
        checker = next((c for c in CHECKERS if covers(c, path)), None)
        if checker is None:
            uncovered += [path.stem] if path.name not in NOTHING_TO_CHECK else []
            continue
        checked += 1
        for name, differences in comparisons_of(checker, path, options.quick):
            bad = [d for d in differences if not d.excess <= 1]
            comparisons += 1
            failed += bool(bad)
            told = "  ".join(d.quantity if d.largest == inf else f"{d.quantity} {d.largest:.1e}" for d in differences)
            print(f"{'FAIL' if bad else 'ok  '} {name:40} {told}", flush=True)
            for d in (d for d in bad if d.largest != inf):
                print(f"     {d.quantity}: {d.largest:.3e} is {d.excess:.1f} times what is allowed")
    if uncovered:
        print(f"not covered: {', '.join(uncovered)}")
    print(f"{checked} files, {failed} of {comparisons} comparisons out of tolerance")
    return 1 if failed or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
