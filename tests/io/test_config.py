"""YAML and NAME=VALUE -> a checked configuration, and back."""

import os
import re

import pytest

from attnprobe.core.errors import InputError
from attnprobe.io.config import from_mapping, parse_settings, read_yaml, to_yaml
from attnprobe.training import TrainConfig


def test_a_configuration_survives_yaml(tmp_path):
    config = TrainConfig(model="x", dataset="y", scale=(0.3, 1.0), model_kwargs={"depth": 2}, clip_grad=None)
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert from_mapping(TrainConfig, read_yaml(tmp_path / "c.yaml")) == config


def test_settings_are_read_as_yaml_values():
    parsed = parse_settings(["epochs=2", "lr=1e-3", "clip-grad=null", "scale=[0.5, 1]", "model_ema=false"])
    config = from_mapping(TrainConfig, {"model": "x", "dataset": "y", "warmup_epochs": 0, **parsed})
    assert (config.epochs, config.lr, config.clip_grad, config.scale, config.model_ema) == (
        2,
        1e-3,
        None,
        (0.5, 1),
        False,
    )


@pytest.mark.parametrize("setting", ["epochs", "=3", "a=[1"])
def test_settings_that_are_none_are_refused(setting):
    with pytest.raises(InputError, match=f"^{re.escape(repr(setting))}: (expected NAME=VALUE|the value is not YAML)"):
        parse_settings([setting])


@pytest.mark.parametrize("text", ["a: " + "9" * 5000, "[" * 5000])
def test_digits_and_nesting_without_end_are_no_yaml(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "3"])
def test_files_that_hold_no_options_are_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        read_yaml(tmp_path / "c.yaml")


def test_a_file_that_is_no_plain_small_file_is_one_line(tmp_path):
    pairs = zip("abcdefg", "bcdefgh", strict=True)
    (tmp_path / "bomb.yaml").write_text("a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairs))
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("a: " + "x" * (1 << 20))
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name, says in (("bomb", "aliases"), ("pipe", "regular file"), ("large", "at most"), ("zero", "regular file")):
        with pytest.raises(InputError, match=says) as caught:
            read_yaml(tmp_path / f"{name}.yaml")
        assert "\n" not in str(caught.value)
    (tmp_path / "secret.yaml").write_text("a: 1")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    assert read_yaml(tmp_path / "link.yaml") == {"a": 1}
    with pytest.raises(InputError):
        read_yaml(tmp_path / "link.yaml", follow=False)
