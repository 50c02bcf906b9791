"""Mutations of the commit protocol and of the readers, each of which the suite must notice.

    python -m tests.sabotage

Every mutation is made in a copy of the project; the tests named beside it must then fail.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """What goes wrong, the text that is replaced in a file of the package, and the tests that must notice."""

    words: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation("the bytes of a file are not synced before it gets its name", "io/fs.py",
             "            write(descriptor, data, temporary)\n            fsync(descriptor, temporary)\n",
             "            write(descriptor, data, temporary)\n", ("tests/io/test_fs.py",)),
    Mutation("the folder is not synced after a file got its name", "io/fs.py",
             "        unlink(temporary)\n    fsync_folder(final.parent)\n", "        unlink(temporary)\n",
             ("tests/io/test_fs.py",)),
    Mutation("a file gets its name before its bytes", "io/fs.py",
             "    temporary = temporary_in(path.parent)\n    try:\n        descriptor = create(temporary)\n",
             "    temporary = path\n    try:\n        descriptor = create(temporary)\n",
             ("tests/io/test_fs.py", "tests/store/test_crash.py")),
    Mutation("a merged file is not synced before it gets its name", "store/merge.py",
             "            fs.write(descriptor, seal.block(), temporary)\n            fs.fsync(descriptor, temporary)\n",
             "            fs.write(descriptor, seal.block(), temporary)\n",
             ("tests/store/test_crash.py", "tests/store/test_merge.py", "tests/io/test_fs.py")),
    Mutation("damaged shards are taken for good when a capture is resumed", "store/parts.py",
             "                _quarantine(folder, path)\n", "                good.append(number)\n",
             ("tests/store/test_crash.py", "tests/store/test_merge.py")),
    Mutation("the seal does not hash what is outside the chunks", "store/seal.py",
             "    if outside != seal.outside or (whole", "    if (whole", ("tests/store/test_seal.py",)),
    Mutation("a checkpoint's hash is not compared", "io/run.py",
             'return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]', "return True",
             ("tests/io/test_run.py",)),
    Mutation("pipes and devices are opened like files", "io/fs.py",
             "        if not stat.S_ISREG(status.st_mode):\n", "        if False:\n",
             ("tests/io", "tests/hostile/test_hostile_files.py")),
    Mutation("external and virtual data sets are followed", "store/opening.py",
             "    if dataset.external is not None or dataset.is_virtual:\n", "    if False:\n",
             ("tests/store/test_opening.py", "tests/store/test_structure.py")),
)  # fmt: skip


def noticed(mutation: Mutation) -> str:
    """The first test that fails with the mutation; "" if none does.

    Raises:
        ValueError: the text to replace is not there once, so the mutation is out of date.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "runs", "*.egg-info"))
        path = copy / "attnprobe" / mutation.file
        text = path.read_text()
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.file} has {mutation.old!r} {text.count(mutation.old)} times, not once")
        path.write_text(text.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests]
        done = subprocess.run(
            command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
        )
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].partition(" - ")[0] if done.returncode == 1 and failed else ""


def main() -> int:
    """Print a line for each mutation; returns 0 if all were noticed."""
    missed = 0
    for mutation in MUTATIONS:
        test = noticed(mutation)
        missed += not test
        print(f"{mutation.words} ({mutation.file}): {test or 'NOT NOTICED'}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
