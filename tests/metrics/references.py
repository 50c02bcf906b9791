"""Every metric a second time, by another package: SciPy, scikit-learn, networkx, NumPy's own routines.

The first reference of each metric are the loops in its own test. As a table, which is that of docs/pages/metrics.md:

    python -m tests.metrics.references
"""

import itertools
import math
import re

import networkx
import numpy as np
import torch
from scipy.integrate import trapezoid
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import entropy
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import KernelCenterer

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import METRICS, measure
from attnprobe.metrics.similar_blocks import CURVE

GRID = TokenGrid(3, 4, patch=(4, 8))


def some_maps(images=2, layers=3, heads=3, seed=0):
    """Peaky maps of three layers; the last two are nearly alike."""
    rng = np.random.default_rng(seed)
    n = GRID.n_tokens
    logits = 2 * rng.normal(size=(images, layers, heads, n, n))
    logits[:, -1] = logits[:, -2] + 0.1 * rng.normal(size=(images, heads, n, n))
    return AttentionMaps(
        torch.from_numpy(logits).softmax(-1),
        tuple(map(str, range(images))),
        GRID,
        tokens=torch.from_numpy(rng.normal(size=(images, layers, n, 6)) * rng.gamma(1, 1, size=(images, layers, n, 1))),
        value_vectors=torch.from_numpy(rng.normal(size=(images, layers, heads, n, 4))),
    )


def each_head(of_head):
    """A reference of one map [query, key] -> one of all [image, layer, head, query, key]."""
    return lambda maps: np.array([[[of_head(head) for head in layer] for layer in image] for image in _maps(maps)])


def each_layer(of_layer):
    """The same of tokens [token, width]."""
    return lambda maps: np.array([[of_layer(layer) for layer in image] for image in maps.tokens.numpy()])


def each_pair(of_pair, things=lambda maps: _maps(maps)):
    """A reference of two layers -> [image, layer, layer]."""
    return lambda maps: np.array([[[of_pair(a, b) for b in image] for a in image] for image in things(maps)])


def pairs_of_heads(of_pair):
    return lambda maps: np.array([[[[of_pair(a, b) for b in x] for a in x] for x in image] for image in _maps(maps)])


def across(of_pair):
    """All heads of all layers."""

    def reference(maps):
        flat = _maps(maps).reshape(maps.n_images, -1, *maps.values.shape[-2:])
        shape = (-1, *maps.values.shape[1:3], *maps.values.shape[1:3])
        return np.array([[[of_pair(a, b) for b in image] for a in image] for image in flat]).reshape(shape)

    return reference


def with_values(of_head):
    """A reference of one map and its values -> [image, layer, head]."""
    return lambda maps: np.array(
        [[[of_head(a, v) for a, v in zip(*layer, strict=True)] for layer in zip(*image, strict=True)]
         for image in zip(_maps(maps), maps.value_vectors.numpy(), strict=True)]
    )  # fmt: skip


def _maps(maps):
    return maps.values.numpy()


def _cosine(a, b):
    return cosine_similarity(a.reshape(1, -1), b.reshape(1, -1)).item()


def _divergence(a, b):
    return np.mean([jensenshannon(p, q) ** 2 for p, q in zip(a, b, strict=True)])


def _columns(a, b):
    """Cosine of the columns of two layers, mean over heads and tokens."""
    return np.mean([1 - cdist(x.T, y.T, "cosine").diagonal() for x, y in zip(a, b, strict=True)])


def _correlation(a, b):
    return np.mean([1 - cdist(x.T, y.T, "correlation").diagonal() for x, y in zip(a, b, strict=True)])


def _similar(maps):
    image_ratios = []
    for image in _maps(maps):
        s = [[1 - cdist(x.T, y.T, "cosine").diagonal() for x, y in zip(a, b, strict=True)]
             for a, b in itertools.pairwise(image)]  # fmt: skip
        image_ratios.append([[0.0, *(np.mean(np.array(block) > t) for block in s)] for t in CURVE])
    return np.array(image_ratios)


