"""Maps whose truth is known, made to be judged: [image, layer, head, query, key]."""

import numpy as np
import torch

from attnprobe.core.examined import Examined
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import measure
from attnprobe.reports import verdict

IMAGES, LAYERS, HEADS, SIDE = 16, 8, 6, 6
TOKENS = SIDE**2 + 1
GRID = TokenGrid(SIDE, SIDE)
MAPS = (
    "map_overlap", "map_overlap_matched", "content_overlap", "row_entropy", "sink_mass", "prefix_mass",
    "rank_residual", "attention_distance", "head_divergence",
)  # fmt: skip
TOKEN_METRICS = ("token_similarity", "token_rank", "image_similarity", "largest_activation")


def rng():
    return np.random.default_rng(0)


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(spread=2.0, layers=LAYERS):
    return spread * rng().normal(size=(IMAGES, layers, HEADS, TOKENS, TOKENS))


def in_all_blocks(maps):
    return np.repeat(maps[:, :1], LAYERS, 1)


def one_hot(keys):
    return np.eye(TOKENS)[keys]


def on_own_sink(mass):
    """This mass on a token of the head's own, the rest unrelated."""
    maps = softmax(logits()) * (1 - mass)
    for head in range(HEADS):
        maps[:, :, head, :, head] += mass
    return maps


def few_keys():
    maps = np.full((IMAGES, LAYERS, HEADS, TOKENS, TOKENS), 0.05 / (TOKENS - 5))
    maps[..., :5] = 0.95 * softmax(logits()[..., :5])
    return maps


def windows():
    """A Gaussian window at an offset of each head, and a little on the class token."""
    place = np.array([(row, col) for row in range(SIDE) for col in range(SIDE)])
    maps = np.zeros((HEADS, TOKENS, TOKENS))
    for head, offset in enumerate([(0, 1), (0, -1), (1, 0), (-1, 0), (0, 0), (1, 1)]):
        maps[head, 1:, 1:] = np.exp(-((place[None] - (place[:, None] + offset)) ** 2).sum(-1))
        maps[head, 0], maps[head, :, 0] = 1, maps[head, :, 0] + 0.05
    maps /= maps.sum(-1, keepdims=True)
    return np.broadcast_to(maps, (IMAGES, LAYERS, *maps.shape)).copy()


def permuted_heads():
    one, draw = softmax(logits(layers=1))[:, 0], rng()
    return np.stack([one[:, draw.permutation(HEADS)] for _ in range(LAYERS)], 1)


def alternating():
    two = softmax(logits(layers=2))
    return np.stack([two[:, block % 2] for block in range(LAYERS)], 1)


def drifting():
    fresh = logits(1.0)
    scores, angle = [fresh[:, 0]], 0.28
    for block in range(1, LAYERS):
        scores.append(np.cos(angle) * scores[-1] + np.sin(angle) * fresh[:, block])
    return softmax(np.stack(scores, 1))


def patches_copied():
    scores = logits()
    scores[:, :, :, 1:, 1:] = scores[:, :1, :, 1:, 1:]
    return softmax(scores)


def class_row_copied():
    scores = logits()
    scores[:, :, :, 0] = scores[:, :1, :, 0]
    return softmax(scores)


def hard_sink():
    maps = np.zeros((IMAGES, LAYERS, HEADS, TOKENS, TOKENS))
    maps[..., 0] = 1
    return maps


def permutations():
    draw = rng()
    keys = np.stack([draw.permutation(TOKENS) for _ in range(IMAGES * HEADS)])
    return in_all_blocks(one_hot(keys.reshape(IMAGES, 1, HEADS, TOKENS)))


def random_keys(layers):
    return one_hot(rng().integers(TOKENS, size=(IMAGES, layers, HEADS, TOKENS)))


def equal_rows():
    return np.repeat(softmax(logits()[..., :1, :]), TOKENS, -2)


def judged(values, tokens=None, metrics=None, untrained=None, info=None, **about):
    """The verdict, through the public way: maps -> measure -> Examined -> verdict."""

    def maps(values, tokens=None):
        ids = tuple(map(str, range(len(values))))
        tokens = None if tokens is None else torch.as_tensor(tokens, dtype=torch.float32)
        return AttentionMaps(torch.as_tensor(values, dtype=torch.float32), ids, GRID, tokens=tokens)

    wanted = (*MAPS, *(() if tokens is None else TOKEN_METRICS)) if metrics is None else metrics
    baselines = {} if untrained is None else {"untrained": [maps(untrained)]}
    found = measure([maps(values, tokens)], wanted, bootstrap=50, baselines=baselines)
    return verdict(Examined(name="known", measurements=found, info=info or {}, layers=(), grid=GRID, **about))


def named(found):
    """The kinds that were found."""
    return {finding.kind for finding in found.findings if finding.found == "yes"}
