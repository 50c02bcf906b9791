"""Sites: the places in an attention layer where a matrix can be read, and the module that marks one."""

from typing import Literal

from torch import Tensor, nn

Site = Literal["scores", "weights", "effective"]
"""`scores`: the logits, before the softmax. `weights`: the softmax. `effective`: the matrix multiplied with V, which
differs from `weights` where a variant mixes heads or normalises after the softmax."""


class Tap(nn.Module):
    """An identity that marks a site: a forward hook on it sees the matrix of that site.

    Without parameters or buffers, so state dictionaries keep the authors' names.
    """

    @property
    def listening(self) -> bool:
        """True while a forward hook is on this tap, so that a fast path must not skip it."""
        return bool(self._forward_hooks)

    def forward(self, matrix: Tensor) -> Tensor:
        """Return `matrix` itself, untouched."""
        return matrix
