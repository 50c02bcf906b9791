"""The definitions, entry by entry in Python floats: slow, obvious, and sharing nothing with the package."""

import math


def cosine(a, b):
    """Cosine of two sequences; 0 if one of them is zero."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return dot / size if size > 0 else 0.0


def token_vectors(matrix, axis="key", center="none", exclude_prefix=0):
    """The vectors of the tokens of one [query, key] matrix, a list of lists."""
    n_queries, n_keys = len(matrix), len(matrix[0])
    if axis == "key":
        vectors = [[float(matrix[i][t]) for i in range(n_queries)] for t in range(exclude_prefix, n_keys)]
    else:
        vectors = [[float(matrix[t][j]) for j in range(n_keys)] for t in range(exclude_prefix, n_queries)]
    if center == "mean":
        vectors = [[x - sum(v) / len(v) for x in v] for v in vectors]
    if center == "uniform":
        vectors = [[x - 1 / n_keys for x in v] for v in vectors]
    return vectors


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def entropy(p):
    return -sum(float(x) * math.log(float(x)) for x in p if x > 0)


def jensen_shannon(p, q):
    """By its definition with Kullback-Leibler divergences, not by entropies."""

    def kl(a, b):
        return sum(float(x) * math.log(float(x) / y) for x, y in zip(a, b, strict=True) if x > 0)

    m = [(float(x) + float(y)) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2