def _cka(kernels_of):
    """Mean of the unbiased HSIC over images by centring with scikit-learn, and then the ratio."""

    def u_centred(k):
        n = len(k)
        off = k - np.diag(np.diag(k))
        fitted = off - off.sum(0) / (n - 2) - off.sum(1)[:, None] / (n - 2) + off.sum() / ((n - 1) * (n - 2))
        return fitted - np.diag(np.diag(fitted))

    def reference(maps):
        hsic = []
        for features in kernels_of(maps):
            kernels = [u_centred(KernelCenterer().fit_transform(x @ x.T)) for x in features]
            hsic.append([[(a * b).sum() for b in kernels] for a in kernels])
        mean = np.mean(hsic, 0)
        return mean / np.sqrt(np.outer(np.diag(mean), np.diag(mean)))

    return reference


def _dependence(maps):
    layers = range(maps.values.shape[1])
    return np.array([_cka(lambda m, at=layer: _maps(m)[:, at])(maps) for layer in layers])


def _information(a):
    patches = a[1:, 1:] / a[1:, 1:].sum(1, keepdims=True)
    joint, apart = patches / len(patches), np.outer(np.ones(len(patches)), patches.mean(0)) / len(patches)
    information = entropy(joint.ravel(), apart.ravel())  # Kullback and Leibler's
    return information / math.sqrt(math.log(len(patches)) * entropy(patches.mean(0)))


def _distance(a):
    at = np.array([(r * GRID.patch[0], c * GRID.patch[1]) for r in range(GRID.rows) for c in range(GRID.cols)])
    patches = a[1:, 1:] / a[1:, 1:].sum(1, keepdims=True)
    return (patches * cdist(at, at)).sum(1).mean()


def _own(line):
    place = np.arange(GRID.rows * GRID.cols)

    def of_head(a):
        patches = a[1:, 1:] / a[1:, 1:].sum(1, keepdims=True)
        return (patches * (line(place)[:, None] == line(place))).sum(1).mean()

    return of_head


def _gini(a):
    """Area between the Lorenz curve and the diagonal, twice, by the trapezoidal rule."""
    lorenz = np.concatenate([np.zeros((len(a), 1)), np.cumsum(np.sort(a, 1), 1)], 1)
    return np.mean(1 - 2 * trapezoid(lorenz, dx=1 / a.shape[1], axis=1))


def _spectrum(number):
    return each_head(lambda a: number(np.linalg.svd(a, compute_uv=False)))


def _residual(a):
    """From the best 1 x^T by least squares."""
    ones = np.ones((len(a), 1))
    return np.linalg.norm(a - ones @ np.linalg.lstsq(ones, a, rcond=None)[0]) / np.linalg.norm(a)


def _mixed(image):
    return [0.5 * np.eye(image.shape[-1]) + 0.5 * layer.mean(0) for layer in image]


def _rollout(maps):
    return np.array(
        [[np.linalg.multi_dot([*_mixed(image)[layer::-1], np.eye(GRID.n_tokens)])[0] for layer in range(len(image))]
         for image in _maps(maps)]
    )  # fmt: skip


def _flow(maps):
    def of_image(image):
        graph = networkx.DiGraph()
        for (layer, query, key), capacity in np.ndenumerate(_mixed(image)):
            graph.add_edge((layer + 1, query), (layer, key), capacity=float(capacity))
        return [
            [networkx.maximum_flow_value(graph, (layer + 1, 0), (0, key)) for key in range(GRID.n_tokens)]
            for layer in range(len(image))
        ]

    return np.array([of_image(image) for image in _maps(maps)])


def _position(maps):
    """From whole maps: the mean inner product of two images, of which there are so few here, over that of one."""
    away = _maps(maps) - 1 / GRID.n_tokens
    one, two = away
    return np.clip((one * two).sum((-1, -2)) / (away**2).sum((-1, -2)).mean(0), 0, 1)


