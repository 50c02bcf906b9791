"""ONNX files as models: every attention layer of the graph is replayed in PyTorch, where capture can see it.

Question: how does a graph without modules show its maps? Choice: the logits of every softmax that ends in a product
with V, what multiplies V, V itself and the product become outputs of the graph, and onnxruntime computes them in the
same run as the model's own output. A module named as the node takes the softmax of these logits and multiplies it
with V, so that hooks, certificate and metrics treat the layer as any other; its product must equal the graph's own
(`TOLERANCE`), or the layer is refused. A model that is exported is therefore also an independent check of a capture.
Question: which graphs? Choice: Softmax -> (casts, dropout, scales, changes of shape, mixing of heads) -> MatMul, as
PyTorch's exporters and others write it, and the standard operator Attention. Operators of one vendor hide the softmax
in a kernel, and are refused by name.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.errors import CaptureError, InputError
from attnprobe.core.images import InputSpec
from attnprobe.core.outputs import relative_error

TOLERANCE = 1e-3
"""Largest difference of the graph's product with V and the replayed one, relative to the largest value."""

MOST_BYTES = 2 << 30
"""Protocol buffers hold no more, weights in other files aside."""

FLOAT16 = 10
"""TensorProto.FLOAT16."""

PASSED = {
    "Cast", "Dropout", "Identity", "Mul", "Div", "Add", "Sub", "Where", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
    "Conv", "BatchNormalization", "Expand", "Flatten",
}  # fmt: skip
"""Operators that may stand between the softmax and the product with V."""

UNCHANGED = {"Cast", "Dropout", "Identity"}
"""Those of them that leave the map what it is."""


@dataclass(frozen=True, slots=True)
class GraphAttention:
    """One attention layer of a graph, by the names of its tensors.

    Attributes:
        name: dotted, made from the node's name.
        inputs: of a softmax: logits, effective map, V; of the operator Attention: queries, keys, values, mask.
        result: the product with V.
        map_is_left: of a softmax: the product is map @ V, and not V @ map.
        changed: the map is changed between softmax and product.
        options: of the operator Attention: num_heads, kv_num_heads, scale, is_causal.
    """

    name: str
    inputs: tuple[str, ...]
    result: str
    map_is_left: bool = True
    changed: bool = False
    options: Mapping[str, Any] | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """The tensors to be computed besides the model's own output."""
        return tuple(filter(None, (*self.inputs, self.result)))


class Replay(nn.Module):
    """An attention layer whose logits, V and product come from a graph; PyTorch computes its map and product again."""

    def __init__(self, layer: GraphAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *tensors: Tensor | None) -> Tensor:
        """The inputs of the layer, then its product, all from the graph -> the product as PyTorch computes it.

        Raises:
            CaptureError: it is not the graph's.
        """
        *given, result = tensors
        assert result is not None
        product = self._standard(*given) if self.layer.options is not None else self._of_softmax(*given)
        error = relative_error(product, result)
        if not error <= TOLERANCE:
            raise CaptureError(
                f"{self.layer.name}: map times V is off by {error:.1e} from the graph's product (allowed "
                f"{TOLERANCE:.0e}); its attention is not a softmax as read here."
            )
        return product

    def _of_softmax(self, logits: Any, effective: Any, value: Any) -> Tensor:
        weights = logits.softmax(-1)
        used = torch.where(torch.ones((), dtype=torch.bool), effective, weights) if self.layer.changed else weights
        return used @ value if self.layer.map_is_left else value @ used

    def _standard(self, query: Any, key: Any, value: Any, mask: Any = None) -> Tensor:
        options = self.layer.options or {}
        flat = query.ndim == 3  # [image, token, head * width]
        if flat:
            heads, kv_heads = options["q_num_heads"], options["kv_num_heads"]
            query = query.unflatten(-1, (heads, -1)).transpose(1, 2)
            key, value = (x.unflatten(-1, (kv_heads, -1)).transpose(1, 2) for x in (key, value))
        if key.shape[1] != query.shape[1]:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        product = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=bool(options.get("is_causal")), scale=options.get("scale")
        )
        return product.transpose(1, 2).flatten(2) if flat else product


