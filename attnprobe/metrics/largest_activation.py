"""Do a few activations dwarf all others?"""

from typing import Any

import torch
from torch import Tensor

from attnprobe.core.measurement import metric

ENTRIES = 8192
"""The median is that of about so many entries, evenly taken: it needs no more, and all would cost a sort."""

WHERE = ("entry", "channel", "token")


def _names(**_: Any) -> dict[str, list[Any]]:
    return {"where": list(WHERE)}


@metric(axes=("layer", "where"), value_range=(1.0, None), coords=_names)
def largest_activation(tokens: Tensor) -> Tensor:
    """Largest activation of a block's output in units of the median: of one entry, of a channel, of a token.

        entry:    max_{i, d} |x_id| / median_{i, d} |x_id|
        channel:  max_d |x_.d| / median_d |x_.d|          token:  max_i |x_i.| / median_i |x_i.|

    Massive activations: Sun et al. 2024, arXiv:2402.17762, who call an entry massive that is above 100 and about 1,000
    times the median or more. Prefix tokens count, for it is often they who carry them. High channel and low token: the
    same channel of all tokens; both high: some channels of some tokens. The patches alone: `largest_token_norm`.
    Caveat: a maximum grows with the number of entries: normal ones give 7 for 197 tokens of width 768.

    Args:
        tokens: [image, layer, token, width], the output of each block.

    Returns:
        [image, layer, where]; not finite where most entries are zero.
    """
    size = tokens.abs()
    flat = size.flatten(2)
    median = flat[..., :: max(1, flat.shape[-1] // ENTRIES)].quantile(0.5, -1)
    channels, rows = tokens.norm(dim=-2), tokens.norm(dim=-1)
    ratios = [flat.amax(-1) / median, *(x.amax(-1) / x.quantile(0.5, -1) for x in (channels, rows))]
    return torch.stack(ratios, -1)
