"""Confidence of every head: its largest attention weights."""

from torch import Tensor

from attnprobe.core.metric import metric


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True, by_row=True)
def head_confidence(maps: Tensor) -> Tensor:
    """Largest attention weight of a row, mean over the queries of a head.

        C[l, h] = mean over i of max_j A[l, h, i, j]

    The confidence of Voita et al. 2019, arXiv:1905.09418; every query counts. 1/K for uniform attention over K keys.
    Caveat: a head that only feeds a sink is fully confident; see `sink_mass`.
    """
    return maps.amax(-1).mean(-1)
