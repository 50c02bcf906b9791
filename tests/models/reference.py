"""References for the tests of variants: the plain ViT, and attention computed one number at a time."""

import math

import torch
from timm.models.vision_transformer import VisionTransformer

from attnprobe.capturing import certify, record

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 4, "depth": 3, "mlp_ratio": 2, "num_classes": 5}


def randomised(module, seed=0):
    """The module in float64 and evaluation mode, no parameter left at 0 or 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module.double().eval()


def set_fused(model, on):
    for block in model.blocks:
        block.attn.fused_attn = on
    return model


def assert_is_plain(model, fused=(False, True)):
    """timm's ViT with the weights of the same names gives the same logits, bit for bit."""
    plain = VisionTransformer(**TINY).to(next(model.parameters()).dtype)
    state = model.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    pixels = torch.randn(2, 3, 16, 16, dtype=next(model.parameters()).dtype)
    for on in fused:
        with torch.no_grad():
            ours, theirs = set_fused(model.eval(), on)(pixels), set_fused(plain.eval(), on)(pixels)
        assert torch.equal(ours, theirs), f"fused_attn={on}: off by {(ours - theirs).abs().max():.1e}"


def assert_paths_agree(model):
    """Fused and explicit attention: outputs, and gradients of all parameters and pixels, within 1e-10 in float64."""
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    results = []
    for on in (True, False):
        x = pixels.clone().requires_grad_()
        model.zero_grad()
        logits = set_fused(model, on)(x)
        (logits * torch.arange(1.0, 6.0)).sum().backward()
        results.append([logits.detach(), x.grad, *(p.grad.clone() for p in model.parameters())])
    for fast, explicit in zip(*results, strict=True):
        torch.testing.assert_close(fast, explicit, rtol=1e-10, atol=1e-10)


def tokens(width=16, seed=2):
    torch.manual_seed(seed)
    return torch.randn(2, 5, width, dtype=torch.float64)


def record_with_inputs(model, sites=("weights",)):
    """The input of every block's qkv layer, [image, token, width], and the maps of two random images at `sites`."""
    inputs = []
    for block in model.blocks:
        block.attn.qkv.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad(), record(model, sites) as recorder:
        model(pixels)
        maps = recorder.take()
    assert certify(model, pixels).output_equal
    return inputs[: len(model.blocks)], maps


def heads_of(layer, x, which):
    """Queries (0), keys (1) or values (2) of timm's attention, [image, head, token, head width]."""
    p, width = layer.head_dim, layer.num_heads * layer.head_dim
    weight, bias = layer.qkv.weight[which * width : (which + 1) * width], layer.qkv.bias[which * width :][:width]
    return torch.stack(
        [x @ weight[h * p : (h + 1) * p].T + bias[h * p : (h + 1) * p] for h in range(layer.num_heads)], 1
    )


def loop_scores(layer, x):
    """Q K^T / sqrt(P), one dot product at a time."""
    q, k = heads_of(layer, x, 0), heads_of(layer, x, 1)
    scores = torch.zeros(*q.shape[:3], q.shape[2], dtype=x.dtype)
    for i, h, a, b in all_indices(scores):
        scores[i, h, a, b] = sum(float(q[i, h, a, c]) * float(k[i, h, b, c]) for c in range(q.shape[3]))
    return scores / math.sqrt(layer.head_dim)


def loop_softmax(scores):
    """Each row of the last axis by itself, with Python's exp."""
    maps = torch.zeros_like(scores)
    for i, h, a, b in all_indices(scores):
        maps[i, h, a, b] = math.exp(scores[i, h, a, b]) / sum(math.exp(s) for s in scores[i, h, a].tolist())
    return maps


def all_indices(maps):
    return torch.cartesian_prod(*(torch.arange(n) for n in maps.shape)).tolist()


def project(layer, outputs):
    """Heads' outputs [image, head, token, head width], one after the other, through the output projection."""
    joined = torch.cat(list(outputs.unbind(1)), dim=-1)
    return joined @ layer.proj.weight.T + layer.proj.bias
