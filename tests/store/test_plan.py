import json
from dataclasses import replace

import pytest

from attnprobe.core.errors import InputError, MapsFileError
from attnprobe.store.layout import Layout
from attnprobe.store.plan import CapturePlan, Pinned, read_plan, require_same_plan, write_plan

PLAN = CapturePlan(
    image_ids=("a.png", "b.png", "c.png"),
    labels=(0, 1, 0),
    model="deepvit_16",
    config={"depth": 16, "heads": {"count": 3}},
    settings={"what": ["weights", "effective"]},
    seed=0,
)
PINNED = Pinned(PLAN.facts(), Layout("bfloat16", 2, 100, ()), "2026-01-01T00:00:00+00:00")


def test_a_plan_read_back_is_the_plan_written(tmp_path):
    write_plan(tmp_path, PLAN, PINNED)
    pinned, ids, labels = read_plan(tmp_path)
    assert (pinned, ids, labels) == (PINNED, PLAN.image_ids, PLAN.labels)
    assert pinned.plan_id == PINNED.plan_id and pinned.n_shards == 2


def test_a_plan_is_written_once(tmp_path):
    write_plan(tmp_path, PLAN, PINNED)
    with pytest.raises(FileExistsError):
        write_plan(tmp_path, PLAN, PINNED)


@pytest.mark.promise("maps-changed")
def test_every_flipped_bit_of_a_plan_is_found(tmp_path, record_property):
    write_plan(tmp_path, PLAN, PINNED)
    path = tmp_path / "plan.json"
    text = path.read_bytes()
    for position in range(len(text)):
        for bit in (0, 4, 7):
            damaged = bytearray(text)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(MapsFileError):
                read_plan(tmp_path)
    record_property("tried", 3 * len(text))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_ids": ("a.png", "b.png"), "labels": (0, 1)}, r"3 then, 2 now \('c.png' is gone\)"),
        ({"image_ids": ("a.png", "b.png", "d.png")}, r"3 then, 3 now \('c.png' is gone\)"),
        ({"image_ids": ("a.png", "b.png", "c.png", "d.png"), "labels": ()}, "'d.png' is new"),
        ({"image_ids": ("b.png", "a.png", "c.png")}, "in another order"),
        ({"labels": (1, 1, 0)}, "another labels"),
        ({"model": "vit_16"}, 'another model: "deepvit_16" then, "vit_16" now'),
        ({"checkpoint_sha256": "ab"}, "another checkpoint"),
        ({"config": {"depth": 16, "heads": {"count": 6}}}, "another config.heads.count: 3 then, 6 now"),
        ({"config": {"depth": 16}}, "another config.heads"),
        ({"settings": {"what": ["weights"]}}, "another settings.what"),
        ({"seed": 1}, "another seed: 0 then, 1 now"),
        ({"device": "cuda"}, "another device"),
        ({"data": "x"}, "another data"),
        ({"variant": "x"}, "another variant"),
        ({"versions": {"torch": "3"}}, "another versions.torch: null then"),
    ],
)
def test_going_on_with_another_plan_names_what_differs_and_what_to_do(tmp_path, change, says):
    write_plan(tmp_path, PLAN, PINNED)
    with pytest.raises(InputError, match=says) as caught:
        require_same_plan(tmp_path, replace(PLAN, **change), "bfloat16")
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message and "overwrite=True" in message


def test_going_on_with_the_same_plan_needs_the_same_type_too(tmp_path):
    write_plan(tmp_path, PLAN, PINNED)
    assert require_same_plan(tmp_path, PLAN, "bfloat16") == PINNED
    with pytest.raises(InputError, match="dtype bfloat16, now it is float16"):
        require_same_plan(tmp_path, PLAN, "float16")


def test_the_plan_id_changes_with_each_part_of_the_plan():
    others = [
        replace(PINNED, facts=replace(PLAN, seed=1).facts()),
        replace(PINNED, facts=replace(PLAN, labels=(0, 0, 0)).facts()),
        replace(PINNED, layout=replace(PINNED.layout, shard_images=3)),
        replace(PINNED, created="2026-01-02T00:00:00+00:00"),
    ]
    assert len({p.plan_id for p in [PINNED, *others]}) == 5


def test_a_plan_of_a_newer_schema_is_refused(tmp_path):
    write_plan(tmp_path, PLAN, PINNED)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    with pytest.raises(MapsFileError, match="schema 2, this attnprobe reads 1 to 1; upgrade"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"image_ids": ()}, "at least one image"),
        ({"image_ids": ("a", "a")}, "1 ids for 2 images"),
        ({"image_ids": ("a", "b"), "labels": (1,)}, "1 for 2 images"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(fields, says):
    with pytest.raises(InputError, match=says):
        CapturePlan(model="vit", **fields)
