"""Whole models: logits, every map, block outputs, gradients and batch-norm statistics of each golden pair."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.layers import LayerNorm
from torch import Tensor, nn

from attnprobe.capturing import record
from attnprobe.models.variants.deepvit import DeepViT
from attnprobe.models.variants.refiner import Refiner
from attnprobe.models.variants.structured import StructuredViT
from attnprobe.models.variants.vit import PlainViT
from tests.parity.difference import FLOAT64_TOLERANCE, Difference, compare, worst_of_each


def geometry(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that every variant shares, in timm's words."""
    eps = config.pop("layernorm_eps", 1e-6)
    names = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "num_heads", "mlp_ratio", "qkv_bias")
    shared = {name: config.pop(name) for name in names if name in config}
    return {**shared, "norm_layer": partial(LayerNorm, eps=eps)}


def deepvit(config: dict[str, Any]) -> nn.Module:
    options = geometry(config)
    transform = config.pop("apply_transform")
    return DeepViT(
        **options,
        depth=config.pop("depth", len(transform)),
        reattention=[i for i, on in enumerate(transform) if on],
        transform_scale=config.pop("transform_scale", False),
        scale_adjustment=config.pop("scale_adjustment", 1.0),
        qk_scale=config.pop("qk_scale", None),
        conv_stem=config.pop("use_cnn_embed", False),
    )


def plain_vit(config: dict[str, Any]) -> nn.Module:
    options = geometry(config)
    transform = config.pop("apply_transform", ())
    for ignored in ("re_atten", "scale_adjustment", "transform_scale"):  # the control's code takes and ignores them
        config.pop(ignored, None)
    return PlainViT(**options, depth=config.pop("depth", len(transform)), conv_stem=config.pop("use_cnn_embed", False))


def refiner(config: dict[str, Any]) -> nn.Module:
    options = geometry(config)
    share, refine = config.pop("share_blocks"), config.pop("apply_transform")
    return Refiner(
        **options,
        depth=config.pop("depth"),
        share=share,
        refine=refine,
        head_expand=config.pop("head_expand", 3),
        qk_scale=config.pop("qk_scale", None),
        dense=config.pop("return_dense", False),
        mix_token=config.pop("mix_token", False),
        conv_stem=config.pop("use_cnn_embed", False),
    )


def structured_init(config: dict[str, Any]) -> nn.Module:
    options = geometry(config)
    names = ("depth", "class_token", "no_embed_class", "sin_pe", "global_pool", "weight_init")
    return StructuredViT(**options, **{name: config.pop(name) for name in names if name in config})


BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "deepvit": deepvit,
    "plain_vit": plain_vit,
    "refiner": refiner,
    "structured_init": structured_init,
}


def build(description: dict[str, Any]) -> nn.Module:
    """The model a golden JSON describes; refuses an option it does not know rather than ignoring it."""
    config = dict(description["config"])
    model = BUILDERS[description["variant"]](config)
    if config:
        raise KeyError(f"{description['name']}: options not understood: {sorted(config)}")
    return model


