"""Files of a report, each written whole or not at all."""

from collections.abc import Callable, Sequence
from pathlib import Path

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.examined import Examined
from attnprobe.io import fs
from attnprobe.io.remote import place
from attnprobe.reports.html import to_html
from attnprobe.reports.json_report import to_json
from attnprobe.reports.markup import to_markdown
from attnprobe.reports.tables import long_table, to_csv

FORMATS: dict[str, tuple[str, Callable[[Sequence[Examined]], str]]] = {
    "html": ("report.html", to_html),
    "json": ("measurements.json", to_json),
    "csv": ("measurements.csv", lambda runs: to_csv(long_table(runs))),
    "md": ("report.md", to_markdown),
}


def write_report(
    runs: Sequence[Examined], out: Path, formats: Sequence[str] = ("html", "json", "csv", "md")
) -> list[Path]:
    """Write the report of one or several models side by side into the folder `out`.

    Files of an earlier report are replaced, each in one step.

    Args:
        runs: examined models; their names must differ.
        out: created if it is not there.
        formats: of html, json, csv, md.

    Returns:
        The files, in the order of `formats`.

    Raises:
        InputError: nothing to report, two runs of one name, or an unknown format.
        WorkError: the disk is full or fails; files already written stay.
    """
    if not runs:
        raise InputError("nothing to report: give at least one examined model.")
    if not all(isinstance(e, Examined) for e in runs):
        raise InputError("a report is of examined models: write_report([ap.examine(MAPS_FILE)], FOLDER).")
    names = [e.name for e in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two runs are named {min(twice)!r}; names must differ, rename one of them.")
    for name in formats:
        check_choice("format", name, tuple(FORMATS))
    out, written = place(out, output=True), []
    for name in formats:
        file, make = FORMATS[name]
        text = make(runs)
        with fs.as_work_error(f"writing {file} into {out}"):
            fs.make_folder(out)
            fs.write_file(out / file, text.encode("utf-8", "backslashreplace"), overwrite=True)
        written.append(out / file)
    return written
