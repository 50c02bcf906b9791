"""Every hostile file with every command that reads such a file."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.hostile import checkpoints, maps
from tests.hostile.files import BAD_FILES, put


@dataclass(frozen=True)
class Case:
    """A hostile file and a command that reads it.

    Attributes:
        make: makes it at `place`, below the folder in which the command runs.
        command: arguments; FILE stands for the place.
        refused: exit code 2 is demanded; otherwise 0 is allowed, too.
    """

    name: str
    make: Callable[[Path], Any]
    place: str
    command: tuple[str, ...]
    refused: bool

    def __str__(self) -> str:
        return f"{self.command[0]}-{self.name}"


ARGUMENTS = json.dumps({name: value for name, value in checkpoints.SMALL.items() if name != "num_classes"})
TINY = ("--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "batch_size=512", "--set", "model=vit_16_digits",
        "--set", f"model_kwargs={ARGUMENTS}")  # fmt: skip
READ_MODELS = (
    ("inspect", "FILE"),
    ("capture", "FILE", "--data", "digits", "--images", "4", "-o", "out.h5"),
    ("evaluate", "FILE", "--data", "digits", "--images", "20"),
    ("prune", "FILE", "--blocks", "2", "--data", "digits", "--images", "20", "-o", "out"),
    ("verify-drops", "FILE", "--blocks", "2", "--data", "digits", "--images", "20", "-o", "out"),
    ("train", "digits_vit_16", *TINY, "--set", "initial_checkpoint=FILE", "-o", "out"),
)
METRICS = ("--metric", "row_entropy")
READ_MAPS = (
    ("inspect", "FILE"),
    ("report", "FILE", *METRICS, "-o", "out"),
    ("compare", "FILE", "honest.h5", *METRICS, "-o", "out"),
    ("plot", "FILE", "--figure", "depth_curve", *METRICS, "-o", "out.png"),
    ("plot", "FILE", "--figure", "attention_grid", "-o", "out.png"),
    ("view", "FILE", "--no-browser"),
    ("verify", "FILE"),
    ("verify-drops", "model", "--maps", "FILE", "--data", "digits", "--images", "20"),
)

MAPS = torch.ones(2, 3, 4, 4)

ARRAYS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "npy_huge": ("a.npy", lambda path: path.write_bytes(_npy((1 << 20,) * 4))),
    "npy_object": ("a.npy", lambda path: np.save(path, np.array([{}], object))),
    "npy_negative": ("a.npy", lambda path: path.write_bytes(_npy((-1, 2, 3, 3)))),
    "npz_bomb": ("a.npz", lambda path: np.savez_compressed(path, a=np.zeros((1, 1, 32 << 10, 32 << 10), "f4"))),
    "pkl_deep": ("a.pkl", lambda path: path.write_bytes(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")),
    "pkl_shared": ("a.pkl", lambda path: path.write_bytes(b"\x80\x02" + _shared(40))),
    "pkl_named_often": ("a.pkl", lambda path: _pickle(path, checkpoints.named_often(MAPS.numpy(), 40, 6))),
    "pkl_named_often_dict": ("a.pkl", lambda path: _pickle(path, checkpoints.named_often([MAPS.numpy()], 99, 5, True))),
    "pkl_large_often": ("a.pkl", lambda path: _pickle(path, [np.ones((1, 4, 512, 512), "f4")] * 90_000)),
    "pkl_long_names": ("a.pkl", lambda path: _pickle(path, {"a" * 100_000: [MAPS.numpy()] * 90_000})),
    "pt_named_often": ("a.pt", lambda path: torch.save(checkpoints.named_often(MAPS, 40, 6), path)),
    "pt_named_often_dict": ("a.pt", lambda path: torch.save(checkpoints.named_often(MAPS, 99, 5, True), path)),
    "pt_large_often": ("a.pt", lambda path: torch.save([torch.ones(1, 4, 512, 512)] * 90_000, path)),
    **{
        f"pkl_{name}": ("a.pkl", lambda path, body=body: path.write_bytes(b"\x80\x02" + body + b"."))
        for name, body in checkpoints.OPERATIONS.items()
    },
    "pkl_tensor_often": ("a.pkl", lambda path: path.write_bytes(checkpoints.tensor_often())),
    "pkl_frame": ("a.pkl", lambda path: path.write_bytes(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b".")),
    "pkl_long": ("a.pkl", lambda path: path.write_bytes(b"\x80\x02T\xff\xff\xff\x7f.")),
    "pt_complex": ("a.pt", lambda path: torch.save(torch.zeros(1, 2, 3, 3, dtype=torch.complex64), path)),
    "pt_float8": ("a.pt", lambda path: torch.save(torch.zeros(1, 2, 3, 3).to(torch.float8_e4m3fn), path)),
    "pt_sparse": ("a.pt", lambda path: torch.save(torch.zeros(1, 2, 3, 3).to_sparse(), path)),
    "pt_meta": ("a.pt", lambda path: torch.save(torch.zeros(1, 2, 3, 3, device="meta"), path)),
    "pt_stride_0": ("a.pt", lambda path: torch.save(torch.zeros(1).expand(1, 1, 10**6, 10**6), path)),
    "pt_empty": ("a.pt", lambda path: torch.save(torch.zeros(0, 2, 3, 3), path)),
    "pt_no_keys": ("a.pt", lambda path: torch.save(torch.zeros(1, 2, 0, 0), path)),
    **{f"npy_{kind}": ("a.npy", lambda path, kind=kind: put(path, kind)) for kind in BAD_FILES},
    **{f"pth_{name}": ("a.pth", checkpoints.PICKLES[name]) for name in (
        "deflated", "overlapping", "many_members", "nested", "runs", "shared", "named_often", "tuple_key", "tuple_deep",
        "addresses",
    )},
}  # fmt: skip


def _npy(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118 + 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


def _pickle(path: Path, tree: Any) -> None:
    path.write_bytes(pickle.dumps(tree))


def _shared(depth: int) -> bytes:
    """The rest of a pickle of lists that hold one list twice each."""
    body = b"]q\x00"
    for i in range(depth):
        body += b"]q" + bytes([i + 1]) + b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e"
    return body + b"."


def _run(change: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A run with one checkpoint, or the files around it, changed."""

    def make(folder: Path) -> None:
        from attnprobe.io.run import Run

        run = Run(folder)
        checkpoints.write_folder(run.checkpoint(1))
        epoch = run.checkpoint(1)
        (epoch / "state.json").write_text(json.dumps({"epoch": 1, "best": 0.5, "best_epoch": 1, "optimizer": {}}))
        (epoch / "train_state.safetensors").write_bytes((epoch / "model.safetensors").read_bytes())
        run.config.write_text("model: vit_16_digits\ndataset: digits\n")
        maps.write(run.maps)
        change(folder)
        if not (epoch / "MANIFEST.json").exists():
            checkpoints.seal(epoch)

    return make


