"""Commands of a report that try what it calls similar or redundant."""

from dataclasses import replace

from attnprobe.reports.removal import MOST_NAMED, parts_options, redundant_heads, verify_command
from tests.reports.formulas import head_distance, measurement, similar_blocks


def test_redundant_heads_are_all_but_one_of_each_group():
    m = measurement("head_divergence", head_distance(4, 5, twins=3))
    assert list(redundant_heads(m)) == [(3, 2), (3, 3), (4, 2), (4, 3)]
    some = replace(m, coords={"layer": [2, 5, 8, 11]})
    assert list(redundant_heads(some)) == [(8, 2), (8, 3), (11, 2), (11, 3)]


def test_without_a_maps_file_the_command_names_blocks_and_heads_and_all_of_many():
    few = measurement("head_divergence", head_distance(4, 5, twins=3))
    parts = parts_options([similar_blocks(6, similar=(1, 4, 6))], [few])
    assert parts == ["--blocks", "4,6", "--heads", "3:2,3:3,4:2,4:3"]
    many = measurement("head_divergence", head_distance(4, MOST_NAMED, twins=MOST_NAMED))
    assert parts_options([], [many]) == ["--heads", "all"]


def test_without_a_maps_file_the_command_has_model_images_and_preparation_of_the_capture():
    told = {"named": {"model": "my.pth", "architecture": "vit_tiny_patch16_224"}, "images": {"data": "photos"}}
    command = verify_command(None, told | {"preparation": {"crop_pct": 0.9}}, ["--blocks", "2"])
    assert command == (
        "attnprobe verify-drops my.pth --blocks 2 --model vit_tiny_patch16_224 --data photos --crop-pct 0.9"
    )
    assert verify_command(None, {}, ["--blocks", "2"]) == "attnprobe verify-drops MODEL --blocks 2 --data DATA"
