"""Pixels of captured images, found again in their data set; run as a process, it answers ids with files.

Data sets need torch, torchvision and timm, which take seconds and 800 MB to load. A viewer shows maps without them, so
it asks a process of its own (`python -m attnprobe.photographs`) for pictures, and has none if that one fails.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from attnprobe.core.errors import AttnprobeError
from attnprobe.view.photo import as_file

if TYPE_CHECKING:
    from attnprobe.core.images import ImageSource

PATIENCE = 0.4
"""Seconds a killed process has to end."""


class DataSet:
    """The images of a capture; `where` has the position of each id, and nothing if the data set is not at hand."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` as a maps file has it."""
        from attnprobe.core.config import from_mapping
        from attnprobe.core.images import InputSpec
        from attnprobe.data import load_images

        self.where: dict[str, int] = {}
        reference, spec = config.get("images"), config.get("spec")
        if not reference or not spec:
            return
        folder = reference["data_dir"] and Path(reference["data_dir"])
        try:
            self._spec = from_mapping(InputSpec, spec, source="maps file")
            self._source: ImageSource = load_images(
                reference["data"],
                reference["split"],
                spec=self._spec,
                data_dir=folder,
                limit=reference["images"],
                bad_images="skip",
            )
        except (AttnprobeError, OSError):
            return
        self.where = {image_id: position for position, image_id in enumerate(self._source.ids)}

    def pixels(self, image_ids: Sequence[str]) -> np.ndarray:
        """[image, row, col, 3], uint8, as the model saw them; every id is one of `where`."""
        import torch

        batch = next(self._source.batches(len(image_ids), order=[self.where[i] for i in image_ids]))
        return (self._spec.restore(batch.pixels) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


class Photographs:
    """Files of images by id, from another process that starts when the first is asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._starting = threading.Lock()

    def __call__(self, image_id: str) -> bytes | None:
        """A PNG or WebP file; None if the image is not at hand, or `close` was called meanwhile."""
        with self._starting:
            if self._closed:
                return None
            process, begun = self._process, self._process is not None
            if process is None:
                process = self._process = subprocess.Popen(
                    [sys.executable, "-m", "attnprobe.photographs"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
        if not begun:
            _ask(process, self._config)
        return _ask(process, image_id)

    def close(self) -> None:
        """End the process, whatever it is doing; a thread that waits for its answer gets None."""
        with self._starting:
            process, self._process, self._closed = self._process, None, True
        if process is None:
            return
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # a disk that hangs keeps even a killed process
            process.wait(PATIENCE)
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what nobody has read
                    assert pipe
                    pipe.close()


def _ask(process: subprocess.Popen[bytes], what: Any) -> bytes | None:
    assert process.stdin and process.stdout
    try:
        process.stdin.write(json.dumps(what).encode() + b"\n")
        process.stdin.flush()
        length = int.from_bytes(process.stdout.read(4), "little")
        return process.stdout.read(length) or None
    except (OSError, ValueError):  # it ended, as where the data set cannot be opened at all, or it was closed
        return None


def answer(questions: BinaryIO, answers: BinaryIO) -> None:
    """Lines of JSON, first the config, then ids -> a length of 4 bytes and a file each; empty for what is not there."""
    data: DataSet | None = None
    for line in questions:
        file = b""
        if data is None:
            data = DataSet(json.loads(line))
        elif (image_id := json.loads(line)) in data.where:
            file, _ = as_file(data.pixels([image_id])[0])
        answers.write(len(file).to_bytes(4, "little") + file)
        answers.flush()


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not be taken for a picture
    answer(sys.stdin.buffer, channel)
