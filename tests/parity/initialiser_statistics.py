"""What is recorded of an initialised model in init_stats.json, computed anew from ours."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.models.initialisers import targets
from attnprobe.models.variants.structured import StructuredViT


def statistics(model: StructuredViT, tokens: Tensor) -> dict[str, Tensor]:
    """Every quantity of a summary, one value per block, or per block and head, or one."""
    per_block = [block_statistics(model, block, tokens) for block in range(len(model.blocks))]
    found = {key: torch.stack([values[key] for values in per_block]) for key in per_block[0]}
    found["attn_nobias.row_max_out_of_bounds_rows"] = _defined(found.get("attn_nobias.row_max_out_of_bounds_rows"))
    found["attn_withbias.row_max_out_of_bounds_rows"] = _defined(found.get("attn_withbias.row_max_out_of_bounds_rows"))
    elsewhere: dict[str, list[Tensor]] = {}
    for name, p in model.named_parameters():
        if ".attn." not in name:
            parts = ["*" if part.isdigit() else part for part in name.split(".")]
            elsewhere.setdefault(".".join(parts), []).append(p.detach())
    for name, tensors in elsewhere.items():
        found[f"elsewhere.std.{name}"] = torch.stack([p.std() for p in tensors])
        found[f"elsewhere.mean.{name}"] = torch.stack([p.mean() for p in tensors])
    if model.impulses is not None:
        wanted = targets.shifts(*model.patch_embed.grid_size, model.impulses.offsets[0])
        found["loss_printed_at_end"] = model.impulses.losses[0, -1:]
        found["loss_uniform_attention"] = F.mse_loss(torch.full_like(wanted, 1 / wanted.shape[-1]), wanted)
        ratio = found["loss_printed_at_end"] / found["loss_uniform_attention"]
        found["loss_printed_at_end_over_loss_uniform_attention"] = ratio
        found["column_norm_target"] = torch.tensor(model.impulses.column_norms[:1])
    return found


def block_statistics(model: StructuredViT, block: int, tokens: Tensor) -> dict[str, Tensor]:
    attention = model.blocks[block].attn
    query, key, value = attention.qkv.weight.detach().chunk(3)
    output = attention.proj.weight.detach()
    found: dict[str, Tensor] = {}
    for name, weight in {"Wq": query, "Wk": key, "Wv": value, "Wproj": output}.items():
        found |= {f"fro.{name}": weight.norm(), f"std.{name}": weight.std(), f"absmax.{name}": weight.abs().max()}
    biases = [*attention.qkv.bias.detach().chunk(3), attention.proj.bias.detach()]
    for name, bias in zip(("q", "k", "v", "proj"), biases, strict=True):
        found |= {f"std.bias_{name}": bias.std(), f"absmax.bias_{name}": bias.abs().max()}
    q, k = (weight.unflatten(0, (attention.num_heads, -1)) for weight in (query, key))
    found |= {"fro.Wq_per_head": q.norm(dim=(1, 2)), "fro.Wk_per_head": k.norm(dim=(1, 2))}
    found |= product_statistics("QKt_per_head", q.mT @ k)
    found["QKt_per_head.top_singular_value"] = torch.linalg.matrix_norm(q.mT @ k, ord=2)
    found |= product_statistics("Wproj_at_Wv (effective value-output map, transposed)", output @ value)
    found |= product_statistics("Wv_at_Wproj", value @ output)
    norms = {
        "Wq_norm_over_inputs_per_output": query.norm(dim=1),
        "Wk_norm_over_headdim_per_head_and_input": k.norm(dim=1),
    }
    for name, values in norms.items():
        found |= {f"{name}.mean": values.mean(), f"{name}.min": values.min(), f"{name}.max": values.max()}
    offsets = None if model.impulses is None else model.impulses.offsets[block]
    wanted = None if offsets is None else targets.shifts(*model.patch_embed.grid_size, offsets)
    for name, bias in {"attn_nobias": False, "attn_withbias": True}.items():
        maps = block_maps(model, block, tokens, bias=bias)
        found |= {f"{name}.{quantity}": value for quantity, value in map_statistics(maps, wanted).items()}
    return found


def product_statistics(name: str, matrices: Tensor) -> dict[str, Tensor]:
    """Matrices [..., width, width] -> diagonal mean, standard deviation off it, norm."""
    off = ~torch.eye(matrices.shape[-1], dtype=torch.bool)
    return {
        f"{name}.diag_mean": matrices.diagonal(dim1=-2, dim2=-1).mean(-1),
        f"{name}.offdiag_std": matrices[..., off].std(-1),
        f"{name}.fro": torch.linalg.matrix_norm(matrices),
    }


def map_statistics(maps: Tensor, wanted: Tensor | None) -> dict[str, Tensor]:
    """Maps and targets [head, query, key] -> one value per head."""
    entropy = -(maps * maps.clamp_min(1e-38).log()).sum(-1).mean(-1) / math.log(maps.shape[-1])
    found = {"row_max_mean": maps.amax(-1).mean(-1), "row_entropy_over_logN": entropy}
    if wanted is None:
        return found
    has_target = wanted.sum(-1) > 0
    hits = (maps.argmax(-1) == wanted.argmax(-1)).float()
    return found | {
        "mse_to_target_per_head": (maps - wanted).square().mean((1, 2)),
        "mse_to_target": (maps - wanted).square().mean(),
        "mass_on_target_in_bounds": _mean_where((maps * wanted).sum(-1), has_target),
        "argmax_hits_target_in_bounds": _mean_where(hits, has_target),
        "row_max_out_of_bounds_rows": _mean_where(maps.amax(-1), ~has_target),
    }


def block_maps(model: StructuredViT, block: int, tokens: Tensor, *, bias: bool) -> Tensor:
    """softmax(scale * (P Wq^T + b)(P Wk^T + b)^T) of one block, [head, query, key]."""
    attention = model.blocks[block].attn
    wide = attention.qkv
    q, k, _ = F.linear(tokens, wide.weight, wide.bias if bias else None).detach().chunk(3, dim=-1)
    q, k = (part.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1) for part in (q, k))
    return (attention.scale * q @ k.mT).softmax(-1)


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis where the mask is true; NaN where it nowhere is."""
    return (values * mask).sum(-1) / mask.sum(-1)


def _defined(values: Tensor | None) -> Tensor:
    return torch.empty(0) if values is None else values[~values.isnan()]
