"""Messages: near names, no list longer than a message, and options in the words of their reader."""

import ast
import re
from pathlib import Path

import pytest

import attnprobe
from attnprobe.core.errors import LISTED, command_line, did_you_mean, nearest, option

STAGES = ("core", "data", "models", "training", "capturing", "store", "metrics", "plots")
BOTH_WAYS = re.compile(
    r"nproc-per-node|\(allow_missing=|--what values\)|or --what tokens|--set|per_class of|-o maps\.h5`"
)
"""Of torchrun, of a whole command, or beside the argument in Python."""


def test_what_is_nearly_the_name_or_part_of_it_is_suggested_and_nothing_far_away():
    known = ["near_uniform", "repetition", "vit_small_patch16_224", "deit_small_patch16_224"]
    assert nearest("near_unform", known) == " Did you mean 'near_uniform'?"
    assert nearest("uniform", known) == " Did you mean 'near_uniform'?"
    both = " Did you mean 'vit_small_patch16_224' or 'deit_small_patch16_224'?"
    assert nearest("vit_small_path16_224", known) == both
    assert nearest("zzz", known) == ""


def test_few_names_are_listed_and_of_many_the_command_that_lists_them():
    few, many = [f"name{i}" for i in range(LISTED)], [f"name{i}" for i in range(LISTED + 1)]
    assert did_you_mean("qqq", few) == f" Known: {', '.join(sorted(few))}."
    assert did_you_mean("qqq", many, "attnprobe list names") == f" {LISTED + 1} names are known: attnprobe list names."


def test_an_option_is_an_argument_in_python_and_has_dashes_while_a_command_runs():
    assert option("data-dir") == "data_dir" and option("model", "vit") == "model='vit'"
    with pytest.raises(ZeroDivisionError), command_line():
        assert option("data-dir", "x") == "--data-dir x"
        assert option("knn", python="knn=True") == "--knn"
        raise ZeroDivisionError
    assert option("knn", python="knn=True") == "knn=True"


@pytest.mark.parametrize("stage", STAGES)
def test_no_message_of_a_stage_which_python_calls_too_spells_an_option_of_the_command_line(stage):
    for path in sorted((Path(attnprobe.__file__).parent / stage).rglob("*.py")):
        tree = ast.parse(path.read_text())
        statements = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
                found = re.search(r"(?<![\w-])--[a-z]", node.value)
                assert not found or BOTH_WAYS.search(node.value), f"{path}:{node.lineno} {node.value}"
