"""Suggestions in messages: near names, names that contain what was typed, and no list longer than a message."""

from attnprobe.core.errors import LISTED, did_you_mean, nearest


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
