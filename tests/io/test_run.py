"""Which checkpoints of a run can be trusted."""

import json
import random
import shutil
from pathlib import Path

import pytest

from attnprobe.core.errors import CheckpointError
from attnprobe.io.run import MANIFEST, Run, damaged_files, manifest_of


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


def test_a_damaged_newest_is_refused_unless_an_older_one_is_asked_for(run):
    assert run.choose_checkpoint() == run.checkpoint(2) and run.choose_checkpoint(1) == run.checkpoint(1)
    (run.checkpoint(2) / "a.bin").write_bytes(b"weighty")
    with pytest.raises(CheckpointError) as caught:
        run.choose_checkpoint()
    for told in ("epoch-0002 is damaged (a.bin", str(run.checkpoint(1)), "that folder, in place of the run"):
        assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=r"epoch-0002 is damaged \(a\.bin .*; epoch-0001 is used"):
        assert run.choose_checkpoint(allow_older=True) == run.checkpoint(1)
    assert run.choose_checkpoint(1) == run.checkpoint(1)
    with pytest.raises(CheckpointError, match=r"epoch-0002 is damaged \(a\.bin"):
        run.choose_checkpoint(2, allow_older=True)
    with pytest.raises(CheckpointError, match="no checkpoint of epoch 7; it has those of 1, 2"):
        run.choose_checkpoint(7)


def test_a_checkpoint_without_its_manifest_is_damaged_and_not_absent(run):
    (run.checkpoint(2) / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=rf"epoch-0002 is damaged \({MANIFEST}"):
        run.choose_checkpoint()
    shutil.copytree(run.checkpoint(1), run.checkpoints / "epoch-0009-mine")
    assert run.epochs() == [1, 2], "a copy is the user's"


def test_epochs_are_counted_beyond_four_digits(run):
    for epoch in (9999, 10000):
        shutil.copytree(run.checkpoint(1), run.checkpoint(epoch))
    assert run.epochs() == [1, 2, 9999, 10000] and run.choose_checkpoint() == run.checkpoint(10000)
    (run.checkpoint(10000) / "a.bin").unlink()
    with pytest.raises(CheckpointError, match="that folder, in place of the run"):
        run.choose_checkpoint()


def test_where_all_are_damaged_or_none_is_there_yet_that_is_said(run, tmp_path):
    for epoch in (1, 2):
        (run.checkpoint(epoch) / "a.bin").unlink()
    for allow in (False, True):
        with pytest.raises(CheckpointError, match="no intact checkpoint: epoch-0002 .* and epoch-0001 is damaged"):
            run.choose_checkpoint(allow_older=allow)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        Run(tmp_path / "nothing").choose_checkpoint()


def test_a_checkpoint_knows_its_run(run, tmp_path):
    alone = Run(run.checkpoint(1))
    assert Run.of(run.checkpoint(1)) == alone, "a folder without config.yaml is no run"
    run.config.write_text("{}")
    assert Run.of(run.checkpoint(1)) == Run.of(str(run.path)) == run
    assert Run.of("vit_16") == Run(Path("vit_16"))


@pytest.mark.parametrize("content", ["", "{", "secret", '["a"]', '[{"time": 1}]', "3"])
def test_warnings_that_are_none_are_told_and_not_shown(run, tmp_path, content):
    assert run.warnings() == ()
    run.notes.write_text(json.dumps([{"time": "2026-01-01", "text": "epoch-0001\x1b[2J"}]))
    assert run.warnings() == ("2026-01-01 epoch-0001‹U+001B›[2J",)
    run.notes.write_text(content)
    (told,) = run.warnings()
    assert "warnings.json is damaged" in told and "secret" not in told
    run.notes.unlink()
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text('[{"time": "", "text": "secret"}]')
    run.notes.symlink_to(elsewhere)
    assert "secret" not in run.warnings()[0]


@pytest.mark.promise("checkpoint-changed")
def test_every_changed_byte_and_every_length_of_a_checkpoint_is_found(tmp_path, record_property):
    folder = tmp_path / "epoch-0001"
    folder.mkdir()
    chance = random.Random(0)
    files = {"model.safetensors": chance.randbytes(5000), "state.json": json.dumps([*range(200)]).encode()}
    files[MANIFEST] = manifest_of(files)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert not damaged_files(folder)
    tried = 0
    for name, data in files.items():
        damaged = [data[:at] + bytes([data[at] ^ chance.randrange(1, 256)]) + data[at + 1 :]
                   for at in chance.choices(range(len(data)), k=3000)]  # fmt: skip
        damaged += [data[:at] for at in chance.choices(range(len(data)), k=200)] + [data + b"\0"]
        for changed in damaged:
            (folder / name).write_bytes(changed)
            tried += 1
            assert damaged_files(folder) or same_manifest(changed, data), (name, changed)
        (folder / name).write_bytes(data)
    record_property("tried", tried)


def same_manifest(changed, data):
    """True if a manifest says the same in other bytes, as with a space for a line break."""
    try:
        return json.loads(changed) == json.loads(data)
    except ValueError:
        return False


def test_a_manifest_that_names_no_file_proves_none(tmp_path):
    (tmp_path / MANIFEST).write_text("{}")
    assert damaged_files(tmp_path) == [MANIFEST]
