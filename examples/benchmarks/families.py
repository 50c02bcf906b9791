"""Which vision transformers can be captured, and is what is captured what they compute? A table over all families.

    python examples/benchmarks/families.py [--only swin] [--group timm]

One small model with random weights of every family of timm, torchvision and Hugging Face that has softmax attention,
and one exported to ONNX. Of each: the layers captured of the softmaxes that ran (counted below PyTorch's functions,
where no name and no module is known), the largest |A V - what the layer computed|, the largest distance of a map from
the nearest factor of a product of matrices in a run of its own, whether the output with hooks equals the output without
bit for bit, and of how many stages perturbation proves where the tokens are. The model must be left as it was. A family
that is not covered whole, or whose tokens' places are not proved, says why.

    python examples/benchmarks/families.py --times       # what the perturbation proofs cost, over timm's families
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import timm
import torch
import torchvision
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnprobe.capturing import Certificate, certify, record
from attnprobe.capturing.perturbation import locate
from attnprobe.capturing.places import Located, Places
from attnprobe.core.errors import CaptureError
from attnprobe.models.onnx_model import OnnxModel

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.capturing.oracle import factors_of, missing, no_trace

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Family:
    """One row: how to build a small model, the side of its images, and why softmaxes may exceed layers."""

    group: str
    name: str
    model: str
    build: Build
    size: int
    reason: str = ""


def of_timm(family: str, model: str, size: int, reason: str = "", **options: Any) -> Family:
    return Family("timm", family, model, partial(timm.create_model, model, num_classes=3, **options), size, reason)


SWIN = {"img_size": 64, "window_size": 4, "depths": (2, 1), "embed_dim": 24, "num_heads": (2, 3)}
SMALL = {"img_size": 32, "depth": 2}
NARROW = {**SMALL, "embed_dim": 48, "num_heads": 3}

TIMM = (
    of_timm("beit", "beit_base_patch16_224", 32, **NARROW),
    of_timm("byoanet", "botnet26t_256", 256),
    of_timm("byoanet", "halonet26t", 256),
    of_timm("byobnet", "resnet50_clip", 224),
    of_timm("cait", "cait_xxs24_224", 32, **SMALL),
    of_timm("coat", "coat_tiny", 224),
    of_timm(
        "convit",
        "convit_tiny",
        32,
        "its gated positional layers make one map of two softmaxes each",
        img_size=32,
        depth=3,
        local_up_to_layer=2,
    ),
    of_timm("cpubone", "cpubone_b0_bfrobust", 256),
    of_timm("crossvit", "crossvit_tiny_240", 240),
    of_timm("csatv2", "csatv2", 512),
    of_timm("davit", "davit_tiny", 112, depths=(1, 1), embed_dims=(32, 64), num_heads=(2, 4)),
    of_timm("deepseek_vit", "deepseek_vit_412m", 56, img_size=56, depth=2, embed_dim=64, num_heads=4),
    of_timm("deit", "deit_tiny_distilled_patch16_224", 32, **SMALL),
    of_timm("edgenext", "edgenext_xx_small", 256),
    of_timm("efficientformer", "efficientformer_l1", 224),
    of_timm("efficientformer_v2", "efficientformerv2_s0", 224),
    of_timm("efficientvim", "efficientvim_m1", 224),
    of_timm("efficientvit_msra", "efficientvit_m0", 224),
    of_timm("eva", "eva02_tiny_patch14_224", 28, img_size=28, depth=2),
    of_timm("fastvit", "fastvit_sa12", 256),
    of_timm("gcvit", "gcvit_xxtiny", 224),
    of_timm("gemma4_vit", "gemma4_vit_167m", 96, img_size=96, depth=2, embed_dim=64, num_heads=4, head_dim=16),
    of_timm("hiera", "hiera_tiny_224", 64, img_size=(64, 64), stages=(1, 1, 2), q_pool=2),
    of_timm("hieradet_sam2", "sam2_hiera_tiny", 224),
    of_timm("iformer", "iformer_t", 224),
    of_timm("levit", "levit_128s", 224),
    of_timm("lowformer", "lowformer_b0", 224),
    of_timm("maxxvit", "maxvit_pico_rw_256", 64, img_size=64, depths=(1, 1), embed_dim=(32, 64)),
    of_timm("maxxvit", "coatnet_nano_rw_224", 224),
    of_timm("metaformer", "caformer_s18", 224),
    of_timm("mobilevit", "mobilevit_xxs", 256),
    of_timm("mobilevit", "mobilevitv2_050", 256, "separable attention: its softmax weighs tokens, there is no map"),
    Family(
        "timm",
        "mvitv2",
        "MultiScaleVit",
        partial(MultiScaleVit, MultiScaleVitCfg(depths=(1, 2)), img_size=64, num_classes=3),
        64,
    ),
    of_timm("naflexvit", "naflexvit_base_patch16_gap", 64, depth=2, embed_dim=48, num_heads=3),
    of_timm("nest", "nest_tiny", 224),
    of_timm("nextvit", "nextvit_small", 224),
    of_timm("pit", "pit_ti_224", 224),
    of_timm("pvt_v2", "pvt_v2_b0", 64, depths=(1, 1, 1, 1)),
    of_timm("qwen3_vit", "qwen3_vit_88m", 64, img_size=64, depth=2, embed_dim=64, num_heads=4),
    of_timm("shvit", "shvit_s1", 224),
    of_timm("swin_transformer", "swin_tiny_patch4_window7_224", 64, **SWIN),
    of_timm("swin_transformer_v2", "swinv2_tiny_window8_256", 64, **SWIN),
    of_timm("swin_transformer_v2_cr", "swinv2_cr_tiny_224", 64, **SWIN),
    of_timm("tiny_vit", "tiny_vit_5m_224", 224),
    of_timm("tnt", "tnt_s_legacy_patch16_224", 32, **SMALL),
    of_timm("twins", "twins_svt_small", 224, depths=(2, 2, 1, 1)),
    of_timm("visformer", "visformer_tiny", 224),
    of_timm("vision_transformer", "vit_tiny_patch16_224", 32, **SMALL),
    of_timm("vision_transformer, registers", "vit_tiny_patch16_224", 32, **SMALL, reg_tokens=4),
    of_timm("vision_transformer, SigLIP pool", "vit_base_patch16_siglip_224", 32, **NARROW),
    of_timm("vision_transformer_relpos", "vit_relpos_small_patch16_224", 32, **SMALL),
    of_timm("vision_transformer_sam", "samvit_base_patch16", 224, **{**NARROW, "img_size": 224}),
    of_timm("volo", "volo_d1_224", 224),
    of_timm("xcit", "xcit_nano_12_p16_224", 32, **SMALL),
    of_timm("byoanet", "lambda_resnet26t", 256),
    of_timm("efficientvit_mit", "efficientvit_b0", 224, "linear attention: no softmax"),
    of_timm("resnest", "resnest14d", 224, "its softmax weighs branches of a convolution, there is no map"),
    of_timm("swiftformer", "swiftformer_xs", 224, "additive attention: no softmax of queries and keys"),
)

vision = torchvision.models
TORCHVISION = (
    Family("torchvision", "vit", "vit_b_16", partial(vision.VisionTransformer, 32, 16, 2, 4, 48, 96), 32),
    Family("torchvision", "swin", "swin_t", partial(vision.SwinTransformer, [4, 4], 24, [2, 1], [2, 3], [4, 4]), 64),
    Family(
        "torchvision",
        "swin_v2",
        "swin_v2_t",
        partial(
            vision.SwinTransformer,
            [4, 4],
            24,
            [2, 1],
            [2, 3],
            [4, 4],
            block=vision.swin_transformer.SwinTransformerBlockV2,
        ),
        64,
    ),
    Family(
        "torchvision",
        "maxvit",
        "maxvit_t",
        partial(vision.MaxVit, (64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=3),
        64,
    ),
)

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}


def of_hf(family: str, size: int = 32, reason: str = "", model: str = "", **options: Any) -> Family:
    """A model of transformers by the stem of its classes, such as "ViT" for ViTConfig and ViTModel."""

    def build() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        config = getattr(transformers, f"{family}Config")(**options)
        made = getattr(transformers, model or f"{family}Model")(config)
        if family == "ViTMAE":  # it shuffles patches by random noise; of noise in order they stay in theirs
            noise = torch.arange((size // options["patch_size"]) ** 2).float()
            made.forward = partial(made.forward, noise=noise.expand(2, -1))
        return made

    return Family("Hugging Face", family, model or f"{family}Model", build, size, reason)


HUGGING_FACE = (
    of_hf("Beit", **TINY),
    of_hf("CLIPVision", **TINY),
    of_hf(
        "Cvt",
        64,
        embed_dim=[16, 32],
        num_heads=[1, 2],
        depth=[1, 2],
        patch_sizes=[7, 3],
        patch_stride=[4, 2],
        patch_padding=[2, 1],
        mlp_ratio=[2.0, 2.0],
        attention_drop_rate=[0.0, 0.0],
        drop_rate=[0.0, 0.0],
        drop_path_rate=[0.0, 0.0],
        qkv_bias=[True, True],
        cls_token=[False, True],
        qkv_projection_method=["dw_bn"] * 2,
        kernel_qkv=[3, 3],
        padding_kv=[1, 1],
        stride_kv=[2, 2],
        padding_q=[1, 1],
        stride_q=[1, 1],
    ),
    of_hf("DeiT", **TINY),
    of_hf("Dinov2", **TINY),
    of_hf("Dinov2WithRegisters", **TINY, num_register_tokens=4),
    of_hf("DINOv3ViT", **TINY, num_register_tokens=4),
    of_hf("Hiera", 64, image_size=[64, 64], embed_dim=16, depths=[1, 1, 2], num_heads=[1, 2, 4], num_query_pool=2),
    of_hf("Levit", 224),
    of_hf("MobileViT", 64, image_size=64),
    of_hf("Pvt", 64, image_size=64, depths=[1, 1, 1, 1]),
    of_hf("PvtV2", 64, image_size=64, depths=[1, 1, 1, 1]),
    of_hf("SamVision", 64, **{**TINY, "image_size": 64}, window_size=2, global_attn_indexes=[1], output_channels=16),
    of_hf("Segformer", 64, depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 32, 64]),
    of_hf("SiglipVision", **TINY),
    of_hf("Swin", **WINDOWS),
    of_hf("Swinv2", **WINDOWS),
    of_hf("ViT", **TINY),
    of_hf("ViTMAE", **TINY, mask_ratio=0.0),
    of_hf("ViTMSN", **TINY),
    of_hf("VitDet", **TINY),
    of_hf("Yolos", **{**TINY, "image_size": [32, 32]}, num_detection_tokens=3),
)


def of_onnx() -> nn.Module:
    """timm's vit_tiny of two blocks, exported and read back."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2).eval()
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "vit.onnx"
        torch.onnx.export(model, (torch.randn(2, 3, 32, 32),), path, dynamo=False, input_names=["pixels"],
                          dynamic_axes={"pixels": {0: "n"}})  # fmt: skip
        return OnnxModel(path)


