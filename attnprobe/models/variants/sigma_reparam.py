"""Sigma-reparametrisation: each linear layer learns its largest singular value apart from its direction.

Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", arXiv:2303.06296:
    W' = gamma W / sigma(W),   gamma = 1 at the start
sigma(W) = u^T W v, where one step of power iteration per training forward pass keeps u and v up to date; gradients
flow through W alone. With gamma = sigma(W) this is the plain ViT, bit for bit. Maps are untouched, so the fused kernel
runs. All linear layers of the blocks are treated; the head stays plain, so that it can be exchanged.
"""

from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from attnprobe.models.variant import Paper, Variant

FIRST_ITERATIONS = 20
"""Power iterations when a layer is made; sigma of a fresh layer is then right to about a percent."""


class SigmaLinear(nn.Linear):
    """A linear layer with weight gamma W / sigma(W)."""

    u: Tensor
    v: Tensor

    def __init__(self, in_features: int, out_features: int, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, **kwargs)
        self.gamma = nn.Parameter(self.weight.new_ones(1))
        self.register_buffer("u", torch.zeros_like(self.weight[:, 0]))
        self.register_buffer("v", F.normalize(torch.randn_like(self.weight[0]), dim=0))

    @classmethod
    def of(cls, plain: nn.Linear) -> Self:
        """The same layer, its initial weights included."""
        like = {"device": plain.weight.device, "dtype": plain.weight.dtype}
        layer = cls(plain.in_features, plain.out_features, bias=plain.bias is not None, **like)
        layer.weight, layer.bias = plain.weight, plain.bias
        for _ in range(0 if plain.weight.is_meta else FIRST_ITERATIONS):
            layer.iterate()
        return layer

    @torch.no_grad()
    def iterate(self) -> None:
        """One step of power iteration. Elementwise, because a product would be rounded to bfloat16 under autocast."""
        self.u.copy_(F.normalize((self.weight * self.v).sum(1), dim=0))
        self.v.copy_(F.normalize((self.weight * self.u[:, None]).sum(0), dim=0))

    def sigma(self) -> Tensor:
        """u^T W v of unit vectors, a number.

        Normalised here too, because a moving average of the model averages u and v, and the mean of unit vectors is
        shorter than 1. That copies them as well, so that a second forward pass may move them before backward.
        """
        return (self.weight * torch.outer(F.normalize(self.u, dim=0), F.normalize(self.v, dim=0))).sum()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.gamma / self.sigma()) * self.weight, self.bias)


class SigmaReparamViT(VisionTransformer):
    """A ViT with reparametrised linear layers; arguments as timm's `VisionTransformer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in list(self.blocks.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, SigmaLinear.of(child))

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As timm's. Iterates here and not in each layer, which gradient checkpointing would run twice."""
        if self.training:
            for module in self.blocks.modules():
                if isinstance(module, SigmaLinear):
                    module.iterate()
        return super().forward_features(x, *args, **kwargs)


SIGMA_REPARAM = Variant(
    name="sigmareparam",
    summary="linear layers learn their largest singular value apart from their direction",
    paper=Paper("zhai2023stabilizing", "2303.06296", 2023),
    model=SigmaReparamViT,
)
