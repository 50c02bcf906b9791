"""A tree of slices has one content, whoever merges what and when, and a few files."""

import itertools
import random

import pytest

from attnprobe.io import fs
from attnprobe.metrics.engine.tree import FAN, Tree


def tree(folder, n):
    return Tree(folder, n, lambda parts: b"(" + b"".join(parts) + b")")


def fill(folder, n, order):
    made = tree(folder, n)
    for k in order:
        fs.write_file(made.path((0, k)), b"%d," % k)
        made.fold(k)
    return made


def contents(made):
    return [path.read_bytes() for path in made.complete()]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 150])
def test_the_result_depends_neither_on_the_order_nor_on_stops(tmp_path, n):
    found = []
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        order = random.Random(seed).sample(range(n), n) if seed else range(n)
        made = fill(folder, n, order)
        assert all(map(made.has, range(n))) and not made.has(n)
        found.append(contents(made))
        assert sorted(p.name for p in folder.iterdir()) == sorted(made.path(root).name for root in made.roots())
    assert found == [found[0]] * 4
    leaves = b"".join(found[0]).translate(None, b"()").split(b",")[:-1]
    assert [int(leaf) for leaf in leaves] == list(range(n))


def test_files_stay_few_while_slices_come(tmp_path):
    made, most = tree(tmp_path, 600), 0
    for k in range(600):
        fs.write_file(made.path((0, k)), b"%d," % k)
        made.fold(k)
        most = max(most, len(list(tmp_path.iterdir())))
    assert most <= 7 * 4 and len(made.roots()) == sum(int(digit) for digit in f"{600:o}")


@pytest.mark.promise("capture-killed")
@pytest.mark.parametrize("operation", ["link", "unlink", "write"])
def test_a_merge_that_was_stopped_anywhere_is_taken_up(tmp_path, operation, monkeypatch):
    n = FAN * FAN
    (tmp_path / "whole").mkdir()
    expected = contents(fill(tmp_path / "whole", n, range(n)))
    for strike in itertools.count(1, 7):
        folder = tmp_path / f"{strike}"
        folder.mkdir()
        monkeypatch.setattr(fs, "matched", 0)
        monkeypatch.setenv("ATTNPROBE_FAULT", f"{operation}:{strike}:EIO")
        try:
            fill(folder, n, range(n))
            break
        except OSError:
            pass
        finally:
            monkeypatch.delenv("ATTNPROBE_FAULT")
        made = tree(folder, n)
        missing = [k for k in range(n) if not made.has(k)]
        assert contents(fill(folder, n, missing)) == expected
    assert strike > 50
