import base64
import hashlib
import json
import re

from attnprobe.store import open_maps
from attnprobe.view import page
from attnprobe.view.described import Viewed, described
from attnprobe.view.embedded import embed
from tests import unequal_heads
from tests.view.arrays import viewed

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def test_data_can_neither_end_its_element_nor_open_a_comment():
    hostile = {"name": "</script><script>alert(1)</script><!--", "id": 'a"b'}
    text = page.as_data(hostile)
    assert "<" not in text and json.loads(text) == hostile


def test_the_policy_names_the_one_script_that_runs():
    embedded = embed([viewed()], ["val/0"], {}, 10**6)
    html = page.section(embedded.index, embedded.maps)
    (script,) = SCRIPT.findall(html)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.script_hash() == f"'sha256-{digest}'"


def test_nothing_is_loaded_from_elsewhere():
    html = page.whole_page({"runs": [described(viewed())], "served": True, "page": 12, "total": 3, "notes": []})
    assert not re.search(r"https?://|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")", html)
    assert " style=" not in html and not re.search(r"\son\w+=", html)


def test_names_with_hidden_characters_are_spelt_out_and_tokens_have_titles():
    run = viewed("a\u202eb", prefix=("cls", "reg0", "x\u202e"))
    told = described(run)
    assert told["name"] == "a‹U+202E›b"
    assert told["stages"][0]["prefix"] == ["class token", "register 1", "x‹U+202E›"]


def test_a_block_of_a_model_of_unequal_heads_is_said_to_be_one_of_all(tmp_path):
    maps = open_maps(unequal_heads.write(tmp_path / "maps.h5", heads=(3, 2, 3, 1)))
    stages = described(Viewed("pruned", maps))["stages"]
    assert [(stage["blocks"], stage["of"]) for stage in stages] == [([1, 3], 4), ([2], 4), ([4], 4)]
