"""Massive activations: the largest activation relative to the median one."""

from torch import Tensor

from attnprobe.core.errors import check_choice
from attnprobe.core.metric import metric

ENTRIES = 8192
"""The median is that of about so many entries, evenly taken: it needs no more, and all would cost a sort."""

OF = ("entry", "channel", "token")


@metric(axes=("layer",), value_range=(1.0, None))
def largest_activation(tokens: Tensor, *, of: str = "entry") -> Tensor:
    """Largest activation of a block's output in units of the median one.

        R[l] = max_{i, d} |x_id| / median_{i, d} |x_id|

    of="channel": max_d |x_.d| / median_d |x_.d|; of="token": max_i |x_i.| / median_i |x_i.|.
    Massive activations: Sun et al. 2024, arXiv:2402.17762, who call an entry massive that is above 100 and about 1,000
    times the median or more. Prefix tokens count, for it is often they who carry them. High of a channel and low of a
    token: the same channel of all tokens; both high: of some tokens. The patches alone: `largest_token_norm`.
    Caveat: a maximum grows with the number of entries: normal ones give 7 for 197 tokens of width 768.

    Args:
        of: "entry", "channel" or "token".

    Returns:
        [image, layer]; not finite where most entries are zero.
    """
    check_choice("of", of, OF)
    if of != "entry":
        norms = tokens.norm(dim=-2 if of == "channel" else -1)
        return norms.amax(-1) / norms.quantile(0.5, -1)
    size = tokens.abs().flatten(2)
    return size.amax(-1) / size[..., :: max(1, size.shape[-1] // ENTRIES)].quantile(0.5, -1)
