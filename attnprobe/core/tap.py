"""Where in an attention layer can a matrix be read?"""

from typing import Literal

from torch import Tensor, nn

Site = Literal["scores", "weights", "effective"]
"""`scores`: before the softmax. `weights`: the softmax. `effective`: what is multiplied with V."""


class Tap(nn.Module):
    """An identity that marks a site: a forward hook on it sees the matrix of that site.

    Without parameters or buffers, so state dictionaries keep the authors' names.
    """

    @property
    def listening(self) -> bool:
        """Whether somebody has a forward hook on this tap; a fast path that skips it would stay silent."""
        return bool(self._forward_hooks)

    def forward(self, matrix: Tensor) -> Tensor:
        """Return `matrix` itself, untouched."""
        return matrix