ONNX = (Family("ONNX", "vision_transformer", "vit_tiny_patch16_224", of_onnx, 32),)


class Softmaxes(TorchDispatchMode):
    """Counts softmaxes of matrices, below PyTorch's functions; fused attention counts as one."""

    NAMES = ("_softmax", "_safe_softmax", "_scaled_dot_product", "_native_multi_head_attention")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.count += name.startswith(self.NAMES) and args[0].ndim > 2
        return result


@dataclass(frozen=True)
class Row:
    """What was found of one family."""

    layers: int = 0
    softmaxes: int = 0
    kinds: str = ""
    routes: str = ""
    value_error: float = float("nan")
    oracle: float = float("nan")
    output_equal: bool = False
    places: str = ""
    place_reasons: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def whole(self) -> bool:
        return not self.trouble and self.layers == self.softmaxes

    @property
    def exact(self) -> bool:
        return self.output_equal and self.value_error < 1e-5 and self.oracle < 1e-5


def covered(family: Family) -> Row:
    """Build the family's model, capture it, and compare."""
    torch.manual_seed(0)
    model, pixels = family.build().eval(), torch.randn(2, 3, family.size, family.size)
    with torch.no_grad(), Softmaxes() as softmaxes:
        model(pixels)
    try:
        with no_trace(model):
            proof = certify(model, pixels)
            with torch.inference_mode(), record(model, ("weights", "effective")) as recorder:
                model(pixels)
                taken = [maps for maps in recorder.take() if maps.is_effective]
    except CaptureError as error:
        return Row(softmaxes=softmaxes.count, trouble=str(error))
    factors = factors_of(model, pixels)
    maps = [layer for stage in taken for layer in stage.values.unbind(1)]
    return Row(
        len(proof.layers),
        softmaxes.count,
        ", ".join(dict.fromkeys(stage.kind for stage in taken)),
        ", ".join(f"{n} {route}" for route, n in Counter(layer.route for layer in proof.layers).items()),
        max((layer.value_error or 0.0) for layer in proof.layers),
        max(distance(layer, factors) for layer in maps),
        bool(proof.output_equal),
        *places_of(proof, [stage.layers for stage in taken]),
    )


