"""Attention maps -> numbers with intervals: one file per metric, `measure` for a stream of maps.

Question: what is a metric? Choice: a pure function of the maps of some images that returns one value per image;
`measure` alone knows about streams, sites, intervals and baselines. Images are what is resampled, because the tokens,
heads and layers of one image depend on each other.
Question: keep values or sums? Choice: values up to 128 MiB per metric, for bootstrap intervals; mergeable sums beyond,
where thousands of images make the normal approximation good.
Question: exact or cheap? Choice: exact, computed in the order that the cache likes. One image of 16 layers, 12 heads,
197 tokens (float32, one AVX-512 core, forward pass 135 ms): layer cosine 8 ms, head cosine 6, entropy 5, similar blocks
10, Jensen-Shannon 36; the singular values of `effective_rank` 440, or 39 with `order=2`. Reconsider the default there
if people measure many images at many tokens.
"""

from attnprobe.core.measurement import Metric
from attnprobe.core.registry import Registry
from attnprobe.metrics.attention_distance import attention_distance
from attnprobe.metrics.effective_rank import effective_rank
from attnprobe.metrics.head_divergence import head_divergence
from attnprobe.metrics.head_similarity import head_similarity
from attnprobe.metrics.layer_similarity import layer_similarity, layer_similarity_centred
from attnprobe.metrics.measure import measure
from attnprobe.metrics.prefix_mass import prefix_mass
from attnprobe.metrics.rank_residual import rank_residual
from attnprobe.metrics.row_entropy import row_entropy
from attnprobe.metrics.similar_blocks import similar_blocks
from attnprobe.metrics.token_similarity import token_similarity

METRICS: Registry[Metric] = Registry(
    "metric",
    layer_similarity,
    layer_similarity_centred,
    similar_blocks,
    head_similarity,
    head_divergence,
    row_entropy,
    rank_residual,
    effective_rank,
    attention_distance,
    prefix_mass,
    token_similarity,
)

__all__ = ["METRICS", "measure", *METRICS]
