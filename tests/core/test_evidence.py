from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.evidence import Change, Evidence, Tried
from attnprobe.reports.removal import advice, evidence_text, parts_text
from tests.evidences import evidence, tried


def test_the_last_harmless_step_of_a_curve_is_free():
    e = evidence(blocks_lost=(0, 1, 2, 40), images=400, tolerance=0.02)
    assert [e.harmless(step) for step in e.curves["blocks"]] == [True, True, True, False]
    assert e.free("blocks") is e.curves["blocks"][2] and e.free("heads") is None
    strict = evidence(blocks_lost=(0, 1, 2, 40), images=400, tolerance=0.01)
    assert strict.free("blocks") is strict.curves["blocks"][1]  # 2 lost of 400 may be 1.3 % of many


@pytest.mark.parametrize("images", [1, 10, 60])
def test_what_few_images_do_not_show_is_not_harmless(images):
    e = evidence(blocks_lost=(0, 0), images=images, n_classes=2)
    assert e.free("blocks") is None and e.gained(e.curves["blocks"][0])[0] == 0
    said = (
        "may be chance" if images == 1 else f"the {images} images that choose cannot exclude a loss of more than 2.0%"
    )
    assert advice(e).startswith("cannot say: ") and said in advice(e)
    assert evidence(blocks_lost=(0, 0), images=400).free("blocks") is not None


def test_nothing_is_harmless_to_a_model_that_guesses():
    e = evidence(blocks_lost=(0,), images=4000, n_classes=10)
    assert e.harmless(e.curves["blocks"][0])
    guesses = replace(e, whole=replace(e.whole, right=np.tile(np.arange(4000) < 400, 2)))
    assert not guesses.harmless(guesses.whole)
    assert advice(guesses) == "cannot say: the whole model is right on 400 of 4000 images, which may be chance"


def test_a_loss_that_is_sure_is_told():
    e = evidence(blocks_lost=(100,), images=400)
    assert e.gained(e.curves["blocks"][0])[2] < 0 and e.free("blocks") is None
    assert "not by chance" in evidence_text(
        e
    ) and "nothing can be removed at a tolerance of 2.0%: each part costs more" in advice(e)


def test_a_part_without_which_the_model_is_better_is_told():
    text = evidence_text(evidence(blocks_lost=(-30, 0), images=400))
    assert (
        "better when changed so: without block 2 (each alone, by more than its interval; of 2 tried, 1 would seem"
        in text
    )
    assert "is better" not in evidence_text(evidence(blocks_lost=(0, 30), images=400))


def test_a_row_holds_what_went_last_and_the_numbers_of_all():
    e = evidence(blocks_lost=(0, 4), images=100)
    row = e.rows()[-1]
    assert (row["curve"], row["removed"], row["kind"], row["block"], row["head"]) == ("blocks", 2, "block", 3, None)
    assert row["accuracy"] == pytest.approx(0.86) and row["gained"] == pytest.approx(-0.04)
    assert row["gained_low"] < row["gained"] < row["gained_high"] and row["loss_gained"] == pytest.approx(0.04)
    assert len(e.table()) == len(e.rows()) and "nan" not in evidence_text(e).lower()


def test_advice_is_a_command_that_can_be_copied():
    changes = (Change("block", 7), Change("block", 5), Change("head", 9, 3), Change("head", 2, 6))
    both = evidence(advised=tried(0, 100, *changes), ref="runs/vit/")
    command = "attnprobe prune runs/vit/ --blocks 5,7 --heads 2:6,9:3 -o runs/vit-smaller"
    assert advice(both).endswith(f", chosen on 100 images, measured on 100 others: {command}")
    assert advice(both).startswith("without blocks 5 and 7 and heads 2:6, 9:3 accuracy +0.00% (")
    elsewhere = replace(both, ref="my runs/vit/checkpoints/epoch-0015", options=("--data", "a b"))
    assert "prune 'my runs/vit/checkpoints/epoch-0015' --data 'a b' --blocks" in advice(elsewhere)
    assert "-o 'my runs/vit-smaller'" in advice(elsewhere)
    assert "-o vit_small-smaller" in advice(replace(both, ref="hf-hub:timm/vit_small"))
    assert "nothing was tried" in advice(Evidence("m", "said", tried(0, 9), (), {}, np.arange(18) < 9))


def test_some_images_choose_and_others_are_told_of():
    """Where the halves disagree: harmless by the choosing half, and its cost is that of the other."""
    e = evidence(blocks_lost=(0, 40), images=400)
    worse = replace(e.curves["blocks"][0], right=np.concatenate([e.whole.right[:400], e.whole.right[400:] & False]))
    e = replace(e, curves={"blocks": (worse,)}, advised=worse)
    assert e.free("blocks") is worse and not e.confirmed(worse)
    assert e.gained(worse)[0] == pytest.approx(-0.9) and e.gained_choosing(worse)[0] == 0
    row = e.rows()[-1]
    assert (row["accuracy"], row["gained"], row["gained_choosing"]) == (0, pytest.approx(-0.9), 0)
    assert "accuracy -90.00% (" in advice(
        e
    ) and "chosen on 400 images, measured on 400 others, which do not exclude a loss of more than 2.0%: " in advice(e)
    assert e.cost_choosing(worse) == e.cost_choosing(e.whole)
    kind = replace(e, advised=e.whole)
    assert kind.confirmed(kind.whole) and "measured on 400 others: attnprobe" in advice(kind)


def test_many_heads_are_counted_in_a_sentence():
    assert (
        parts_text(Tried(tuple(Change("head", 1, h) for h in range(1, 6)), np.ones(1, bool), np.zeros(1))) == "5 heads"
    )


def test_ablations_of_equal_outcome_share_a_line_and_none_is_left_out():
    text = evidence_text(evidence((0, 0, 0, 3), (0, 0), images=8))
    lines = text.splitlines()
    alike = [line for line in lines if line.startswith("  ") and "without block 2;" in line]
    assert all("without block 3" in line for line in alike) and any(line.startswith("  1–3: ") for line in lines)
    assert len(lines) <= 12 and all(text.count(f"without block {block}") >= 2 for block in range(2, 6))