def _picture(tokens):
    return np.fft.fft2(tokens[1:].reshape(GRID.rows, GRID.cols, -1), axes=(0, 1))


def _high(tokens):
    size = np.log(np.abs(_picture(tokens)))
    return (size[(GRID.rows - 1) // 2, (GRID.cols - 1) // 2] - size[0, 0]).mean()


def _high_share(tokens):
    """By Parseval's theorem: what the inverse transform of the low frequencies leaves of the image."""
    row, col = (np.abs(np.fft.fftfreq(n)) * 2 for n in (GRID.rows, GRID.cols))
    low = np.maximum.outer(row, col) <= 0.5
    kept = np.fft.ifft2(_picture(tokens) * low[..., None], axes=(0, 1)).real.reshape(-1, tokens.shape[1])
    return ((tokens[1:] - kept) ** 2).sum() / (tokens[1:] ** 2).sum()


def _off_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)].mean()


def _norms(tokens):
    """Of patches, in units of the median."""
    size = np.linalg.norm(tokens[1:], axis=1)
    return size / np.median(size)


def _output_norm(maps):
    size = with_values(lambda a, v: np.linalg.norm(a @ v, axis=1).mean())(maps)
    return size / size.mean(-1, keepdims=True)


def _of_outputs(maps):
    received = np.einsum("ilhqk,ilhkp->ilhqp", _maps(maps), maps.value_vectors.numpy())
    return np.array([[cosine_similarity(layer.reshape(len(layer), -1)) for layer in image] for image in received])


def _weighted(a, v):
    given = np.einsum("ij,j->ij", a, np.linalg.norm(v, axis=1))
    return (given / given.sum(1, keepdims=True))[:, :1].mean(0)


def _tokens_of(maps):
    return maps.tokens.numpy()


def _overlap(a, b):
    """Of two layers [head, query, key], as the smaller of two entries, summed."""
    return np.mean([np.minimum(p, q).sum() for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True)])


def _overlaps(maps):
    """Of neighbours at all queries, of others at every fifth."""

    def of_image(image):
        return [
            [_overlap(a, b) if abs(i - j) < 2 else _overlap(a[:, ::5], b[:, ::5]) for j, b in enumerate(image)]
            for i, a in enumerate(image)
        ]

    return np.array([of_image(image) for image in _maps(maps)])


def _matched(maps):
    """With the best of all permutations of heads, at every fifth query."""

    def of_pair(a, b):
        orders = [list(order) for order in itertools.permutations(range(len(b)))]
        best = max(orders, key=lambda order: np.sqrt(a * b[order]).sum())
        return _overlap(a, b[best])

    return np.array([[0, *itertools.starmap(of_pair, itertools.pairwise(image[:, :, ::5]))] for image in _maps(maps)])


def _content(maps):
    """From one sketch after the other, entry by entry, with the thresholds and signs that the metric draws."""
    from attnprobe.metrics.content_overlap import BUCKETS, ROWS, _drawn

    images, layers, heads, queries, _ = maps.values.shape
    times = ROWS // (heads * queries)
    thresholds, signs = (x.numpy() for x in _drawn((times, *maps.values.shape[2:]), 0))
    above = (_maps(maps)[:, :, None] > thresholds).reshape(images, layers, -1)
    sketches = np.zeros((images, layers, BUCKETS))
    for entry, sign in enumerate(signs.ravel()[: above.shape[-1]]):
        sketches[..., entry % BUCKETS] += sign * above[..., entry]
    each = sketches / math.sqrt(times * heads * queries)
    away = each - each.mean(0)
    return np.einsum("ilb,imb->lm", away, away) / (images - 1)


def _between_images(maps):
    def cosine(layer):
        vectors = [layer[:, 0], layer[:, 1:].mean(1)]
        bounds = [10 * np.median(np.abs(v), 1, keepdims=True) for v in vectors]
        clipped = [np.clip(v, -b, b) for v, b in zip(vectors, bounds, strict=True)]
        return max(_off_diagonal(cosine_similarity(v)) for v in clipped)

    return np.array([cosine(layer) for layer in maps.tokens.numpy().swapaxes(0, 1)])


