"""Pixels of captured images, read from their data set; run as a process, it answers ids with image files.

Data sets need torch, torchvision and timm, which take seconds and 800 MB to load. The viewer does without them, so it
asks a process of its own (`python -m attnprobe.workflows.view_images`) for images, and shows none if that one fails.
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

from attnprobe.core.errors import AttnprobeError, InputError
from attnprobe.io.reference import NOT_SAID, UserImages, allowed
from attnprobe.view.page import as_file

if TYPE_CHECKING:
    from attnprobe.core.images import ImageSource

PATIENCE = 0.4
"""Seconds to wait for a killed process."""


MAX_SIDE = 2048
"""Largest side in pixels that a file may ask for: a handful of such images take 300 MB."""


class DataSet:
    """The images of a capture.

    Attributes:
        where: {id: position}; empty if the images cannot be read.
        why: the reason for that, a sentence; "" otherwise.
        name, fingerprint: of the images, if they can be read.
    """

    def __init__(self, config: Mapping[str, Any], home: Path | None = None, user: UserImages = NOT_SAID) -> None:
        """`config` as a maps file has it; `home` and `user`: see `attnprobe.io.reference.allowed`."""
        from attnprobe.core.images import InputSpec
        from attnprobe.data import load_images
        from attnprobe.io.config import from_mapping

        self.where: dict[str, int] = {}
        self.why = "the file does not say which images it is about"
        if not config.get("images") or not config.get("spec"):
            return
        try:
            self._spec = from_mapping(InputSpec, config["spec"], source="maps file")
            if not all(0 < side <= MAX_SIDE for side in self._spec.size):
                raise InputError(f"the file asks for images of {self._spec.size} pixels; at most {MAX_SIDE} are shown.")
            reference = allowed(config["images"], "maps file", home, user)
            self._source: ImageSource = load_images(
                reference.data,
                reference.split,
                spec=self._spec,
                data_dir=None if reference.data_dir is None else Path(reference.data_dir),
                limit=reference.images,
                bad_images="skip",
            )
        except (AttnprobeError, OSError) as error:
            self.why = str(error)
            return
        self.where = {image_id: position for position, image_id in enumerate(self._source.ids)}
        self.name, self.fingerprint, self.why = self._source.name, self._source.fingerprint, ""

    def pixels(self, image_ids: Sequence[str]) -> np.ndarray:
        """[image, row, col, 3], uint8, as the model saw them; every id is one of `where`."""
        import torch

        batch = next(self._source.batches(len(image_ids), order=[self.where[i] for i in image_ids]))
        return (self._spec.restore(batch.pixels) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


class Photographs:
    """Image files by id, from another process that starts with the first request."""

    def __init__(self, config: Mapping[str, Any], home: Path | None = None, user: UserImages = NOT_SAID) -> None:
        """Arguments as for `DataSet`."""
        self._data_set = [config, home and str(home), user.data, user.data_dir and str(user.data_dir)]
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._starting = threading.Lock()

    def __call__(self, image_id: str) -> bytes | None:
        """A PNG or WebP file; None if the image cannot be read, or `close` was called meanwhile."""
        with self._starting:
            if self._closed:
                return None
            process, begun = self._process, self._process is not None
            if process is None:
                process = self._process = subprocess.Popen(
                    [sys.executable, "-m", "attnprobe.workflows.view_images"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
        if not begun:
            _ask(process, self._data_set)
        return _ask(process, image_id)

    def close(self) -> None:
        """End the process at once; a thread that waits for its answer gets None."""
        with self._starting:
            process, self._process, self._closed = self._process, None, True
        if process is None:
            return
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process blocked on a disk outlives its kill
            process.wait(PATIENCE)
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # unread output
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
    """Answer lines of JSON (first the data set, then ids) with 4 bytes of length and a file each; empty if unknown."""
    data: DataSet | None = None
    for line in questions:
        file = b""
        if data is None:
            config, home, name, folder = json.loads(line)
            data = DataSet(config, home and Path(home), UserImages(name, folder and Path(folder)))
        elif (image_id := json.loads(line)) in data.where:
            file, _ = as_file(data.pixels([image_id])[0])
        answers.write(len(file).to_bytes(4, "little") + file)
        answers.flush()


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not be taken for an image
    answer(sys.stdin.buffer, channel)