class OnnxModel(nn.Module):
    """An ONNX file with one image input, run by onnxruntime on the CPU.

    `forward` returns the graph's first output. Its attention layers are submodules, named as their nodes.

    Raises:
        InputError: not an ONNX file, packages are missing, or its inputs are not one image tensor.
        CaptureError: its attention is hidden in operators of a vendor, or none is found.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        model = _read(Path(path))
        initial = {tensor.name for tensor in model.graph.initializer}
        inputs = [given for given in model.graph.input if given.name not in initial]
        shape = [d.dim_value if d.HasField("dim_value") else 0 for d in inputs[0].type.tensor_type.shape.dim]
        if len(inputs) != 1 or len(shape) != 4:
            raise InputError(
                f"{path} takes {', '.join(given.name for given in inputs)} with {len(shape)} axes; only graphs with "
                "one input [image, channel, row, col] are read."
            )
        layers = tuple(attention_of(model.graph))
        self.input_name, self.batch = inputs[0].name, shape[0]
        self.input_spec = InputSpec((shape[2] or 224, shape[3] or 224), IMAGENET_MEAN, IMAGENET_STD)
        self.n_parameters = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
        self._outputs = [model.graph.output[0].name, *dict.fromkeys(name for layer in layers for name in layer.shown)]
        self._session = _session(model, self._outputs)
        self._half = inputs[0].type.tensor_type.elem_type == FLOAT16
        self._layers = layers
        for layer in layers:
            _place(self, layer.name.split("."), Replay(layer))
        digest = hashlib.sha256(model.SerializeToString()).digest()
        self.register_buffer("file_sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))  # weights in short
        self.stems = nn.ModuleList(_stems(model.graph))
        for kind in _prefix(model.graph):
            self.register_buffer(kind, torch.zeros(1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[image, channel, row, col] -> the first output of the graph."""
        found = self._run(pixels.detach().float().cpu().numpy())
        for layer in self._layers:
            tensors = [found[name].float() if name else None for name in (*layer.inputs, layer.result)]
            self.get_submodule(layer.name)(*tensors)
        return found[self._outputs[0]]

    def _run(self, pixels: np.ndarray) -> dict[str, Tensor]:
        """The tensors of all images; where the graph fixes the batch size, of so many images at a time."""
        size = self.batch or max(len(pixels), 1)
        parts = []
        for start in range(0, len(pixels), size):
            part = pixels[start : start + size]
            n = len(part)
            part = np.concatenate([part, np.repeat(part[-1:], size - n, 0)]) if n < size else part
            part = part.astype(np.float16) if self._half else part
            parts.append([_cut(x, n, size) for x in self._session.run(self._outputs, {self.input_name: part})])
        joined = [torch.cat(list(tensors)) for tensors in zip(*parts, strict=True)]
        return dict(zip(self._outputs, joined, strict=True))


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""A graph does not say how its pixels were normalised; this is what most image models were trained with."""


def attention_of(graph: Any) -> Iterator[GraphAttention]:
    """The attention layers of a graph, in its order.

    Raises:
        CaptureError: attention is hidden in operators of a vendor, or there is none.
    """
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    fixed = {tensor.name for tensor in graph.initializer}
    fixed |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    vendors = [node.op_type for node in graph.node if node.domain not in ("", "ai.onnx")]
    hidden = Counter(operator for operator in vendors if "attention" in operator.lower())
    if hidden:
        operators = ", ".join(f"{op} ({n})" for op, n in hidden.items())
        raise CaptureError(
            f"the graph computes attention in vendor operators that show no map: {operators}. Export it without fusing "
            "attention (onnxruntime's optimiser: disable attention fusion)."
        )
    times: Counter[str] = Counter()
    n_found = 0
    for node in graph.node:
        layer = None
        if node.op_type == "Attention":
            layer = _standard_attention(node)
        elif node.op_type == "Softmax" and _over_last_axis(node):
            layer = _product_of(node, users, fixed)
        if layer is not None:
            name = _dotted(node, n_found)
            times[name] += 1
            n_found += 1
            again = f"{name}_{times[name]}" if times[name] > 1 else name
            yield GraphAttention(again, *layer)
    if not n_found:
        raise CaptureError(
            "no attention in the graph: no Softmax over the last axis reaches a product with V, and there is no "
            "operator Attention."
        )


def _standard_attention(node: Any) -> tuple[Any, ...]:
    """The rest of a `GraphAttention` after its name."""
    if len([name for name in node.input if name]) > 4 or len(node.input) > 4:
        raise CaptureError(
            f"{node.name or 'Attention'} keeps keys and values of earlier calls; export without a cache."
        )
    options = {a.name: a.i if a.type == 2 else a.f for a in node.attribute}
    if options.get("softcap"):
        raise CaptureError(f"{node.name or 'Attention'} caps its logits, which is not read; export it decomposed.")
    inputs = (*node.input, *("",) * (4 - len(node.input)))
    return inputs, node.output[0], True, False, options


def _over_last_axis(node: Any) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
    return axis in (-1, 2, 3)  # of maps with 3 or 4 axes the last, or there is no product with V after it


def _product_of(softmax: Any, users: Mapping[str, list[Any]], fixed: set[str]) -> tuple[Any, ...] | None:
    """The rest of a `GraphAttention` after its name; None if no product with V follows the softmax."""
    waiting = [(softmax.output[0], False)]
    seen = set()
    while waiting:
        name, changed = waiting.pop(0)
        for node in users.get(name, ()):
            if node.op_type == "MatMul" and not set(node.input) & fixed:
                left = node.input[0] == name
                value = node.input[1 if left else 0]
                return (softmax.input[0], name, value), node.output[0], left, changed
            if node.op_type in PASSED and node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append((node.output[0], changed or node.op_type not in UNCHANGED))
    return None


def _dotted(node: Any, number: int) -> str:
    """`/blocks.0/attn/Softmax` -> `blocks.0.attn`; newer exporters write the path into the node's metadata."""
    written = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    if written:
        parts = re.findall(r"'([^']*)'", written)
        path = parts[-2] if len(parts) > 1 else ""
    else:
        scopes = node.name.strip("/").split("/")[:-1]  # "blocks" and then "blocks.0" are one list
        path = ".".join(a for a, b in pairwise([*scopes, ""]) if not b.startswith(f"{a}."))
    path = ".".join(filter(None, re.sub(r"[^\w.]", "_", path).split(".")))
    return path or f"attention.{number}"


