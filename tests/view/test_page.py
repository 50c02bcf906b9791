import base64
import hashlib
import json
import re

from attnprobe.view import page
from attnprobe.view.described import described
from attnprobe.view.embedded import embed
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
