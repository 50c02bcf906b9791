"""Attention sinks: attention that a single token, or the class token and registers, receive."""

from typing import Any

from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.grid import TokenGrid
from attnprobe.core.metric import metric


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def sink_mass(maps: Tensor) -> Tensor:
    """Attention that the most attended token receives, mean over all queries.

        S[l, h] = max_j a_j,      a_j = mean over i of A[l, h, i, j]

    Which token it is may differ between images; class token and registers count like patches (theirs alone:
    `prefix_mass`). Attention sinks: arXiv:2410.10781. 1/K for uniform attention over K keys.
    Caveat: only one token counts, so a sink that several registers or patches share reads low; and a weight does not
    say what arrives (`value_weighted_prefix_mass`).
    """
    return maps.mean(-2).amax(-1)


@metric(axes=("layer",), value_range=(0.0, 1.0), needs_stochastic=True, needs_prefix=True, needs_all_heads=True)
def sink_rate(maps: Tensor, grid: TokenGrid, *, threshold: float = 0.3, token: str = "first") -> Tensor:
    """Share of the heads of a layer that leave more than a threshold of their attention on a sink.

        R[l] = mean over h of  1 if a_0[l, h] > threshold else 0,      a_j = mean over i of A[l, h, i, j]

    After Gu et al. 2024, arXiv:2410.10781, who measure the first token of a text; here it is the class token.
    Caveat: the number depends on the threshold, so quote it: at 0.3 a head with 0.29 counts nothing and one with 0.31
    in full. Sinks on patches do not count unless token="any".

    Args:
        threshold: in (0, 1).
        token: "first": a_0; "prefix": the sum over class token and registers; "any": max_j a_j.

    Raises:
        InputError: a threshold out of range, or an unknown token.
    """
    check_choice("token", token, ("first", "prefix", "any"))
    if not 0 < threshold < 1:
        raise InputError(f"threshold={threshold} must lie in (0, 1), a share of the attention.")
    received = maps.mean(-2)
    of_sink = {"first": received[..., 0], "any": received.amax(-1)}.get(token)
    if of_sink is None:
        of_sink = received[..., grid.prefix_tokens].sum(-1)
    return ((of_sink > threshold).to(maps) + 0 * of_sink).mean(-1)  # 0 * NaN: a comparison would hide it


def prefix_names(grid: TokenGrid, **_: Any) -> dict[str, list[Any]]:
    """Labels of the axis "prefix"."""
    return {"prefix": list(grid.prefix)}


@metric(
    axes=("layer", "head", "prefix"), value_range=(0.0, 1.0), needs_stochastic=True, needs_prefix=True,
    coords=prefix_names,
)  # fmt: skip
def prefix_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Mean attention that each prefix token receives, over all queries.

        P[l, h, t] = mean over i of A[l, h, i, t],      t a class token or register

    All queries count, the prefix tokens themselves included. Uniform attention gives 1/K. Attention sinks, heads that
    leave most of their mass on one such token: arXiv:2410.10781; registers: arXiv:2309.16588.
    Caveat: a weight does not say what arrives, for a token that draws much attention can have a small value; see
    `value_weighted_prefix_mass`.
    """
    return maps[..., grid.prefix_tokens].mean(-2)