def places_of(proof: Certificate, stages: list[tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    """`proved 2, assumed 1` of the stages, and the reasons of those that are not proved."""
    found = [proof.located.places.get(layers[0], Places("unknown", "not seen")) for layers in stages]
    counts = Counter(place.status for place in found)
    order = [status for status in ("proved", "assumed", "unknown") if counts[status]]
    reasons = dict.fromkeys(f"{place.status}: {place.reason}" for place in found if place.status != "proved")
    return ", ".join(f"{status} {counts[status]}" for status in order), tuple(reasons)


def cost_of_proofs(family: Family) -> float | None:
    """Processor time of `certify` with the proofs by perturbation over that without them; None if it is refused."""
    torch.manual_seed(0)
    model, pixels = family.build().eval(), torch.randn(2, 3, family.size, family.size)

    def seconds(locating: Callable[..., Located]) -> float:
        with patch("attnprobe.capturing.certificate.locate", locating):
            begun = time.process_time()
            certify(model, pixels)
            return time.process_time() - begun

    try:
        certify(model, pixels)  # warms up
        pairs = [(seconds(locate), seconds(lambda model, pixels: Located())) for _ in range(3)]
    except CaptureError:
        return None
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


def distance(layer: Tensor, factors: list[Tensor]) -> float:
    """How far [image, head, row, key] is from the nearest matrices that were factors of one product."""
    rows = layer.shape[2]
    sizes = [n for n in range(1, rows + 1) if rows % n == 0]  # of one window, if there are several
    return min(missing(layer.unflatten(2, (-1, n)).flatten(0, 2), factors) for n in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="families whose name contains this")
    parser.add_argument("--group", default="", help="timm, torchvision, Hugging Face or ONNX")
    parser.add_argument("--times", action="store_true", help="what the proofs by perturbation cost, and no table")
    options = parser.parse_args()
    chosen = [
        family
        for family in (*TIMM, *TORCHVISION, *HUGGING_FACE, *ONNX)
        if options.only in family.name and options.group in family.group
    ]
    if options.times:
        print_costs(chosen)
        return
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, torchvision {torchvision.__version__}; "
        f"{len(chosen)} families\n"
    )
    print(
        "| library | family | model | layers of softmaxes | kinds | route | A V off by | maps off by | output equal | "
        "places |"
    )
    print("|" + "---|" * 10)
    rows, notes, reasons = [], [], {}
    for family in chosen:
        begun = time.perf_counter()
        row = covered(family)
        rows.append(row)
        mark = ""
        if not row.whole:
            notes.append(f"{family.model}: {family.reason or 'UNEXPLAINED: ' + row.trouble}.")
            mark = f" [{len(notes)}]"
        cells = (
            family.group,
            family.name,
            family.model,
            f"{row.layers} of {row.softmaxes}{mark}",
            row.kinds,
            row.routes,
        )
        letters = "".join(reasons.setdefault(why, chr(ord("a") + len(reasons))) for why in row.place_reasons)
        errors = (
            f"{row.value_error:.0e}",
            f"{row.oracle:.0e}",
            "yes" if row.output_equal else "no",
            row.places + (f" [{letters}]" if letters else ""),
        )
        print("|", " | ".join(cells + (("-",) * 4 if row.trouble else errors)), "|", flush=True)
        print(f"{family.name} {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    captured = [row for row in rows if not row.trouble]
    layers, softmaxes = sum(row.layers for row in captured), sum(row.softmaxes for row in captured)
    print(
        f"\n{len(captured)} models captured, {layers} layers of {softmaxes} softmaxes, "
        f"{sum(row.exact for row in captured)} models exact (maps and A V within 1e-5, output equal bit for bit); "
        f"{len(rows) - len(captured)} models refused.\n"
    )
    for number, note in enumerate(notes, 1):
        print(f"[{number}] {note}")
    for why, letter in reasons.items():
        print(f"[{letter}] {why}.")


def print_costs(chosen: list[Family]) -> None:
    """The ratio of every family, and the largest."""
    ratios = {family.model: ratio for family in chosen if (ratio := cost_of_proofs(family)) is not None}
    for model, ratio in sorted(ratios.items(), key=lambda pair: -pair[1]):
        print(f"{model} {ratio:.2f}")
    print(f"{len(ratios)} models: certify takes at most {max(ratios.values()):.2f} times what it takes without")


if __name__ == "__main__":
    main()