def _place(root: nn.Module, path: list[str], module: nn.Module) -> None:
    """Register a module under a dotted path, through modules made on the way."""
    for part in path[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(path[-1], module)


def _stems(graph: Any) -> Iterator[nn.Conv2d]:
    """Convolutions over pixels, for their geometry alone; they are never run."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        shape: tuple[int, ...] = shapes.get(node.input[1], ())
        if len(shape) != 4 or shape[1] > 4:
            continue
        attributes = {a.name: list(a.ints) for a in node.attribute if a.ints}
        pads = attributes.get("pads", [0, 0, 0, 0])
        rows, cols = attributes.get("strides", (1, 1))
        yield nn.Conv2d(shape[1], 1, shape[2:4], stride=(rows, cols), padding=(pads[0], pads[1]), bias=False)


def _prefix(graph: Any) -> list[str]:
    """Names of parameters that are tokens before the patches, as `capturing` looks for them."""
    found = [tensor.name.rpartition(".")[2] for tensor in graph.initializer]
    return [name for name in ("cls_token", "class_token", "dist_token") if name in found]


def _cut(values: np.ndarray, n: int, size: int) -> Tensor:
    """The first n of `size` images; the first axis may hold several rows of each."""
    tensor = torch.from_numpy(values)
    return tensor if n == size else tensor[: tensor.shape[0] // size * n]


def _read(path: Path) -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401  (both or neither: one message)
    except ImportError:
        raise InputError(f"{path} needs onnx and onnxruntime: pip install 'attnprobe[onnx]'.") from None
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the path of an .onnx file, as in onnx:model.onnx.")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} is larger than an ONNX file can be ({MOST_BYTES >> 30} GiB).")
    try:
        model = onnx.load(str(path))  # weights in other files: onnx refuses those outside the folder
        if not model.graph.node:
            raise ValueError("its graph is empty")
        if not model.graph.input:
            raise ValueError("its graph takes no input")
        return model
    except Exception as error:
        raise InputError(f"{path} cannot be read as an ONNX model: {str(error).splitlines()[0]:.200}") from error


def _session(model: Any, outputs: list[str]) -> Any:
    """A session of onnxruntime on the CPU that also returns the tensors of these names, unfused."""
    import onnx
    import onnxruntime

    known = {output.name for output in model.graph.output}
    for name in outputs:
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
            known.add(name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Outputs in the middle keep most fusions away; the extended ones would still replace whole attention layers.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InputError(f"onnxruntime cannot run the model: {str(error).splitlines()[0]:.200}") from error
