"""The module that marks a site of an attention layer."""

from torch import Tensor, nn

from attnprobe.core.sites import Site

__all__ = ["Site", "Tap"]


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