def observe(model: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """One evaluation forward: logits, embedding, maps at both sites, and block outputs."""
    model.eval()
    seen: dict[str, Tensor] = {}
    handle = model.blocks[0].register_forward_pre_hook(lambda _m, args: seen.update(embed=args[0].detach()))
    with torch.no_grad(), record(model, sites=("weights", "effective"), tokens=True) as recorder:
        seen["logits"] = model(pixels)
        taken = recorder.take(tuple(str(i) for i in range(len(pixels))))
    handle.remove()
    if getattr(model, "dense", False):
        with torch.no_grad():
            tokens = model.forward_features(pixels)
            seen["logits_cls"] = model.forward_head(tokens)
            seen["logits_aux"] = model.aux_head(tokens[:, model.num_prefix_tokens :])
    else:
        seen["logits_cls"] = seen["logits"]
    for maps in taken:
        for layer in range(maps.values.shape[1]):
            if maps.is_effective:
                seen[f"attn/{layer}"] = maps.values[:, layer]
            if maps.site == "weights":
                seen[f"attn_softmax/{layer}"] = maps.values[:, layer]
            seen[f"tokens/{layer}"] = maps.tokens[:, layer]
    return seen


def train_step(model: nn.Module, golden: dict[str, Tensor], pixels: Tensor) -> dict[str, Tensor]:
    """One training forward and backward from the loaded state, with the recorded cotangent."""
    model.train()
    pixels = pixels.clone().requires_grad_()
    if "train/bbox" in golden:
        box = tuple(golden["train/bbox"].tolist())
        model._box = lambda: box  # it is random; take the recorded one
    outputs = model(pixels)
    named = dict(zip(("logits", "aux_logits"), outputs if isinstance(outputs, tuple) else (outputs,), strict=False))
    loss = sum((value * golden[f"train/cotangent_{name}"].to(value)).sum() for name, value in named.items())
    loss.backward()
    seen = {"train/loss": loss.detach().reshape(1), "train/grad_input": pixels.grad}
    seen |= {f"train/{name}": value.detach() for name, value in named.items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    seen |= {f"train/grad/{name}": grad for name, grad in gradients.items()}
    seen |= {f"train/bn/{name}": value for name, value in model.named_buffers()}
    seen["gradients"] = gradients
    return seen


def compare_float32(description: dict[str, Any], golden: dict[str, Tensor]) -> Iterator[Difference]:
    """Every recorded tensor against ours, with the file's own tolerances."""
    model = build(description)
    model.load_state_dict(states(golden), strict=True)
    seen = observe(model, golden["input"])
    model.load_state_dict(states(golden), strict=True)
    step = train_step(model, golden, golden["input"])
    gradients = step.pop("gradients")
    order = description["train"]["grad_norm_order"]
    seen |= step
    seen["train/grad_norms"] = torch.stack([gradients[name].norm() for name in order])
    skip = ("state/", "const/", "train/cotangent")
    for key, theirs in golden.items():
        if key.startswith(skip) or key in ("input", "train/bbox"):
            continue
        quantity = key if key in description["tolerances"] else key.rsplit("/", 1)[0]
        quantity = next(q for q in (key, quantity, "/".join(key.split("/")[:2]), key.split("/")[0])
                        if q in description["tolerances"])  # fmt: skip
        tolerance = description["tolerances"][quantity]
        yield compare(quantity, seen[key], theirs, tolerance["atol"], tolerance["rtol"])


def compare_float64(description: dict[str, Any], golden: dict[str, Tensor]) -> Iterator[Difference]:
    """Logits, training logits, loss and gradient norms against the reference run in float64."""
    reference = description["float64_reference"]
    pixels = golden["input"].double()
    model = build(description).double()
    double = {k: v.double() if v.is_floating_point() else v for k, v in states(golden).items()}
    model.load_state_dict(double, strict=True)
    seen = observe(model, pixels)
    model.load_state_dict(double, strict=True)
    step = train_step(model, golden, pixels)
    norms = torch.stack([step["gradients"][n].norm() for n in description["train"]["grad_norm_order"]])
    pairs = {
        "logits": (seen["logits"], reference["logits"]),
        "train_logits": (step["train/logits"], reference["train_logits"]),
        "train_loss": (step["train/loss"], reference["train_loss"]),
        **(
            {"train_aux_logits": (step["train/aux_logits"], reference["train_aux_logits"])}
            if "train/aux_logits" in step
            else {}
        ),
        "train_grad_norms": (norms, reference["train_grad_norms"]),
    }
    for quantity, (ours, theirs) in pairs.items():
        theirs = torch.tensor(theirs, dtype=torch.float64).reshape(ours.shape)
        scale = theirs.abs().max().item()
        yield compare(quantity, ours, theirs, FLOAT64_TOLERANCE * scale, FLOAT64_TOLERANCE)


def states(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("state/"): value for key, value in golden.items() if key.startswith("state/")}


def covers(path: Path) -> bool:
    """Whether NAME.json describes a model we can build."""
    return path.with_suffix(".safetensors").exists() and json.loads(path.read_text()).get("variant") in BUILDERS


def check(path: Path, quick: bool = False) -> Iterator[tuple[str, list[Difference]]]:
    """("NAME float32" or "NAME float64", the worst difference of every quantity) of one golden pair."""
    description = json.loads(path.read_text())
    golden = load_file(path.with_suffix(".safetensors"))
    yield f"{path.stem} float32", worst_of_each(compare_float32(description, golden))
    yield f"{path.stem} float64", worst_of_each(compare_float64(description, golden))
