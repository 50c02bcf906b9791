"""Loops compiled by numba, for CPUs and float32; the extra `[fast]`. Nothing needs them, results differ by rounding.

Question: where do compiled loops pay? Choice: where whole arrays would be written and read again between two steps of
which each is quick: logarithms of mixtures of two heads (24 ms instead of 50 for 16 layers with 12 heads of 197 tokens,
on a busy core of an Intel Xeon), differences of rows of two layers (10 instead of 18). Logarithms of the maps
themselves do not, 9 ms and 5 by NumPy (AMD EPYC), nor do products of the columns of two layers, 25 ms and 18 by
PyTorch, which turns them into rows.
"""

# pyright: reportMissingImports=false
import numba
import numpy as np

REORDERED = {"reassoc", "contract", "nsz"}
"""Sums in any order, so that several entries are added up at once; what is not finite stays so."""

CHUNK = 512
"""Entries that are summed up in float32, and their sums in float64; a chunk of 12 heads fits into the first cache."""

ONE, HALF = np.float32(1), np.float32(0.5)
SQRT_HALF = np.int32(0x3F3504F3)
"""The bits of sqrt(1/2) as a float32."""

# fmt: off
COEFFICIENTS = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)
# fmt: on
C0, C1, C2, C3, C4, C5, C6, C7, C8 = map(np.float32, COEFFICIENTS)
LN2 = np.float32(0.6931471805599453)


@numba.njit(inline="always", fastmath=REORDERED)
def ln(x):
    """Natural logarithm of a normal float32, relative error below 3e-7: a polynomial of the mantissa, from Cephes."""
    bits = np.float32(x).view(np.int32)
    exponent = (bits - SQRT_HALF) >> np.int32(23)
    t = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - ONE
    y = (((C0 * t + C1) * t + C2) * t + C3) * t + C4
    y = (((y * t + C5) * t + C6) * t + C7) * t + C8
    return t + t * t * (y * t - HALF) + np.float32(exponent) * LN2


@numba.njit(nogil=True, cache=True, fastmath=REORDERED)
def mixtures(heads, found):
    """Sum of m ln m, m = (p + q) / 2, of pairs of heads of [image, head, entry], into [image, head, head > head]."""
    tiny = np.float32(2 * 1.1754944e-38)
    n_images, n_heads, n_entries = heads.shape
    halves = np.empty((n_heads, CHUNK), np.float32)
    for image in range(n_images):
        for start in range(0, n_entries, CHUNK):
            width = min(CHUNK, n_entries - start)
            for h in range(n_heads):
                for k in range(width):
                    x = heads[image, h, start + k]
                    halves[h, k] = HALF * (tiny if x < tiny else x)
            for h in range(n_heads):
                for other in range(h + 1, n_heads):
                    one, two = halves[h], halves[other]
                    part = np.float32(0)
                    for k in range(width):
                        m = one[k] + two[k]
                        part += m * ln(m)
                    found[image, h, other] += part


@numba.njit(nogil=True, cache=True, fastmath=REORDERED)
def differences(maps, every, found):
    """Sum of |a - b| of pairs of layers of [image, layer, head, query, key], into [image, layer, layer < layer].

    At every n-th query; of neighbours at all.
    """
    n_images, n_layers, n_heads, n_queries, n_keys = maps.shape
    for image in range(n_images):
        for head in range(n_heads):
            for query in range(n_queries):
                for one in range(1, n_layers):
                    a = maps[image, one, head, query]
                    for other in range(0 if query % every == 0 else one - 1, one):
                        b = maps[image, other, head, query]
                        part = np.float32(0)
                        for k in range(n_keys):
                            part += abs(a[k] - b[k])
                        found[image, one, other] += part
