"""Commands of a report that try what it calls similar or redundant."""

from dataclasses import replace

from attnprobe.reports.removal import MOST_NAMED, redundant_heads, verify_parts_command
from tests.reports.formulas import head_distance, measurement, similar_blocks


def test_redundant_heads_are_all_but_one_of_each_group():
    m = measurement("head_divergence", head_distance(4, 5, twins=3))
    assert list(redundant_heads(m)) == [(3, 2), (3, 3), (4, 2), (4, 3)]
    some = replace(m, coords={"layer": [2, 5, 8, 11]})
    assert list(redundant_heads(some)) == [(8, 2), (8, 3), (11, 2), (11, 3)]


def test_without_a_maps_file_the_command_names_blocks_and_heads_and_all_of_many():
    few = measurement("head_divergence", head_distance(4, 5, twins=3))
    words = "attnprobe verify-drops MODEL --data DATA --blocks 4,6 --heads 3:2,3:3,4:2,4:3"
    assert verify_parts_command(similar_blocks(6, similar=(1, 4, 6)), few) == words
    many = measurement("head_divergence", head_distance(4, MOST_NAMED, twins=MOST_NAMED))
    assert verify_parts_command(None, many) == "attnprobe verify-drops MODEL --data DATA --heads all"
