"""Which checkpoints of a run can be trusted."""

import pytest

from attnprobe.core.run import MANIFEST, Run, damaged_files, manifest_of


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    for epoch in (1, 2):
        folder = run.checkpoint(epoch)
        folder.mkdir(parents=True)
        files = {"a.bin": b"weights", "b.json": b"{}"}
        for name, data in {**files, MANIFEST: manifest_of(files)}.items():
            (folder / name).write_bytes(data)
    return run


def test_the_newest_intact_checkpoint_is_taken(run):
    assert run.epochs() == [1, 2]
    assert run.latest_checkpoint() == run.checkpoint(2)
    (run.checkpoint(2) / "a.bin").write_bytes(b"weighty")
    assert damaged_files(run.checkpoint(2)) == ["a.bin"]
    assert run.latest_checkpoint() == run.checkpoint(1)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a.bin": 3}', '{"a.bin": {"bytes": 7}}'])
def test_a_manifest_that_is_none_is_damage(run, text):
    (run.checkpoint(1) / MANIFEST).write_text(text)
    assert damaged_files(run.checkpoint(1))


def test_a_missing_file_and_an_empty_run_are_seen(run, tmp_path):
    (run.checkpoint(1) / "b.json").unlink()
    assert damaged_files(run.checkpoint(1)) == ["b.json"]
    assert Run(tmp_path / "nothing").latest_checkpoint() is None
