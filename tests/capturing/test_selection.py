"""What is chosen is what is kept, by its true number, and equals the same part of everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.capturing import capture, certificate, certify
from attnprobe.capturing.selection import Selection
from attnprobe.core.errors import InputError
from attnprobe.core.maps import Part
from attnprobe.core.text import numbers
from tests.capturing.test_any_model import FAMILIES


def captured(family, **chosen):
    build, size, _ = FAMILIES[family]
    torch.manual_seed(0)
    model, pixels = build().eval(), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return list(capture(model, pixels, tokens=True, batch_size=2, selection=Selection.parse(**chosen)))


@pytest.mark.parametrize("family", ["vit", "swin", "cait", "deit"])
def test_a_part_is_that_part_of_everything(family):
    whole = {(m.stage, m.site): m for m in captured(family)}
    part = captured(family, layers="2", heads="2", queries="0::2")
    assert part
    for m in part:
        everything = whole[m.stage, m.site]
        kept = [everything.layers.index(name) for name in m.layers]
        assert m.part.layers in (None, tuple(kept)) and m.part.heads == (1,)
        expected = everything.values[:, kept][:, :, [1]][:, :, :, list(m.part.queries)]
        torch.testing.assert_close(m.values, expected, rtol=0, atol=0)
        if everything.tokens is not None:
            torch.testing.assert_close(m.tokens, everything.tokens[:, kept], rtol=0, atol=0)
    assert {len(m.layers) for m in part} == {1} and len({m.stage for m in part}) == 1


def test_the_class_tokens_row():
    for family, row in (("vit", 0), ("deit", 0)):
        (everything,), (m,) = captured(family), captured(family, queries="cls")
        assert m.part == Part(queries=(row,)) and torch.equal(m.values, everything.values[:, :, :, row : row + 1])
    with pytest.raises(InputError, match="no class token"):
        captured("swin", queries="cls")


def test_numbers_that_are_not_there_are_named():
    with pytest.raises(InputError, match="layer 3 was chosen, and the model has 2"):
        captured("vit", layers="1,3")
    with pytest.raises(InputError, match="heads 4 were chosen, and a layer has 3"):
        captured("vit", heads="4")
    with pytest.raises(InputError, match="keeps none of the 5 queries"):
        captured("vit", queries="9:")


@given(st.sets(st.integers(1, 40), min_size=1))
@settings(max_examples=30, deadline=None)
def test_every_set_of_numbers_can_be_written(chosen):
    assert numbers("layers", ",".join(map(str, sorted(chosen)))) == sorted(chosen)


@pytest.mark.parametrize("text", ["0", "4-2", "a", "", "1,,2", "-3"])
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="such as 1-4,12"):
        Selection.parse(layers=text)
    with pytest.raises(InputError, match="must be all, cls, or a slice"):
        Selection(queries=text)


@pytest.mark.parametrize("family", ["vit", "swin", "cait", "deit"])
def test_a_proof_in_many_passes_is_the_proof_in_one(family, monkeypatch):
    build, size, _ = FAMILIES[family]
    torch.manual_seed(0)
    model, pixels = build().eval(), torch.randn(2, 3, size, size)
    whole = certify(model, pixels)
    monkeypatch.setattr(certificate, "AT_ONCE", 1)
    assert certify(model, pixels) == whole and len(whole.layers) > 1
