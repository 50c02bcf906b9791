"""Structured initialisation: before training, every head attends to the patch at one offset, as a convolution would.

Zheng et al. 2025, "Structured Initialization for Vision Transformers", arXiv:2505.19985 (a closed form), and Zheng et
al. 2024, "Structured Initialization for Attention in Vision Transformers", arXiv:2404.01139 (Adam). The model itself is
a plain ViT; positions are sinusoidal and fixed, because queries and keys are solved for them:
    softmax(P Wq^T Wk P^T / sqrt(head width)) = the shift of all patches by one offset in a k x k window
Mimetic initialisation (Trockman & Kolter 2023, arXiv:2305.09828) is the same class with another string.
"""

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from attnprobe.models.initialisers import Impulses, initialise, parse, reset_tables, use_sinusoidal_positions
from attnprobe.models.initialisers.names import TIMM
from attnprobe.models.variant import Paper, Variant

INITIALISER_OPTIONS = ("pseudo_input1", "pseudo_input2", "init_once", "solver", "compat")


class StructuredViT(VisionTransformer):
    """timm's ViT with the authors' initialisations.

    Args:
        sin_pe: fixed sinusoidal positions, for patches only, instead of learned ones.
        weight_init: "" (timm's), "skip" (PyTorch's), "mimetic<alpha>_<beta>" or "impulse<k>".
        pseudo_input1, pseudo_input2, init_once, solver, compat: see `initialise`.
        Everything else as timm's `VisionTransformer`.

    Attributes:
        impulses: the targets of every head; None unless initialised with impulses.

    Raises:
        InputError, ShapeError: see `initialise`.
    """

    impulses: Impulses | None = None

    def __init__(
        self,
        *args,
        sin_pe: bool = False,
        weight_init: str = "",
        **kwargs: Any,
    ) -> None:
        how = {name: kwargs.pop(name) for name in INITIALISER_OPTIONS if name in kwargs}
        if sin_pe:
            kwargs |= {"pos_embed": "none", "no_embed_class": True}
        timms = parse(weight_init) in TIMM
        kwargs["weight_init"] = weight_init if timms else "skip"
        super().__init__(*args, **kwargs)
        self.sin_pe = sin_pe
        if sin_pe:
            use_sinusoidal_positions(self)
        if timms:
            return
        reset_tables(self)
        self.impulses = initialise(self, weight_init, **how, reset=False)

    def set_input_size(self, *args, **kwargs) -> None:
        """As timm's, but the fixed table is computed for the new grid rather than resampled."""
        super().set_input_size(*args, **kwargs)
        if self.sin_pe:
            use_sinusoidal_positions(self)


STRUCTURED = Variant(
    name="structured",
    summary="starts with every head attending to one of the 3 x 3 nearest patches; fixed sinusoidal positions",
    paper=Paper("zheng2025structured", "2505.19985", 2025),
    model=StructuredViT,
    options={
        "weight_init": "impulse3",
        "sin_pe": True,
        "class_token": False,
        "no_embed_class": True,
        "global_pool": "avg",
    },
)

MIMETIC = Variant(
    name="mimetic",
    summary="starts with Wq^T Wk near 0.7 Z + 0.7 I and Wproj Wv near 0.4 Z - 0.4 I",
    paper=Paper("trockman2023mimetic", "2305.09828", 2023),
    model=StructuredViT,
    options={"weight_init": "mimetic0.7_0.7"},
)
