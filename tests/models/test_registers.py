"""Registers take part in attention, are named in the grid, and none is the plain ViT."""

import torch

from attnprobe.capturing import record
from attnprobe.models.variants.registers import REGISTERS
from tests.models.remedies import TINY, assert_is_plain


def test_without_registers_it_is_the_plain_vit():
    assert_is_plain(REGISTERS.model(**{**TINY, **REGISTERS.options, "reg_tokens": 0}))


def test_capture_names_the_registers_and_every_token_attends_to_them():
    model = REGISTERS.model(**TINY, **REGISTERS.options).eval()
    with torch.no_grad(), record(model) as recorder:
        model(torch.randn(2, 3, 16, 16))
        (maps,) = recorder.take()
    assert maps.grid.prefix == ("cls", "reg0", "reg1", "reg2", "reg3")
    assert maps.values.shape == (2, 3, 4, 9, 9) and (maps.values[..., 1:5] > 0).all()


def test_registers_start_apart_from_each_other():
    model = REGISTERS.model(**TINY, **REGISTERS.options)
    start = (model.reg_token + model.pos_embed[:, 1:5])[0]
    assert torch.pdist(start).min() > 0.01