STATES = (
    {}, {"epoch": "1"}, {"epoch": -1}, {"epoch": 1.5}, {"epoch": 10**9, "optimizer": {}}, {"optimizer": []},
    {"epoch": 1, "optimizer": {"x": 1}}, {"epoch": 1, "optimizer": {"0/step": "x"}}, [], 7, None,
    {"epoch": 1, "best": "x", "best_epoch": [], "optimizer": {}}, {"epoch": 1, "optimizer": {}, "scaler": 7},
    {"epoch": 1, "optimizer": {}, "step": -5, "loss": "x"}, {"epoch": 1, "optimizer": {}, "step": 10**12},
)  # fmt: skip
EPOCH = "checkpoints/epoch-0001"

RUNS: dict[str, Callable[[Path], Any]] = {
    **{
        f"state_{i}": _run(lambda f, s=s: (f / EPOCH / "state.json").write_text(json.dumps(s)))
        for i, s in enumerate(STATES)
    },
    **{f"config_{kind}": _run(lambda f, kind=kind: put(f / "config.yaml", kind)) for kind in BAD_FILES},
    **{f"manifest_{kind}": _run(lambda f, kind=kind: put(f / EPOCH / "MANIFEST.json", kind)) for kind in BAD_FILES},
}
RUN_FILES: dict[str, Callable[[Path], Any]] = {
    **{f"warnings_{kind}": _run(lambda f, kind=kind: put(f / "warnings.json", kind)) for kind in BAD_FILES},
    **{f"log_{kind}": _run(lambda f, kind=kind: put(f / "summary.csv", kind)) for kind in BAD_FILES},
    **{
        f"history_{kind}": _run(lambda f, kind=kind: ((f / "probe").mkdir(), put(f / "probe/probe.h5", kind)))
        for kind in BAD_FILES
    },
    **{f"untrained_{kind}": _run(lambda f, kind=kind: put(f / "maps-untrained.h5", kind)) for kind in BAD_FILES},
}
READ_RUNS = (
    ("inspect", "FILE"),
    ("evaluate", "FILE", "--data", "digits", "--images", "20"),
    ("train", "digits_vit_16", *TINY, "-o", "FILE"),
    ("report", "FILE", *METRICS, "-o", "out"),
)


def cases() -> Iterator[Case]:
    """Every pair of a file and a command."""
    for name, (place, make) in checkpoints.CHECKPOINTS.items():
        for command in READ_MODELS:
            ignored = command[0] == "train" and checkpoints.has_sound_weights(name)
            yield Case(name, make, place, command, name not in checkpoints.HARMLESS and not ignored)
    for name, make in checkpoints.HUB_FOLDERS.items():
        for command in READ_MODELS[:3]:
            hub = tuple(part.replace("FILE", "hf:FILE") for part in command)
            yield Case(f"hub/{name}", make, "model", hub, not name.startswith("architectures_"))
    for kinds, place, refused in (
        (maps.REFUSED, "maps.h5", True), (maps.SHOWN, "maps.h5", False),
        (maps.PARTS, "maps.parts", True), (maps.SHOWN_PARTS, "maps.parts", False),
    ):  # fmt: skip
        for name, make in kinds.items():
            for command in READ_MAPS if refused else READ_MAPS[:5]:  # a file that opens would be served for ever
                yield Case(f"{place}/{name}", make, place, command, refused)
    for name, make in maps.PARTS.items():
        yield Case(f"begun/{name}", make, "out.parts", ("capture", "model", *READ_MODELS[1][2:]), False)
    for name, (place, make) in ARRAYS.items():
        yield Case(f"arrays/{name}", make, place, ("import", "FILE", "-o", "out.h5"), True)
    for kinds in (RUNS, RUN_FILES):
        for name, make in kinds.items():
            for command in READ_RUNS:
                yield Case(f"run/{name}", make, "run", command, False)
