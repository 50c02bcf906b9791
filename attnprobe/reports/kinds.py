"""Kinds of collapse that a verdict knows: by which number each is judged, from where on, and who says so.

Every bar is `Kind.bar` and can be set for one report (`Examined.bars`, `--bar KIND=NUMBER`). The untrained network is
shown as a reference and is no bar: a trained model as near uniform as an untrained one is near uniform.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnprobe.core.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of collapse.

    Attributes:
        name: as `--fail-on` and the JSON know it.
        words: as the headline does; `meaning`: what such a block does, in one sentence.
        quantity: what the number is; `metric`: which measurement it comes from.
        bar: a block is beyond it if its number is above it, or below it where `below`.
        source: who describes the kind.
        why: where the bar comes from.
        to_the_end: only blocks count after which all are beyond the bar, too; a class token starts out alike in all
            images.
        possible: least and largest value of the number; intervals end there.
        of_maps: it is measured on maps, not on the outputs of blocks.
    """

    name: str
    words: str
    meaning: str
    quantity: str
    metric: str
    bar: float
    source: str
    why: str
    below: bool = False
    to_the_end: bool = False
    of_maps: bool = True
    possible: tuple[float | None, float | None] = (0.0, 1.0)

    @property
    def explanation(self) -> str:
        """Definition of the kind: number, bar and source, in lines."""
        side = "below" if self.below else "above"
        return (
            f"{self.words[0].upper()}{self.words[1:]}, a kind of collapse that the verdict knows. {self.meaning}\n\n"
            f"Judged by: {self.quantity}, block by block (attnprobe explain {self.metric}).\n"
            f"Found {side} {self.bar:.3g}, or the bar of --bar {self.name}=NUMBER. Why there: {self.why}.\n"
            f"Source: {self.source}.\n"
            f"In conditions: --fail-on '{self.name}>0' (blocks), '{self.name}.found==1', '{self.name}.number'."
        )


KINDS = (
    Kind(
        "representation_collapse", "representation collapse across images",
        "The outputs for different images point the same way, so a classifier cannot tell the images apart.",
        "cosine between images of the class token or mean patch", "image_similarity", 0.95, "arXiv:2110.09348",
        "ours: what tells two images apart is then less than a third of a vector's length, sqrt(1 - 0.95^2) = 0.31",
        to_the_end=True,
        of_maps=False, possible=(-1.0, 1.0),
    ),
    Kind(
        "oversmoothing", "oversmoothing of tokens",
        "The tokens of an image have become alike.",
        "cosine between tokens", "token_similarity", 0.9,
        "arXiv:2104.12753, arXiv:2203.06345", "ours: as tight as the 0.9 of similar blocks", of_maps=False,
        possible=(-1.0, 1.0),
    ),
    Kind(
        "dimensional_collapse", "dimensional collapse of tokens",
        "The tokens of an image differ in one or two directions only.",
        "effective rank of tokens", "token_rank", 2.0,
        "arXiv:2110.09348, of representations over images", "ours: one direction then holds more than half of "
        "the variance", below=True, of_maps=False, possible=(1.0, None),
    ),
    Kind(
        "repetition", "repetition",
        "A block attends to the same places as an earlier block.",
        "overlap", "map_overlap", 0.85,
        "arXiv:2103.11886; the measure is ours", "ours: copies drawn with noise overlap 0.9 to 1, unrelated peaked "
        "maps 0.2 to 0.5; in 7 of 8 small models blocks above it do less harm with the previous block's map than "
        "the others",
    ),
    Kind(
        "near_uniform", "near-uniform attention",
        "Each query attends to all tokens nearly alike, so the block passes on their average.",
        "exp(entropy) over tokens",
        "row_entropy", 0.9, "arXiv:1906.04341, the entropy", "ours: softmax rows of logits with standard deviation "
        "below 0.46 are above it, untrained networks at 0.99",
    ),
    Kind(
        "entropy_collapse", "entropy collapse",
        "Each query attends to hardly more than one token.",
        "tokens attended to, exp(entropy),", "row_entropy", 1.5,
        "arXiv:2303.06296", "ours: half a token beyond the least there can be; three heads of four with one key each "
        "and a fourth with five are at it", below=True, possible=(1.0, None),
    ),
    Kind(
        "sink_collapse", "sink collapse",
        "Most of the attention goes to one token, or to the class and register tokens.",
        "attention on one token or the prefix", "sink_mass", 0.5,
        "arXiv:2410.10781", "ours: most of the attention of the block; as for a head of type sink",
    ),
    Kind(
        "rank_collapse", "rank collapse of maps",
        "All queries of an image attend to the same tokens.",
        "distance from equal rows", "rank_residual", 0.2,
        "arXiv:2103.03404, of tokens", "ours: 96 % of a map's squared length is then the same row for all queries",
        below=True,
    ),
    Kind(
        "image_independent", "image-independent attention",
        "The maps are nearly the same in every image.",
        "overlap with the same block of another image",
        "content_overlap", 0.85, "ours", "ours: as for repetition",
    ),
    Kind(
        "head_redundancy", "head redundancy",
        "Most heads of a block could be left out: others attend alike.",
        "share of heads that another could stand for", "head_divergence",
        2 / 3, "arXiv:1906.04341, the distance", "ours: of 12 heads 4 are left, of 4 one",
    ),
    Kind(
        "massive_activations", "massive activations",
        "A few entries of a block's output are far larger than all others.",
        "largest entry over the median one", "largest_activation", 100.0,
        "arXiv:2402.17762", "ours: a tenth of the 1,000 of that paper, and more than ten times what normal entries "
        "reach", of_maps=False, possible=(1.0, None),
    ),
)  # fmt: skip
"""In the order in which ties are broken, the nearest to the classifier first."""

EXTENT = 0.25
"""A kind in a smaller share of the blocks is named last, as one of single blocks: the first block of a sound network
is often near uniform, and one block beyond a bar comes and goes with the seed. A single block counts where it all but
copies another (nearer to an overlap of 1 than to the bar), since it could go, and where its output is the last, which
is what the classifier sees. Ours."""

OTHER_BARS = "counts of the literature, with bars of their own"
"""Said where similar blocks and redundant heads are counted beside the kinds: a page can name neither kind and count
both."""

CONTENT = 0.5
"""A block that repeats copies content if more than this share of what could be its own image's is: with O the overlap
and O0 that with another image, (O - O0) / (1 - O0), and O0 is not above the bar of repetition itself. Else its maps are
the same in all images. Half-way; ours."""

CLOSER = 0.5
"""A block repeats another than the previous one, or that one with heads matched, only if more than this share of its
distance, 1 - overlap, goes away; ours."""

SINK, LOCAL = 0.5, 0.5
"""Maps that are the same in all images are a sink if one token has more than this of the attention, a local window if
the attention distance is below this share of that of uniform attention, as in `head_types`; else by position."""


NAMES = tuple(kind.name for kind in KINDS)


def kind_named(name: str) -> Kind:
    return KINDS[NAMES.index(name)]


def checked_bars(bars: Mapping[str, Any]) -> dict[str, float]:
    """Bars by the names of kinds.

    Raises:
        InputError: an unknown kind, or a bar that is no number.
    """
    for name, bar in bars.items():
        if name not in NAMES:
            raise InputError(f"no kind of collapse is named {name!r}.{did_you_mean(name, NAMES)}")
        if isinstance(bar, bool) or not isinstance(bar, int | float):
            raise InputError(f"the bar of {name} must be a number, got {bar!r}; as in {name}={kind_named(name).bar:g}.")
    return {name: float(bar) for name, bar in bars.items()}
