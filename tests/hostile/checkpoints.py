"""Checkpoints that run code, reach elsewhere, declare what they do not hold, or hold other types: .pth, .safetensors
and model folders, each made from the weights of a model of two blocks."""

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from attnprobe.io.run import MANIFEST, manifest_of
from attnprobe.models import build_model
from attnprobe.models.describe import config_json
from tests.hostile.files import BAD_FILES, NO_FILES, put

NAME = "vit_16_digits"
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 10}
PLAIN = {name: value for name, value in SMALL.items() if name != "num_classes"}
ADDRESS = "http://127.0.0.1:9/model.safetensors"


@cache
def model() -> Any:
    return build_model(NAME, seed=0, **SMALL)


def weights() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model().state_dict().items()}


def write_folder(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda config: config) -> Path:
    """A model folder whose config.json was changed."""
    folder.mkdir(parents=True)
    save_file(weights(), folder / "model.safetensors")
    config = config_json(NAME, model(), SMALL)
    changed = change(config)
    (folder / "config.json").write_text(json.dumps(config if changed is None else changed))
    return folder


class _Runs:
    def __reduce__(self):
        return os.system, ("touch CANARY",)


def _args(**values: Any) -> Callable[[Path], None]:
    """Weights with arguments of a training script."""
    return lambda path: torch.save({"state_dict": weights(), "args": argparse.Namespace(**values)}, path)


def _with(**tensors: Any) -> Callable[[Path], None]:
    """Weights, some of which are replaced; a dot in a name is written as two underscores."""
    args = {"model": NAME, "num_classes": 10, "model_kwargs": PLAIN}
    changed = {k.replace("__", "."): v for k, v in tensors.items()}
    return lambda path: torch.save({"state_dict": {**weights(), **changed}, "args": args}, path)


