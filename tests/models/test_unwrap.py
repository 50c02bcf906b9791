"""Tensors of nested dictionaries are found in bounded time, and wrappers' prefixes are no part of their names."""

import pytest
import torch

from attnprobe.core.errors import CheckpointError
from attnprobe.models.unwrap import flatten, without_wrappers

ONE = torch.ones(1)


@pytest.mark.parametrize("leaf", [ONE, 1, "text", {"w": ONE}])
def test_dictionaries_that_hold_one_another_many_times_are_refused(leaf):
    for _ in range(4):
        leaf = {str(i): leaf for i in range(300)}
    with pytest.raises(CheckpointError, match=r"x\.pth: its nested dictionaries have more than 200000 entries"):
        flatten(leaf, "x.pth")


def test_a_name_that_no_parameter_has_is_refused():
    with pytest.raises(CheckpointError, match="names of more than 1000 characters"):
        flatten({"a" * 1001: {"b": ONE}}, "x.pth")


def test_a_dictionary_that_two_names_share_is_read_by_both():
    shared = {"w": ONE, 3: ONE, "optimizer": {"x": ONE}, "": ONE}
    assert list(flatten({"a": shared, "b": shared}, "x.pth")) == ["a.w", "a.", "b.w", "b."]


WORDS = ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", ["{}.blocks.0.norm1.weight", "module.{}.blocks.0.{}.{}.norm1.weight", "blocks.{}.0.a"])
def test_words_of_pytorchs_wrappers_are_removed_wherever_they_are(word, name):
    plain = name.replace("{}.", "")
    assert list(without_wrappers({name.format(word, word, word): ONE, "head.weight": ONE})) == [plain, "head.weight"]


def test_names_that_would_become_one_are_kept():
    state = {"a.weight": ONE, "_orig_mod.a.weight": ONE}
    assert without_wrappers(state) == state
