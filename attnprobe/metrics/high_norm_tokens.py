"""Massive activations: entries, and patches whose norm, are far above the median of a block's output."""

from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.grid import TokenGrid
from attnprobe.core.metric import metric


@metric(axes=("layer",), value_range=(0.0, 1.0))
def high_norm_tokens(tokens: Tensor, grid: TokenGrid, *, factor: float = 3.0) -> Tensor:
    """Share of the patches whose output is longer than a multiple of the median patch's.

        N[l] = mean over patches i of  1 if |x_i| > factor * median_j |x_j| else 0

    Darcet et al. 2024, arXiv:2309.16588, find such tokens in patches of little content and give the model registers
    instead. They compare with a fixed norm; a multiple of the median, and 3, are ours. Prefix tokens do not count.
    Caveat: the number depends on the factor, so quote it; and where most patches are long the median is, too, so that
    none need count.

    Args:
        factor: above 1.

    Raises:
        InputError: a factor of 1 or less.
    """
    if not factor > 1:
        raise InputError(f"factor={factor} must be above 1, a multiple of the median norm.")
    norms = tokens[..., grid.patches, :].norm(dim=-1)
    return ((norms > factor * norms.quantile(0.5, -1, keepdim=True)).to(norms) + 0 * norms).mean(-1)


@metric(axes=("layer",), value_range=(1.0, None))
def largest_token_norm(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Length of the longest patch output in units of the median patch's.

        R[l] = max_i |x_i| / median_j |x_j|,      i, j over patches

    The size of the outliers that `high_norm_tokens` counts. Source as for `high_norm_tokens`. Not finite if most
    patches are zero.
    Caveat: it rests on one patch, and a maximum grows with their number without any outlier: log-normal norms of
    log-std 0.3 give 2.1 for 64 patches and 2.5 for 576.
    """
    norms = tokens[..., grid.patches, :].norm(dim=-1)
    return norms.amax(-1) / norms.quantile(0.5, -1)


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
    token: the same channel of all tokens; both high: of some tokens. The patches alone: `largest_token_norm`. Not
    finite where most entries are zero.
    Caveat: a maximum grows with the number of entries: normal ones give 7 for 197 tokens of width 768.

    Args:
        of: "entry", "channel" or "token".
    """
    check_choice("of", of, OF)
    if of != "entry":
        norms = tokens.norm(dim=-2 if of == "channel" else -1)
        return norms.amax(-1) / norms.quantile(0.5, -1)
    size = tokens.abs().flatten(2)
    return size.amax(-1) / size[..., :: max(1, size.shape[-1] // ENTRIES)].quantile(0.5, -1)
