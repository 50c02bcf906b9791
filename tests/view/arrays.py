"""Maps in memory, as a viewer asks for them."""

import numpy as np

from attnprobe.core.browse import StageShape
from attnprobe.core.grid import TokenGrid
from attnprobe.view.described import Viewed
from attnprobe.view.packing import LEVELS


class Arrays:
    """Stages of known maps: {(stage, site): [image, layer, head, query, key]}."""

    def __init__(self, shapes, values, image_ids, told):
        self._shapes, self.values, self.image_ids, self._told = shapes, values, image_ids, told

    def shapes(self):
        return self._shapes

    def layer(self, stage, site, image, layer):
        return self.values[stage, site][image, layer].astype(np.float32)

    def told(self, image):
        return self._told[image]


def arrays(
    images=3, layers=4, heads=2, rows=3, cols=4, prefix=("cls",), *, effective=False, seed=0, spread=2.0, kind="self",
    ids=None,
):  # fmt: skip
    """Softmax maps of random logits; with `effective`, another site whose weights have both signs."""
    rng = np.random.default_rng(seed)
    n = len(prefix) + rows * cols
    logits = spread * rng.standard_normal((images, layers, heads, n, n))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    values = {("trunk", "weights"): weights.astype(np.float32)}
    sites = [("weights", True)]
    if effective:
        values["trunk", "effective"] = rng.standard_normal(weights.shape).astype(np.float32)
        sites.append(("effective", False))
    numbers = tuple(range(1, layers + 1)), tuple(range(1, heads + 1)), tuple(range(n))
    shape = StageShape("trunk", kind, *numbers, n, TokenGrid(rows, cols, prefix), tuple(sites))
    ids = ids or [f"val/{i}" for i in range(images)]
    told = [(i % 2, 1, 0.5 + i / 100) for i in range(images)]
    return Arrays((shape,), values, ids, told)


def viewed(name="vit", class_names=("one", "two"), **options):
    return Viewed(name, arrays(**options), class_names)


def unpack(largest: np.ndarray, codes: np.ndarray, n_prefix: int, signed: bool) -> np.ndarray:
    """The inverse of `pack`, float32, as the page's script does it."""
    steps = codes.view(np.int8).astype(np.float32) if signed else codes.astype(np.float32)
    missing = steps == (-128 if signed else 255)
    steps = np.where(missing, np.nan, steps / LEVELS[signed])
    of_parts = (largest.astype(np.uint32) << 16).view(np.float32)
    of_keys = [of_parts[..., :1]] * n_prefix + [of_parts[..., 1:]] * (codes.shape[-1] - n_prefix)
    return np.sign(steps) * steps * steps * np.concatenate(of_keys, -1)
