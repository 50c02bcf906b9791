"""Several runs of one recipe: ordinary ones that differ in their seed, by a name that a pattern finds."""

import pytest
import torch

from attnprobe import cli
from attnprobe.core.config import read_yaml
from attnprobe.core.errors import InputError
from attnprobe.core.run import Run
from attnprobe.experiment import run_of_seed, seeds_of, train, train_seeds
from attnprobe.models import load_model

TINY = {"epochs": 1, "warmup_epochs": 0, "model_kwargs": {"depth": 2, "embed_dim": 16, "num_heads": 2}}
SET = ["--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "model_kwargs={depth: 2, embed_dim: 16, num_heads: 2}"]


def test_seeds_are_numbers_and_ranges():
    assert seeds_of("0-2,7") == (0, 1, 2, 7) and seeds_of("3") == (3,) and seeds_of("0, 4") == (0, 4)
    for text in ("", "a", "-1", "3-1", "1-", "1:3"):
        with pytest.raises(InputError, match="--seeds"):
            seeds_of(text)


def test_each_is_an_ordinary_run_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    command = ["train", "digits_vit_16", "--seeds", "0-1", "-o", str(tmp_path / "vit"), *SET]
    train("digits_vit_16", tmp_path / "vit_s0", settings={**TINY, "seed": 0})  # as if it was stopped after the first
    before = (tmp_path / "vit_s0" / "summary.csv").read_bytes()
    cli.main(command)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(tmp_path / "vit_s0"), str(tmp_path / "vit_s1"),
    ]  # fmt: skip
    assert (tmp_path / "vit_s0" / "summary.csv").read_bytes() == before
    assert run_of_seed(tmp_path / "vit", 1) == tmp_path / "vit_s1"
    recipes = [read_yaml(Run(tmp_path / f"vit_s{seed}").config) for seed in (0, 1)]
    assert [recipe.pop("seed") for recipe in recipes] == [0, 1] and recipes[0] == recipes[1]
    alone = train("digits_vit_16", tmp_path / "alone", settings={**TINY, "seed": 1})
    one, two = (load_model(path).state_dict() for path in (alone.run.path, tmp_path / "vit_s1"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_seeds_twice_or_in_two_places_are_refused(tmp_path):
    with pytest.raises(InputError, match="must be different numbers"):
        next(train_seeds("digits_vit_16", tmp_path / "vit", (1, 1)))
    with pytest.raises(InputError, match="beside --seeds"):
        next(train_seeds("digits_vit_16", tmp_path / "vit", (1,), settings={"seed": 3}))
