"""Attention weights packed into one byte each, on a square-root scale between 0 and the largest of the row.

    code  0 .. 254 -> largest * (code / 254)^2                    255: not finite
          -127 .. 127 -> sign * largest * (code / 127)^2         -128: not finite     (maps with negative weights)

A step of that scale is finest where weights are small: of a weight at 1 % of the largest, 254 levels are off by at most
0.04 % of the largest, where even steps would be off by 0.2 %. Patches have a scale of their own, and so have prefix
tokens: a class token that takes 95 % of a row would leave patches a fifth of the levels. `largest` is kept as a
bfloat16, rounded up.
"""

import numpy as np

LEVELS = {False: 254, True: 127}
"""Levels of a row without and with signs."""


def pack(values: np.ndarray, n_prefix: int, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """float [..., key] -> the largest [..., 2] and codes [..., key].

    The largest are magnitudes, of the prefix tokens and of the patches, as the bits of a bfloat16. Negative weights
    become 0 where signed is False.
    """
    values = np.asarray(values, np.float32)
    finite = np.isfinite(values)
    kept = np.where(finite, values, 0) if signed else np.where(finite, np.maximum(values, 0), 0)
    parts = kept[..., :n_prefix], kept[..., n_prefix:]
    bits = np.stack([np.abs(part).max(-1, initial=0) for part in parts], -1).view(np.uint32)
    largest = ((bits + 0xFFFF) >> 16).astype(np.uint16)  # the upper half of a float32, rounded up
    of_parts = (largest.astype(np.uint32) << 16).view(np.float32)
    scale = np.repeat(of_parts, [part.shape[-1] for part in parts], axis=-1)
    share = np.divide(np.abs(kept), scale, out=np.zeros_like(kept), where=scale > 0)
    codes = np.rint(LEVELS[signed] * np.sqrt(share)) * np.sign(kept)
    codes = np.where(finite, codes, -128 if signed else 255)
    return largest, codes.astype(np.int8).view(np.uint8) if signed else codes.astype(np.uint8)


def largest_error(signed: bool) -> float:
    """Largest error of a weight, as a share of the largest: half a step at the top of the scale."""
    return 1 - (1 - 0.5 / LEVELS[signed]) ** 2
