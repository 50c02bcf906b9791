# ruff: noqa: E501 (tables of values)
"""Maps files and folders of shards that are sealed as ours are, with a plan, a certificate or names of another kind."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import torch

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.store import CapturePlan, MapWriter, seal
from attnprobe.store.plan import canonical, digest
from tests.hostile.files import BAD_FILES, put

OF_DIGITS = "digits:1 split=val images=360"
SPEC = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
CONFIG = {
    "images": {"data": "digits", "split": "val", "data_dir": None, "images": None},
    "spec": SPEC,
    "class_names": [str(i) for i in range(10)],
    "parameters": 1000,
}


def maps(ids: tuple[str, ...] = ("a", "b", "c")) -> AttentionMaps:
    values = torch.randn((len(ids), 3, 2, 5, 5), generator=torch.Generator().manual_seed(0)).softmax(-1)
    return AttentionMaps(values, ids, TokenGrid(2, 2, ("cls",), patch=(4, 4)))


@cache
def _honest(ids: tuple[str, ...]) -> bytes:
    with TemporaryDirectory() as folder:
        write(Path(folder) / "maps.h5", ids)
        return (Path(folder) / "maps.h5").read_bytes()


def write(path: Path, ids: tuple[str, ...] = ("a", "b", "c"), **options: Any) -> None:
    plan = CapturePlan(image_ids=ids, model="vit", config=CONFIG, settings={"what": ["weights"]}, data=OF_DIGITS)
    with MapWriter(path, plan, **options) as writer:
        for positions in writer.pending():
            writer.append([maps(ids).images(positions.start, positions.stop)])
        writer.close({"output_equal": True, "n_images": 3})


Plan = dict[str, Any]


def file(
    plan: Callable[[Plan], Any] | None = None,
    inside: Callable[[Any], Any] | None = None,
    ids: tuple[str, ...] = ("a", "b", "c"),
) -> Callable[[Path], None]:
    """A maps file whose plan or content was changed, sealed again."""

    def make(path: Path) -> None:
        content = bytearray(_honest(ids))
        with h5py.File(buffer := io.BytesIO(content), "r+") as opened:
            pinned = json.loads(opened.attrs["plan"])
            changed = plan(pinned) if plan else None
            opened.attrs["plan"] = text = canonical(pinned if changed is None else changed)
            if inside:
                inside(opened)
        content = bytearray(buffer.getvalue())
        sealed = seal.seal_merged(digest(json.loads(text)), io.BytesIO(content), [])
        content[: seal.BLOCK] = sealed.block()
        path.write_bytes(content)

    return make


def _set(*place: Any, to: Any) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        for step in place[:-1]:
            plan = plan[step]
        plan[place[-1]] = to

    return change


def _certificate(value: Any) -> Callable[[Any], None]:
    def change(opened: Any) -> None:
        text = value if isinstance(value, str) else canonical(value)
        opened.attrs["certificate"] = text
        opened.attrs["certificate_sha256"] = digest(value)

    return change


def _seal(**values: Any) -> Callable[[Path], None]:
    """A file whose first 512 bytes say something else."""

    def make(path: Path) -> None:
        content = bytearray(_honest(("a", "b", "c")))
        data = json.loads(bytes(content[8 : seal.BLOCK]).rstrip(b"\0"))
        block = seal.MAGIC + canonical({**data, **values}).encode()
        content[: seal.BLOCK] = block.ljust(seal.BLOCK, b"\0")[: seal.BLOCK]
        path.write_bytes(content)

    return make


def _block(text: bytes) -> Callable[[Path], Any]:
    body = _honest(("a", "b", "c"))[seal.BLOCK :]
    return lambda path: path.write_bytes((seal.MAGIC + text).ljust(seal.BLOCK, b"\0")[: seal.BLOCK] + body)


FACTS = ("facts",)
STAGE = ("layout", "stages", 0)
DATASET = (*STAGE, "datasets", 0)
LAYER = {"layer": "x", "row_sum_error": 0.1, "value_error": 0.1}

REFUSED: dict[str, Callable[[Path], Any]] = {
    **{f"images_{i}": file(_set(*FACTS, "n_images", to=n)) for i, n in enumerate((0, -1, "3", 3.0, None, 10**15, True))},
    **{f"shard_{i}": file(_set("layout", "shard_images", to=n)) for i, n in enumerate((0, -1, "1", 0.5, None, True))},
    **{f"dtype_{i}": file(_set("layout", "dtype", to=t)) for i, t in enumerate(("load", "float64", 7, None, ["bfloat16"]))},
    **{f"layout_{i}": file(_set("layout", to=v)) for i, v in enumerate(([], {}, None, "x", {"stages": 3}))},
    **{f"stages_{i}": file(_set("layout", "stages", to=v)) for i, v in enumerate(([], {}, [[]], "x", [{"name": "x"}]))},
    **{f"facts_{i}": file(_set("facts", to=v)) for i, v in enumerate(([], {}, None, 3))},
    **{f"stage_{name}_{i}": file(_set(*STAGE, name, to=v)) for name, values in {
        "name": (7, None, "../x", "a/b", ""), "kind": (7, [], "\x1b[2J"), "layers": (["a"], [1, 2, 3], "abc", None),
        "rows": (-1, "2", 2.5, 10**9, None), "cols": (True, [], 10**12), "prefix": ([1], "cls", ["cls"] * 9, None),
        "patch": ([0, 0], [4], "4", [-4, 4], [10**9, 1], 4), "datasets": ([], None, [{}], "x"),
        "kept_layers": ([0], ["a", "b", "c"], [9, 9, 9], [-1, 0, 1], 3), "kept_heads": ([0, 0], [5, -7], [5, 10**12]),
        "kept_queries": ([0], "01234", [0.5] * 5, [4, 3, 2, 1, 10**6]),
        "positions": ([-1, 0, 1], [-1, 0, 1, 2, 2], [0, 1, 2, 3, 4], [-1, 0, 1, 2, 10**9], [-2, 0, 1, 2, 3], "01234", [0.5] * 5),
    }.items() for i, v in enumerate(values)},
    **{f"dataset_{name}_{i}": file(_set(*DATASET, name, to=v)) for name, values in {
        "name": (7, "tokens", "scores2", "../../x"), "shape": ([3, 2, 5], [], [3, 2, 5, "5"], [3, 2, 5, -5], 9,
        [10**6] * 4), "chunk": ([0] * 5, [1], "x", [1, 3, 2, 5, -5], [1.5, 3, 2, 5, 5]),
        "stochastic": (7, "yes", None), "is_effective": ([], 1.5),
    }.items() for i, v in enumerate(values)},
    "created": file(_set("created", to=[1])),
    "plan_list": file(lambda plan: [plan]),
    "plan_empty": file(lambda plan: {}),
    "two_stages": file(lambda plan: plan["layout"]["stages"].append(plan["layout"]["stages"][0])),
    **{f"seal_{name}_{i}": _seal(**{name: v}) for name, values in {
        "data": ([[0.5, 600]], [[-8, 600]], [[600, 512]], [["a", "b"]], [[1]], 7, None, [[512, 10**18]], [[True, False]]),
        "part": (-1, True, 1.5, "0", 0), "size": (-1, "9", 10**18, None), "v": (0, 99, "1", None, True, 1.0),
        "plan": (7, None), "sha256": (7, ""), "outside": (None, 7), "more": (1,),
    }.items() for i, v in enumerate(values)},
    "seal_deep": _block(b"[" * 504),
    "seal_nan": _block(b'{"v":NaN}'),
    "seal_text": _block(b'"v"'),
    "seal_digits": _block(b'{"v":' + b"9" * 490 + b"}"),
    "huge_spec": file(inside=lambda opened: opened["images"].create_dataset("spec", (300_000, 300_000), "f8", chunks=(8, 8))),
    "linked": file(inside=lambda opened: opened.__setitem__("more", h5py.ExternalLink("/etc/passwd", "/"))),
    **{name: BAD_FILES[name] for name in ("fifo", "device", "sparse", "empty", "text", "deep")},
}  # fmt: skip
"""Maps files that must be refused."""

SHOWN: dict[str, Callable[[Path], Any]] = {
    **{f"certificate_{i}": file(inside=_certificate(v)) for i, v in enumerate((
        {"layers": [{**LAYER, "row_sum_error": "text"}]}, {"layers": [{**LAYER, "value_error": [1]}]}, {"layers": 7},
        {"layers": ["x"]}, {"layers": [{}]}, {"layers": [LAYER], "fused_difference": "x"}, [1, 2], 7, None,
        {"layers": [LAYER], "n_images": "\x1b[2J", "output_equal": "x"}, {"layers": {"a": 1}}, {"layers": [[]]},
    ))},
    "certificate_deep": file(inside=lambda opened: _certificate("[" * 20_000 + "]" * 20_000)(opened)),
    **{f"config_{i}": file(_set(*FACTS, "config", to=v)) for i, v in enumerate(([], None, "x", 7, {"images": 7}))},
    **{f"config_{name}_{i}": file(_set(*FACTS, "config", name, to=v)) for name, values in {
        "class_names": (7, [1, 2], "ab", {"a": 1}, [["x"]], [None], ["\x1b[2J", "=1+1"]),
        "images": ([], "digits", {"data": 7}, {"data": "hf:x"}, {"data": "digits", "split": []},
                   {"data": "fractals:999999999:999999999"}, {"data": "digits", "images": -3},
                   {"data": "digits", "images": 10**12}, {"data": "\0"}),
        "spec": ([], 7, {"size": [10**6, 10**6]}, {**SPEC, "size": [300_000, 300_000]}, {**SPEC, "size": [0, 8]},
                 {**SPEC, "std": [0] * 3}, {**SPEC, "mean": []}, {**SPEC, "crop_pct": 0}, {**SPEC, "crop_pct": -1},
                 {**SPEC, "crop_pct": 1e-9}, {**SPEC, "interpolation": "x"}, {**SPEC, "size": [8, "8"]},
                 {**SPEC, "mean": [float("nan")] * 3}, {**SPEC, "crop_mode": "x"}, {**SPEC, "mean": [0.5] * 1000}),
        "parameters": ("x", [], -1, {"a": 1}), "options": (7, []), "notes": (7, [[1]]),
    }.items() for i, v in enumerate(values)},
    **{f"fact_{name}_{i}": file(_set(*FACTS, name, to=v)) for name, values in {
        "model": (7, None, [1], "\x1b]0;x\x07"), "variant": (7, {"a": 1}), "seed": ("x", [1], 1.5, 10**400),
        "versions": ([], 7, {"torch": [1]}), "settings": ([], 7), "data": (7, None, "\x1b[2J"), "device": ([],),
        "checkpoint_sha256": (7, None), "batch_images": (0, "x", -1),
    }.items() for i, v in enumerate(values)},
    "names": file(ids=("=1+1", "\x1b[2J", "<script>")),
}  # fmt: skip
"""Maps files with wrong entries that are only shown: refused in one line, or reported on without these."""


def _parts(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write(folder.with_suffix(".h5"), keep_shards=True)
        change(folder)

    return make


def _plan(change: Callable[[Plan], Any], *, resealed: bool = True) -> Callable[[Path], None]:
    """A folder whose plan.json was changed and given its hash again."""

    def alter(folder: Path) -> None:
        path = folder / "plan.json"
        plan = json.loads(path.read_text())
        plan.pop("plan_id")
        change(plan)
        ids, labels = plan.pop("image_ids", None), plan.pop("labels", None)
        if resealed and isinstance(plan.get("facts"), dict):
            plan["facts"] |= {"image_ids_sha256": digest(ids), "labels_sha256": digest(labels)}
        path.write_text(canonical({**plan, "plan_id": digest(plan), "image_ids": ids, "labels": labels}))

    return _parts(alter)


SHARD, CERTIFICATE = "shards/s000000.h5", "certificate.json"

PARTS: dict[str, Callable[[Path], Any]] = {
    **{f"plan_{kind}": _parts(lambda folder, kind=kind: put(folder / "plan.json", kind)) for kind in BAD_FILES},
    **{f"shard_{kind}": _parts(lambda folder, kind=kind: put(folder / SHARD, kind)) for kind in BAD_FILES},
    **{f"ids_{i}": _plan(_set("image_ids", to=v)) for i, v in enumerate(([1, 2, 3], "abc", {"a": 1}, None, [], [None] * 3,
                                                                         ["a"], [["a"], "b", "c"]))},
    **{f"labels_{i}": _plan(_set("labels", to=v)) for i, v in enumerate((["x"], 7, {"a": 1}, [1.5, 2, 3], None))},
    **{f"images_{i}": _plan(_set(*FACTS, "n_images", to=n)) for i, n in enumerate((0, -1, "3", 3.5, None, 10**15, 10**30))},
    **{f"per_shard_{i}": _plan(_set("layout", "shard_images", to=n)) for i, n in enumerate((0, -1, "1", 0.5, None))},
    **{f"layout_{i}": _plan(_set("layout", to=n)) for i, n in enumerate(([], None, 7))},
    "many_shards": _plan(lambda plan: (plan["facts"].update(n_images=10**13), plan["layout"].update(shard_images=1))),
    "shards_pipe": _parts(lambda folder: [(folder / "shards" / f.name).unlink() for f in (folder / "shards").iterdir()]),
}  # fmt: skip

SHOWN_PARTS: dict[str, Callable[[Path], Any]] = {
    f"certificate_{kind}": _parts(lambda folder, kind=kind: put(folder / CERTIFICATE, kind)) for kind in BAD_FILES
}
"""Folders of shards whose certificate is a bad file: reported on, without it."""
