"""Evidence made of formulas: how many images each step loses is given."""

import numpy as np

from attnprobe.core.evidence import Change, Evidence, Tried


def tried(lost, images, *changes):
    """Of `images` that choose, 9 of 10 are right before; `lost` of them not any more, each at one nat.

    As many others judge, and have the same outcomes.
    """
    right = np.arange(images) < images * 9 // 10 - lost
    loss = np.ones(images)
    loss[:lost] += 1
    return Tried(tuple(changes), np.tile(right, 2), np.tile(loss, 2))


def evidence(blocks_lost=(0, 1), heads_lost=(), images=100, ref="runs/vit", **fields):
    """Blocks 2, 3, ... and heads 1:1, 1:2, ... taken away one after the other."""
    blocks = [Change("block", block) for block in range(2, 2 + len(blocks_lost))]
    heads = [Change("head", 1, head) for head in range(1, 1 + len(heads_lost))]
    curves = {
        name: tuple(tried(lost, images, *changes[: n + 1]) for n, lost in enumerate(losses))
        for name, changes, losses in (("blocks", blocks, blocks_lost), ("heads", heads, heads_lost))
        if losses
    }
    single = tuple(
        tried(lost, images, change)
        for changes, losses in ((blocks, blocks_lost), (heads, heads_lost))
        for change, lost in zip(changes, losses, strict=True)
    )
    return Evidence(ref, "as asked for", tried(0, images), single, curves, np.arange(2 * images) < images, **fields)