def _token_rank(x):
    """Participation ratio of the eigenvalues of the covariance of unit tokens."""
    values = np.linalg.eigvalsh(np.cov((x / np.linalg.norm(x, axis=1, keepdims=True)).T))
    return values.sum() ** 2 / (values**2).sum()


def _rows_of(maps):
    return [[np.hstack(list(layer)) for layer in image] for image in _maps(maps)]


REFERENCES = {
    "layer_similarity": ("SciPy cdist", each_pair(_columns)),
    "layer_similarity_centred": ("SciPy cdist, correlation", each_pair(_correlation)),
    "similar_blocks": ("SciPy cdist", _similar),
    "map_overlap": ("NumPy minimum", _overlaps),
    "map_overlap_matched": ("NumPy minimum, all permutations", _matched),
    "content_overlap": ("NumPy, entry by entry", _content),
    "map_cka": ("scikit-learn KernelCenterer", _cka(_rows_of)),
    "head_similarity": ("scikit-learn cosine_similarity", pairs_of_heads(_cosine)),
    "head_divergence": ("SciPy jensenshannon", pairs_of_heads(_divergence)),
    "head_dependence": ("scikit-learn KernelCenterer", _dependence),
    "head_similarity_across_layers": ("scikit-learn cosine_similarity", across(_cosine)),
    "head_divergence_across_layers": ("SciPy jensenshannon", across(_divergence)),
    "row_entropy": ("SciPy entropy", each_head(lambda a: entropy(a, axis=1).mean())),
    "row_entropy_relative": ("SciPy entropy", each_head(lambda a: entropy(a, base=a.shape[1], axis=1).mean())),
    "row_gini": ("SciPy trapezoid, Lorenz curve", each_head(_gini)),
    "row_hoyer": (
        "NumPy norm",
        each_head(lambda a: np.mean((len(a) ** 0.5 - 1 / np.linalg.norm(a, axis=1)) / (len(a) ** 0.5 - 1))),
    ),
    "row_participation": ("NumPy norm", each_head(lambda a: np.mean(np.linalg.norm(a, axis=1) ** -2.0))),
    "row_top_mass": ("NumPy partition", each_head(lambda a: np.partition(a, -5, axis=1)[:, -5:].sum(1).mean())),
    "row_small_share": ("NumPy histogram", each_head(lambda a: np.histogram(a, [0, 1e-3, 1])[0][0] / a.size)),
    "head_confidence": ("NumPy linalg.norm, order inf", each_head(lambda a: np.linalg.norm(a, np.inf, axis=1).mean())),
    "query_information": ("SciPy entropy, relative", each_head(_information)),
    "position_share": ("whole maps, no sketch", _position),
    "attention_distance": ("SciPy cdist", each_head(_distance)),
    "own_row_mass": ("NumPy mask", each_head(_own(lambda i: i // GRID.cols))),
    "own_column_mass": ("NumPy mask", each_head(_own(lambda i: i % GRID.cols))),
    "prefix_mass": ("NumPy average", each_head(lambda a: np.average(a, axis=0)[:1])),
    "sink_mass": ("NumPy, ones @ A", each_head(lambda a: (np.ones(len(a)) @ a / len(a)).max())),
    "sink_rate": ("NumPy average", lambda maps: np.mean(each_head(lambda a: np.average(a[:, 0]) > 0.3)(maps), -1)),
    "rank_residual": ("NumPy lstsq", each_head(_residual)),
    "effective_rank": ("NumPy svd, SciPy entropy", _spectrum(lambda s: np.exp(entropy(s)))),
    "numerical_rank": ("NumPy matrix_rank", each_head(lambda a: np.linalg.matrix_rank(a, 1e-3 * np.linalg.norm(a, 2)))),
    "approximate_rank": (
        "NumPy svd, searchsorted",
        _spectrum(lambda s: 1 + np.searchsorted(np.cumsum(s**2) / np.sum(s**2), 0.9)),
    ),
    "lazy_rate": (
        "NumPy norms",
        lambda maps: np.mean(
            each_head(lambda a: np.linalg.norm(a, 2) ** 2 >= 0.9 * np.linalg.norm(a) ** 2)(maps), axis=-1
        ),
    ),
    "stable_rank": (
        "NumPy norms",
        each_head(lambda a: (np.linalg.norm(a) / np.linalg.norm(a, 2)) ** 2),
    ),
    "nuclear_ratio": ("NumPy norms", each_head(lambda a: np.linalg.norm(a, "nuc") / np.linalg.norm(a, 2))),
    "spectral_gap": ("NumPy svd", _spectrum(lambda s: 1 - s[1] / s[0])),
    "attention_rollout": ("NumPy multi_dot", _rollout),
    "attention_flow": ("networkx maximum_flow_value", _flow),
    "token_similarity": ("scikit-learn cosine_similarity", each_layer(lambda x: _off_diagonal(cosine_similarity(x)))),
    "token_layer_similarity": (
        "SciPy cdist",
        each_pair(lambda a, b: np.mean(1 - cdist(a, b, "cosine").diagonal()), _tokens_of),
    ),
    "token_cka": ("scikit-learn KernelCenterer", _cka(_tokens_of)),
    "token_residual": ("NumPy lstsq", each_layer(_residual)),
    "token_rank": ("NumPy cov, eigvalsh", each_layer(_token_rank)),
    "image_similarity": ("scikit-learn cosine_similarity", _between_images),
    "high_frequency": ("NumPy fft2", each_layer(_high)),
    "high_frequency_share": ("NumPy ifft2, Parseval", each_layer(_high_share)),
    "high_norm_tokens": ("NumPy quantile", each_layer(lambda x: np.mean(_norms(x) > 3))),
    "largest_token_norm": ("NumPy quantile", each_layer(lambda x: _norms(x).max())),
    "largest_activation": ("NumPy median", each_layer(lambda x: np.max(np.abs(x)) / np.median(np.abs(x)))),
    "own_value_similarity": (
        "SciPy cdist",
        with_values(lambda a, v: np.mean(1 - cdist(a @ v, v, "cosine").diagonal())),
    ),
    "value_similarity": (
        "scikit-learn cosine_similarity",
        with_values(lambda a, v: _off_diagonal(cosine_similarity(v))),
    ),
    "head_output_norm": ("NumPy norm", _output_norm),
    "head_output_similarity": ("scikit-learn cosine_similarity", _of_outputs),
    "value_weighted_prefix_mass": ("NumPy einsum", with_values(_weighted)),
}
"""name -> (by what, maps -> [image, *axes], or [*axes] for a number made of means)."""


def largest_difference(name, dtype=torch.float64):
    """Largest absolute difference between the metric and its reference."""
    maps = some_maps()
    narrow = AttentionMaps(
        maps.values.to(dtype), maps.image_ids, GRID, tokens=maps.tokens.to(dtype),
        value_vectors=maps.value_vectors.to(dtype),
    )  # fmt: skip
    metric, expected = METRICS[name], REFERENCES[name][1](maps)
    found = measure([narrow], [name], bootstrap=0)[name]
    if metric.from_mean is None and found.per_image is not None:
        return float(np.abs(found.per_image - expected).max())
    return float(np.abs(found.mean - expected).max())


def papers_of(name):
    """Those that the docstring names, by arXiv id."""
    return list(dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", METRICS[name].function.__doc__)))


def main():
    print("| metric | papers (arXiv) | references: loops in its test, and | largest difference, float64 | float32 |")
    print("|---|---|---|---|---|")
    for name, (by, _) in REFERENCES.items():
        double, single = (largest_difference(name, dtype) for dtype in (torch.float64, torch.float32))
        print(
            f"| `{name}` | {', '.join(papers_of(name)) or 'ours, or textbook'} | {by} | {double:.0e} | {single:.0e} |"
        )


if __name__ == "__main__":
    main()
