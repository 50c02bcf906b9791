"""A product of an attention map with V, as tracing reports it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.towers import Tower


@dataclass(frozen=True, slots=True)
class Product:
    """One product of an attention map with V.

    Attributes:
        calls: the modules that were running, innermost last; that one is the layer.
        occurrence: 0 for the first product of this module in a forward pass.
        route: "functional", or "mha" for `nn.MultiheadAttention`.
        weights: the softmax, [image, window, head, query, key]; None where a layer makes one map of several.
        effective: the matrix multiplied with V, of the same shape; the same tensor where nothing changed in between.
        value_shape: rows (keys) and columns of one head's V.
        value: V, [image, window, head, key, head width]; None unless asked for, or where it is hidden.
        error_of: from a map to the largest |map V - the layer's result|, relative to the largest value; None unless
            asked for.
        scores: the logits of the softmax, of its shape; None unless asked for, or where a layer has several.
        factors: queries, scaled, and keys, [image, window, head, token, width], where the map is the softmax of their
            product and nothing else; None unless asked for, or where it is not.
        depends: what it multiplies was made of an earlier product of the same call.
        is_cross: its keys are known to be made of other tokens than its queries.
        tower: the trunk that the layer belongs to.
        factor: V as the model multiplied it, held until its module ends, so that no other V takes its memory.
        number: of this product among those of a pass, by which its result is followed.
        by_hand: its rows do not sum to 1, and it is made of scores without a softmax.
        added: the results of its parts are added up, so that none of its maps alone is what multiplies V.
    """

    calls: tuple[Call, ...]
    occurrence: int
    route: Literal["functional", "mha"]
    weights: Tensor | None
    effective: Tensor
    value_shape: tuple[int, int]
    value: Tensor | None
    error_of: Callable[[Tensor], float] | None
    scores: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None
    factor: Tensor | None = None
    number: int = 0
    by_hand: bool = False
    added: bool = False
    depends: bool = False
    is_cross: bool = False
    tower: Tower = field(default_factory=Tower)

    @property
    def layer(self) -> str:
        """Dotted name of the attention module; numbered from the second time it runs."""
        name = self.calls[-1].name
        return f"{name}#{self.occurrence + 1}" if self.occurrence else name

    def pads(self, n_tokens: int) -> bool:
        """True if the layer attends to more tokens than its input [image, token, width] has."""
        given = self.calls[-1].given
        return (
            given is not None
            and given.ndim == 3
            and given.shape[0] == len(self.effective)
            and (given.shape[1] < n_tokens)
        )