def _nested(depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = {"state_dict": tree}
    return tree


def _repacked(path: Path, change: Callable[[zipfile.ZipFile, dict[str, bytes]], None], compress: int = 0) -> None:
    """A .pth whose zip is written again by `change`."""
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    with zipfile.ZipFile(buffer) as before:
        members = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w", compress) as after:
        change(after, members)


def _many(after: zipfile.ZipFile, members: Mapping[str, bytes]) -> None:
    for name, data in [*members.items(), *((f"archive/x{i}", b"") for i in range(60_000))]:
        after.writestr(name, data)


def _deflated(after: zipfile.ZipFile, members: Mapping[str, bytes]) -> None:
    for name, data in members.items():
        after.writestr(name, bytes(200 << 20) if name.endswith("/data/0") else data)


def _overlapping(path: Path) -> None:
    """A zip whose central directory names one stored member of 4 MB three hundred times."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1 << 20)}, buffer)
    data = buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
        entry = next(e for e in archive.infolist() if e.filename.endswith("data/0"))
        directory = data[start : data.rindex(b"PK\x06\x06") if b"PK\x06\x06" in data else data.rindex(b"PK\x05\x06")]
    header, name = b"", entry.filename.encode()
    for i in range(300):
        other = name[:-1] + str(i + 1).encode()
        header += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, entry.CRC, entry.file_size, entry.file_size, len(other),
            0, 0, 0, 0, 0, entry.header_offset,
        ) + other  # fmt: skip
    n = directory.count(b"PK\x01\x02") + 300
    size = len(directory) + len(header)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, n, n, size, start, 0)
    path.write_bytes(data[:start] + directory + header + end)


def _quantised() -> torch.Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(10, 24), 0.1, 0, torch.qint8)


def named_often(leaf: Any, times: int, depth: int, by_name: bool = False) -> Any:
    """Lists, or dictionaries, that hold one of them many times each: times^depth paths in a small file."""
    for _ in range(depth):
        leaf = {str(i): leaf for i in range(times)} if by_name else [leaf] * times
    return leaf


def doubled_tuple(depth: int) -> bytes:
    """Operations of a pickle that leave a tuple of 2^depth leaves."""
    return b"K\x01\x85q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(depth))


def _called(module: str, name: str, *arguments: bytes) -> bytes:
    """Operations of a pickle that call a function."""
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(data := text.encode())) + data


def of_addresses(kind: str = "O8", flags: bytes = b"K\x00") -> bytes:
    """Operations of a pickle that make an array whose bytes are addresses of objects, if numpy is told to believe it.

    Args:
        flags: what the pickle says of the type: 0, that its values are no references.
    """
    told = b"(K\x03" + _text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + flags + b"tb"
    kind_of = _called("numpy", "dtype", _text(kind), b"\x89\x88") + told
    empty = _called("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\nK\x00\x85", _text("b"))
    data = _called("_codecs", "encode", _text("A" * 8), _text("latin1"))
    return empty + b"(K\x01K\x01\x85" + kind_of + b"\x89" + data + b"tb"


def _equal_hashes(after: bytes, n: int = 100_000) -> bytes:
    """Operations of a pickle that leave n numbers of one hash, with these operations after each."""
    numbers = (int.to_bytes(i * (2**61 - 1), 12, "little") for i in range(1, n + 1))
    return b"".join(b"\x8a\x0c" + number + after for number in numbers)


LONG_TEXT = _text("".join(map(chr, range(20_000, 50_000))))

OPERATIONS: dict[str, bytes] = {
    "tuple_key": b"}" + doubled_tuple(60) + b"Ns",
    "tuple_key_deep": b"}K\x01" + b"\x85" * 300_000 + b"Ns",
    "tuple_deep": b"K\x01" + b"\x85" * 300_000,
    "tuple_key_often": b"}((" + b"K\x01" * 100_000 + b"tq\x00N" + b"h\x00N" * 50_000 + b"u",
    "tuple_given": _called("collections", "OrderedDict", b"]" + b"]" + doubled_tuple(60) + b"aNaa"),
    "equal_hashes": b"}(" + _equal_hashes(b"N") + b"u",
    "equal_hashes_given": _called("collections", "OrderedDict", b"](" + _equal_hashes(b"N\x86") + b"e"),
    "memo_far": b"]r\xff\xff\xff\x7f",
    "text_often": _text("a" * 1_000_000) + b"q\x00" + b"0]("
    + _called("_codecs", "encode", b"h\x00", _text("latin1")) * 20_000 + b"e",
    "slow_encoding": _called("_codecs", "encode", LONG_TEXT, _text("_Punycode")),
    "slow_encoding_inside": _called("torch._tensor", "_rebuild_from_type_v2", b"c_codecs\nencode\nctorch\nTensor\n(",
                                    LONG_TEXT + _text("punycode") + b"t}"),
    "addresses": b"](" + of_addresses() + b"e",
    "addresses_named": b"](" + of_addresses(kind="f8", flags=b"K\x3f") + b"e",
}  # fmt: skip
"""Bodies of pickles that are hashed for ever, fill the memory, or make objects of bytes."""


def tensor_often() -> bytes:
    """A pickle that asks 20,000 times for the tensor of one megabyte that it holds."""
    torch.save(torch.ones(1, 1, 512, 512), saved := io.BytesIO())
    data = b"B" + struct.pack("<I", len(saved.getvalue())) + saved.getvalue() + b"q\x00"
    return b"\x80\x03" + data + b"0](" + _called("torch.storage", "_load_from_bytes", b"h\x00") * 20_000 + b"e."


def in_zip(body: bytes) -> Callable[[Path], None]:
    """A .pth of this pickle."""

    def change(after: zipfile.ZipFile, members: Mapping[str, bytes]) -> None:
        for name, data in members.items():
            after.writestr(name, b"\x80\x02" + body + b"." if name.endswith("data.pkl") else data)

    return lambda path: _repacked(path, change)


def in_stream(body: bytes) -> Callable[[Path], None]:
    """A .pth of this pickle, as PyTorch wrote them before 1.6."""
    start = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return lambda path: path.write_bytes(start + b"\x80\x02" + body + b"." + pickle.dumps([], 2)) and None


PICKLES: dict[str, Callable[[Path], Any]] = {
    **{name: in_zip(body) for name, body in OPERATIONS.items()},
    **{f"stream_{name}": in_stream(OPERATIONS[name]) for name in ("tuple_key", "tuple_deep", "addresses")},
    "runs": lambda path: torch.save({"state_dict": weights(), "args": _Runs()}, path),
    "runs_bare": lambda path: path.write_bytes(pickle.dumps(_Runs())),
    "hub_name": _args(model="hf-hub:timm/vit_tiny_patch16_224"),
    "hf_name": _args(model="hf:google/vit-base-patch16-224"),
    "onnx_name": _args(model="onnx:/etc/passwd"),
    "folder_name": _args(model="local-dir:/tmp"),
    "url_option": _args(model=NAME, model_kwargs={**PLAIN, "pretrained_cfg": {"url": ADDRESS}}),
    "pretrained": _args(model=NAME, model_kwargs={**PLAIN, "pretrained": True}),
    "cache": _args(model=NAME, model_kwargs={**PLAIN, "cache_dir": "/tmp/x"}),
    "path_option": _args(model=NAME, model_kwargs={**PLAIN, "checkpoint_path": ADDRESS}),
    "many_classes": _args(model=NAME, num_classes=900_000, model_kwargs=PLAIN),
    "deep_model": _args(model=NAME, model_kwargs={**PLAIN, "depth": 1000}),
    "huge_width": _args(model=NAME, model_kwargs={**PLAIN, "embed_dim": 60_000}),
    "huge_image": _args(model=NAME, img_size=8192, model_kwargs=PLAIN),
    "huge_image_option": _args(model=NAME, model_kwargs={**PLAIN, "img_size": 8192}),
    "many_registers": _args(model=NAME, model_kwargs={**PLAIN, "reg_tokens": 65_000}),
    "many_heads": _args(model=NAME, model_kwargs={**PLAIN, "num_heads": 0}),
    "zero_patch": _args(model=NAME, model_kwargs={**PLAIN, "patch_size": [1, 1, 1]}),
    "args_types": _args(model=7, num_classes="many", model_kwargs=[1], img_size=[], in_chans=-3, mean="x"),
    "input_size": _args(model=NAME, input_size=[3, 8192, 8192], model_kwargs=PLAIN),
    "claims": _args(model=NAME, model_kwargs=PLAIN, patch_size=7, gp="\x1b[2J", num_heads="\x07"),
    "claims_large": _args(model=NAME, num_classes=10, num_heads=3, embed_dim=60_000, depth=1024, patch_size=[1, 1]),
    "claims_often": _args(
        model=NAME, num_classes=10, num_heads=named_often(3, 40, 6), patch_size=named_often(3, 2, 40), gp=[[]]
    ),
    "claims_digits": _args(model=NAME, num_classes=10, num_heads=10**5000, depth=-(10**5000), embed_dim=float("nan")),
    "option_digits": _args(model=NAME, model_kwargs={**PLAIN, "num_heads": 10**5000}),
    "complex": _with(head__weight=torch.zeros(10, 24, dtype=torch.complex64)),
    "bool": _with(head__weight=torch.zeros(10, 24, dtype=torch.bool)),
    "integers": _with(head__weight=torch.zeros(10, 24, dtype=torch.int64)),
    "float8": _with(head__weight=torch.zeros(10, 24).to(torch.float8_e4m3fn)),
    "quantised": lambda path: _with(head__weight=_quantised())(path),
    "sparse": _with(head__weight=torch.zeros(10, 24).to_sparse()),
    "meta": _with(head__weight=torch.zeros(10, 24, device="meta")),
    "stride_0": _with(head__weight=torch.zeros(1).expand(1_000_000, 1_000_000)),
    "zero_dim_head": _with(head__weight=torch.tensor(1.0)),
    "zero_dim_patch": _with(patch_embed__proj__weight=torch.tensor(1.0)),
    "empty_patch": _with(patch_embed__proj__weight=torch.zeros(24, 0, 0, 0)),
    "flat_positions": _with(pos_embed=torch.zeros(7)),
    "no_positions": _with(pos_embed=torch.zeros(1, 0, 24)),
    "flat_class_token": _with(cls_token=torch.tensor(0.0)),
    "flat_registers": _with(reg_token=torch.zeros(3)),
    "zero_dim_norm": _with(blocks__0__norm1__weight=torch.tensor(1.0)),
    "nan": _with(head__weight=torch.full((10, 24), float("nan"))),
    "many_names": lambda path: torch.save({f"blocks.{i}.norm1.weight": torch.zeros(1) for i in range(5_000)}, path),
    "cursor_name": _with(**{"\x1b[2Jhead\x07\n": torch.zeros(1)}),
    "list": lambda path: torch.save([weights()], path),
    "text": lambda path: torch.save("weights", path),
    "int_names": lambda path: torch.save(dict(enumerate(weights().values())), path),
    "nested": lambda path: torch.save(_nested(150), path),
    "nested_list": lambda path: path.write_bytes(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "shared": lambda path: torch.save(_doubling(40), path),
    "named_often": lambda path: torch.save({"state_dict": named_often(torch.ones(1), 300, 4, by_name=True)}, path),
    "named_often_beside": lambda path: torch.save({**weights(), "x": named_often(1, 300, 4, by_name=True)}, path),
    "named_often_option": _args(model=NAME, model_kwargs={**PLAIN, "depth": named_often(2, 40, 6)}),
    "named_often_args": _args(model=named_often(2, 40, 6), img_size=named_often(32, 40, 6), model_kwargs={7: 1}),
    "long_names": lambda path: torch.save(
        {"state_dict": {"a" * 100_000: {"b": {str(i): torch.ones(1) for i in range(30_000)}}}}, path
    ),
    "deflated": lambda path: _repacked(path, _deflated, zipfile.ZIP_DEFLATED),
    "many_members": lambda path: _repacked(path, _many),
    "overlapping": _overlapping,
    "zip_alone": lambda path: zipfile.ZipFile(path, "w").close(),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 40),
    **NO_FILES,
    "empty": BAD_FILES["empty"],
}


def _doubling(depth: int) -> Any:
    """Dictionaries that hold one dictionary twice each: 2^depth paths in a small file."""
    tree: Any = {"w": torch.zeros(1)}
    for _ in range(depth):
        tree = {"a": tree, "b": tree}
    return tree


def _safetensors(header: bytes | Any, body: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: (
        path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + body) and None
    )


def _range(dtype: str, shape: list[int], start: int, stop: int, body: bytes = bytes(64)) -> Callable[[Path], None]:
    return _safetensors({"head.weight": {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}}, body)


def _saved(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: save_file({**weights(), **{k.replace("__", "."): v for k, v in tensors.items()}}, path)


def _huge_range(path: Path) -> None:
    """One tensor of 40 GB in a file that has them as a hole."""
    n = 40 << 30
    header = json.dumps({"head.weight": {"dtype": "F32", "shape": [n // 4], "data_offsets": [0, n]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + n)


SAFETENSORS: dict[str, Callable[[Path], Any]] = {
    "long_header": _safetensors(b"{}", length=1 << 62),
    "deep_header": _safetensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "list_header": _safetensors([1]),
    "other_type": _range("Q7", [4], 0, 16),
    "negative": _range("F32", [4], -16, 0),
    "swapped": _range("F32", [4], 16, 0),
    "beyond": _range("F32", [1 << 40], 0, 1 << 42),
    "overflow": _range("F32", [1 << 33, 1 << 33], 0, 64),
    "zero_and_huge": _range("F32", [0, 1 << 60], 0, 0, b""),
    "huge_range": _huge_range,
    "complex": _saved(head__weight=torch.zeros(10, 24, dtype=torch.complex64)),
    "float8": _saved(head__weight=torch.zeros(10, 24).to(torch.float8_e4m3fn)),
    "bool": _saved(head__weight=torch.zeros(10, 24, dtype=torch.bool)),
    "zero_dim": _saved(pos_embed=torch.tensor(1.0)),
    "many": lambda path: save_file({f"blocks.{i}.a": torch.zeros(1) for i in range(5_000)}, path),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 40),
    **NO_FILES,
    "empty": BAD_FILES["empty"],
}


def _config(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: write_folder(folder, lambda config: {**config, **values})


def _options(**values: Any) -> Callable[[Path], Any]:
    return _config(model_args={**PLAIN, **values})


def _file(name: str, kind: str, *, manifest: bool = False) -> Callable[[Path], Any]:
    """A model folder one file of which is a bad one."""

    def make(folder: Path) -> None:
        write_folder(folder)
        if manifest:
            seal(folder)
        put(folder / name, kind)

    return make


def seal(folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / MANIFEST).write_bytes(manifest_of(files))


def _holding(**tensors: torch.Tensor) -> Callable[[Path], Any]:
    """A model folder with some tensors of another kind."""

    def make(folder: Path) -> None:
        write_folder(folder)
        _saved(**tensors)(folder / "model.safetensors")

    return make


def _manifest(entries: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        write_folder(folder)
        os.mkfifo(folder / "pipe")
        (folder / MANIFEST).write_text(json.dumps(entries))

    return make


FOLDERS: dict[str, Callable[[Path], Any]] = {
    **{f"architecture_{i}": _config(architecture=name) for i, name in enumerate((
        "hf:google/vit-base-patch16-224", "hf-hub:timm/vit_tiny_patch16_224", "hf_hub:timm/vit", "local-dir:..",
        "onnx:model.onnx", "torchvision:vit_b_16", "../../etc", "pruned_vit", 7, None, ["vit"], {"a": 1}, "\x1b[2J",
        "a" * 100_000,
    ))},
    **{f"option_{name}": _options(**{name: value}) for name, value in {
        "pretrained": True, "pretrained_cfg": {"url": ADDRESS, "file": "/etc/passwd"}, "cache_dir": "/tmp",
        "of": "hf:x",
        "pretrained_cfg_overlay": {"hf_hub_id": "timm/vit"}, "checkpoint_path": ADDRESS, "scriptable": True,
        "depth": 1_000_000, "embed_dim": "24", "num_heads": [3], "img_size": 10**6, "patch_size": 0.5,
        "act_layer": "os.system", "norm_layer": "exec", "mlp_ratio": float("nan"), "reg_tokens": -1,
        "class_token": "no",
        "global_pool": "none", "weight_init": "what", "block_fn": "x", "\ud800": 1,
    }.items()},
    "model_args_list": _config(model_args=[1, 2]),
    "model_args_text": _config(model_args="depth"),
    "many_classes": _config(num_classes=20_000_000),
    "negative_classes": _config(num_classes=-1),
    "classes_bool": _config(num_classes=True),
    "cfg_url": _config(pretrained_cfg={"url": ADDRESS, "input_size": [3, 32, 32]}),
    "cfg_list": _config(pretrained_cfg=[1]),
    "cfg_size": _config(pretrained_cfg={"input_size": [3, 10**7, 10**7]}),
    "cfg_size_text": _config(pretrained_cfg={"input_size": "3,32,32"}),
    "cfg_size_one": _config(pretrained_cfg={"input_size": 32}),
    "cfg_size_two": _config(pretrained_cfg={"input_size": [3, 8192, 8192]}),
    "cfg_mean": _config(pretrained_cfg={"mean": [], "std": [0, 0, 0]}),
    "cfg_mean_one": _config(pretrained_cfg={"mean": 0.5, "std": 0.5}),
    "cfg_std_many": _config(pretrained_cfg={"mean": [0.5] * 1000, "std": [0.5] * 1000}),
    "cfg_crop": _config(pretrained_cfg={"crop_pct": 1000, "interpolation": "what", "crop_mode": "x"}),
    "cfg_classifier": _config(pretrained_cfg={"classifier": ["", ".."], "first_conv": ["a"]}),
    **{f"config_{kind}": _file("config.json", kind) for kind in BAD_FILES},
    "of_complex": _holding(head__weight=torch.zeros(10, 24, dtype=torch.complex64)),
    "of_float8": _holding(head__weight=torch.zeros(10, 24).to(torch.float8_e4m3fn)),
    "of_bool": _holding(head__weight=torch.zeros(10, 24, dtype=torch.bool)),
    "of_scalars": _holding(pos_embed=torch.tensor(1.0)),
    **{f"weights_{kind}": _file("model.safetensors", kind) for kind in (*NO_FILES, "empty")},
    **{f"manifest_{kind}": _file(MANIFEST, kind) for kind in BAD_FILES},
    **{f"sealed_{kind}": _file("model.safetensors", kind, manifest=True) for kind in NO_FILES},
    "manifest_pipe": _manifest({"pipe": {"bytes": 0, "sha256": ""}}),
    "manifest_device": _manifest({"/dev/zero": {"bytes": 0, "sha256": ""}}),
    "manifest_outside": _manifest({"../../../../etc/passwd": {"bytes": 1, "sha256": ""}}),
    "manifest_types": _manifest({"model.safetensors": [1]}),
    "manifest_nul": _manifest({"a\0b": {"bytes": 1, "sha256": 7}}),
    "manifest_nothing": _manifest({}),
}  # fmt: skip


def _hub(**values: Any) -> Callable[[Path], None]:
    """A folder in the layout of transformers, with weights of one number."""
    config = {"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 32, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 16, **values}

    def make(folder: Path) -> None:
        import transformers

        assert transformers.ViTModel  # imported before a command runs in a copy of this process
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")

    return make


HUB_FOLDERS: dict[str, Callable[[Path], Any]] = {
    "layers": _hub(num_hidden_layers=10**7),
    "layers_more": _hub(num_hidden_layers=4096, hidden_size=64, intermediate_size=64),
    "width": _hub(hidden_size=10**6, intermediate_size=10**6),
    "mlp": _hub(intermediate_size=10**9),
    "image": _hub(image_size=10**6),
    "patch": _hub(image_size=10**5, patch_size=10**5),
    "labels": _hub(num_labels=10**9),
    "backbone_stages": _hub(model_type="swin", architectures=["SwinModel"], depths=[10**7]),
    "window": _hub(
        model_type="swin", architectures=["SwinModel"], num_attention_heads=[3] * 4, window_size=10**4, image_size=10**5
    ),
    "vision": _hub(model_type="clip", architectures=["CLIPModel"], vision_config={"num_hidden_layers": 10**7}),
    "vision_list": _hub(vision_config=[1]),
    "vision_dict": _hub(vision_config={"a": 1}),
    **{f"architecture_{name}": _hub(architectures=[name]) for name in (
        "pipeline", "Trainer", "logging", "models", "__dict__", "PreTrainedModel", "ViTConfig", "AutoModel", "BertModel"
    )},
    "architectures_text": _hub(architectures="ViTModel"),
    "architectures_number": _hub(architectures=[7]),
}  # fmt: skip
"""Folders that are opened as hf:FOLDER."""

HARMLESS = {
    *(f"folder/{name}" for name in ("cfg_url", "cfg_size_two", "cfg_mean_one", "cfg_crop", "cfg_classifier")),
    *(f"pth/{name}" for name in ("input_size", "huge_image", "huge_image_option", "many_registers", "many_classes")),
    "pth/cursor_name",
    "pth/claims",
}
"""Checkpoints that a command may accept."""


def has_sound_weights(name: str) -> bool:
    """Whether only what a checkpoint says of its model is hostile: training that starts from it reads weights alone."""
    kind, _, name = name.partition("/")
    if kind == "folder":
        return name.startswith(("architecture_", "option_"))
    return kind == "pth" and (name == "many_members" or PICKLES[name].__qualname__.startswith("_args."))


CHECKPOINTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{f"pth/{name}": ("model.pth", make) for name, make in PICKLES.items()},
    **{f"safetensors/{name}": ("model.safetensors", make) for name, make in SAFETENSORS.items()},
    **{f"folder/{name}": ("model", make) for name, make in FOLDERS.items()},
}
"""Name -> name of the file or folder, and what makes it."""
