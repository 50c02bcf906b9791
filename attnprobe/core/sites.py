"""Sites: the places in an attention layer where a matrix is read. Without torch, for those who only name one."""

from typing import Literal

Site = Literal["scores", "weights", "effective"]
"""`scores`: the logits, before the softmax. `weights`: after it. `effective`: the matrix that is multiplied with V."""

SITES: dict[str, str] = {"weights": "softmax maps", "effective": "effective maps", "scores": "scores"}
"""Every site as figures call it, in the order in which maps are stored and read."""

MAPS: tuple[Site, ...] = ("weights", "effective")
"""Those of a capture that does not say otherwise."""
