"""Attention maps -> numbers with intervals: one file per metric or family of them, `measure` for a stream of maps.

Question: what is a metric? Choice: a pure function of the maps of some images that returns one value per image;
`measure` alone knows about streams, sites, intervals and baselines. Images are what is resampled, because the tokens,
heads and layers of one image depend on each other.
Question: keep values or sums? Choice: values up to 128 MiB per metric, for bootstrap intervals; mergeable sums beyond,
where thousands of images make the normal approximation good. Where no maps are stored, sums over resamples as well,
beyond a number of images (`engine.folding`): intervals and derived numbers are then those of a bootstrap, too.
Question: exact or cheap? Choice: exact, computed in the order that the cache likes. One image of 16 layers, 12 heads,
197 tokens (float32, one AVX-512 core, forward pass 135 ms): layer cosine 8 ms, head cosine 6, entropy 5, similar blocks
10, Jensen-Shannon 32, before they shared anything; the singular values of `effective_rank` 440, or 39 with `order=2`,
so that is what sets of
metrics have (`IN_SETS`): exact, one matrix product, and another number, named with its order. Order 1 by eigenvalues
of Gram matrices costs 0.7 to 0.85 of the SVD with an error of 2e-8 in float64, which changes little; of a subset of
the images its interval would be wider than that of every other number.
Question: and a number that is not a mean over images, such as a ratio of means (minibatch CKA)? Choice: the function
returns what is averaged, and `Metric.from_mean` makes the number, of the mean and of every resample alike.
Question: should metrics share intermediate results? Choice: sums, not copies of the maps: singular values, Gram
matrices of rows and of layers reduced to what is asked of them, entropies, mean sorted rows, head outputs. Each is a
function of the maps in `engine` that `core.sharing` runs once while `collect` measures the maps at hand, so a metric
reads alone and gives the same number alone. Costs of each and of sets: examples/benchmarks/metrics.py.
"""

from attnprobe.core.metric import Metric
from attnprobe.core.registry import Registry
from attnprobe.metrics.attention_distance import attention_distance, own_column_mass, own_row_mass
from attnprobe.metrics.cka import head_dependence, map_cka, token_cka
from attnprobe.metrics.content_overlap import content_overlap
from attnprobe.metrics.engine.measure import measure
from attnprobe.metrics.gram_distance import gram_distance
from attnprobe.metrics.head_divergence import head_divergence
from attnprobe.metrics.head_importance import attention_update, head_ablation, head_importance
from attnprobe.metrics.head_similarity import head_similarity
from attnprobe.metrics.head_types import NEEDS, atlases, head_types
from attnprobe.metrics.heads_across_layers import head_divergence_across_layers, head_similarity_across_layers
from attnprobe.metrics.high_norm_tokens import high_norm_tokens, largest_activation, largest_token_norm
from attnprobe.metrics.layer_similarity import layer_similarity, layer_similarity_centred
from attnprobe.metrics.map_overlap import map_overlap, map_overlap_matched
from attnprobe.metrics.position_share import position_share
from attnprobe.metrics.rank import (
    approximate_rank,
    effective_rank,
    lazy_rate,
    nuclear_ratio,
    numerical_rank,
    spectral_gap,
    stable_rank,
    token_rank,
)
from attnprobe.metrics.rank_residual import rank_residual, token_residual
from attnprobe.metrics.rollout import attention_flow, attention_rollout
from attnprobe.metrics.row_entropy import query_information, row_entropy, row_entropy_relative
from attnprobe.metrics.similar_blocks import similar_blocks
from attnprobe.metrics.sinks import prefix_mass, sink_mass, sink_rate
from attnprobe.metrics.sparsity import (
    head_confidence,
    row_gini,
    row_hoyer,
    row_participation,
    row_small_share,
    row_top_mass,
)
from attnprobe.metrics.token_frequency import high_frequency, high_frequency_share
from attnprobe.metrics.token_similarity import image_similarity, token_layer_similarity, token_similarity
from attnprobe.metrics.value_aware import (
    head_output_norm,
    head_output_similarity,
    own_value_similarity,
    value_similarity,
    value_weighted_prefix_mass,
)

METRICS: Registry[Metric] = Registry(
    "metric",
    # similarity of blocks
    layer_similarity,
    layer_similarity_centred,
    similar_blocks,
    map_overlap,
    map_overlap_matched,
    content_overlap,
    map_cka,
    # similarity of heads
    head_similarity,
    head_divergence,
    head_dependence,
    head_similarity_across_layers,
    head_divergence_across_layers,
    # where a head attends
    row_entropy,
    row_entropy_relative,
    row_gini,
    row_hoyer,
    row_participation,
    row_top_mass,
    row_small_share,
    head_confidence,
    query_information,
    position_share,
    attention_distance,
    own_row_mass,
    own_column_mass,
    prefix_mass,
    sink_mass,
    sink_rate,
    # rank of maps
    rank_residual,
    effective_rank,
    numerical_rank,
    approximate_rank,
    lazy_rate,
    stable_rank,
    nuclear_ratio,
    spectral_gap,
    # attention through all blocks
    attention_rollout,
    attention_flow,
    # block outputs
    token_similarity,
    token_layer_similarity,
    token_cka,
    token_residual,
    token_rank,
    image_similarity,
    high_frequency,
    high_frequency_share,
    high_norm_tokens,
    largest_token_norm,
    largest_activation,
    # values
    own_value_similarity,
    value_similarity,
    head_output_norm,
    head_output_similarity,
    value_weighted_prefix_mass,
    lister="attnprobe list metrics",
)

DEFAULT = (
    "layer_similarity",
    "layer_similarity_centred",
    "similar_blocks",
    "map_overlap",
    "map_overlap_matched",
    "content_overlap",
    "head_similarity",
    "head_divergence",
    "row_entropy",
    "rank_residual",
    "effective_rank",
    "attention_distance",
    "prefix_mass",
    "sink_mass",
    "token_similarity",
    "token_rank",
    "image_similarity",
    "largest_activation",
)
"""Metrics measured by default; the others are measured by name or with "all"."""

IN_SETS = {"effective_rank": {"order": 2}}
"""Settings of metrics as part of a set such as `DEFAULT`. Order 1 of the effective rank needs singular values, which
alone cost more than a forward pass; order 2 is one matrix product and exact, too. By its name it is of order 1."""

ATLAS = (*NEEDS, "head_output_norm")
"""Metrics that `head_types` rests on; the last where value vectors were captured."""

DERIVED = {
    made.__name__: made for made in (head_types, head_importance, head_ablation, attention_update, gram_distance)
}
"""Measurements that are not metrics of maps: of others, of a running model, or of two networks."""

SLOW = (
    "head_divergence_across_layers",
    "numerical_rank",
    "approximate_rank",
    "lazy_rate",
    "stable_rank",
    "nuclear_ratio",
    "spectral_gap",
    "attention_flow",
)
"""Several forward passes or more: only by name, not part of "all"."""

__all__ = [
    "ATLAS",
    "DEFAULT",
    "DERIVED",
    "IN_SETS",
    "METRICS",
    "SLOW",
    "atlases",
    "measure",
    *DERIVED,
    *METRICS,
]
