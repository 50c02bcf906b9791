"""Every factor of a product of matrices, seen one level below PyTorch's functions: no names, no modules."""

from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode


class Factors(TorchDispatchMode):
    """Collects both factors of every batched product, as [batch, row, column]; the second one transposed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.mm):
            left, right = args[-2:]
            self.seen += [left.detach().clone(), right.mT.detach().clone()]
        return func(*args, **(kwargs or {}))


def factors_of(model, pixels):
    """All factors of one forward pass with explicit instead of fused attention."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Factors() as factors:
            model(pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return factors.seen


def missing(blocks, factors):
    """How far [block, query, key] is from the nearest matrices of one factor: 0 if all of them were factors."""
    n = blocks.shape[0]
    flat = blocks.reshape(n, -1).double()
    nearest = float("inf")
    for factor in factors:
        factor = factor if factor.ndim == 3 else factor.unsqueeze(0)
        if factor.shape[1:] == blocks.shape[1:] and len(factor) <= 2 * n:
            near = [(factor.flatten(1).double() - block).abs().amax(1).min() for block in flat]
            nearest = min(nearest, torch.stack(near).max().item())
    return nearest


@contextmanager
def no_trace(model):
    """Checks that a model is left as it was: modes, switches, hooks, weights."""
    modules = list(model.modules())
    before = [(m.training, getattr(m, "fused_attn", None)) for m in modules]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    yield
    assert [(m.training, getattr(m, "fused_attn", None)) for m in modules] == before
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules] == hooks
