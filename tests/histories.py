"""Histories made of formulas: what a probe sees of a network that learns, and of one that collapses."""

import math

import numpy as np

from attnprobe.core.history import Alarm, History

TOKENS = 17


def history(epochs=(1, 2, 3, 4, 6, 8, 10), blocks=6, similar_from=None, entropy=None, alarms=(), **fields):
    """Blocks are alike after epoch 1 and differ from epoch 2 on; from epoch `similar_from`, the deeper half repeats.

    `entropy`: [epoch, block] nats; a slow fall from uniform if None.
    """
    epochs = np.array(epochs)
    ratio = np.where(epochs == 1, 0.99, 0.3)[:, None].repeat(blocks, 1)
    if similar_from is not None:
        ratio[epochs >= similar_from, blocks // 2 :] = 0.97
    ratio[:, 0] = np.nan
    cosine = np.sqrt(ratio)
    depth = np.arange(blocks)
    matrices = np.stack([row ** abs(depth[:, None] - depth) for row in np.nan_to_num(cosine).max(1)])
    if entropy is None:
        entropy = math.log(TOKENS) * (0.6 + 0.4 / np.maximum(epochs, 1)[:, None]) * np.ones(blocks)
    given = {
        "epochs": epochs,
        "blocks": {"similar_blocks": ratio, "layer_similarity": cosine, "row_entropy": np.asarray(entropy, float)},
        "matrices": {"layer_similarity": matrices},
        "uniform": {"similar_blocks": np.ones(blocks), "row_entropy": np.full(blocks, math.log(TOKENS))},
        "settings": {
            "similar_blocks": {"tau": 0.9, "rho": 0.9, "compare": "previous"},
            "layer_similarity": {"axis": "key"},
            "row_entropy": {},
        },
        "image_ids": ("a", "b"),
        "training_seconds": np.full(len(epochs), 10.0),
        "probe_seconds": np.full(len(epochs), 0.05),
        "alarms": tuple(Alarm(*alarm) for alarm in alarms),
    }
    return History(**{**given, **fields})
