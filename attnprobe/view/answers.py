"""Answers of the viewer to the requests of its page."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from attnprobe.core.errors import InputError
from attnprobe.core.text import visible
from attnprobe.view import page
from attnprobe.view.described import Viewed, described, explorable, left_out

IMAGES_LISTED = 12
KEPT_BYTES = 96 << 20
"""Size of the cache of layers: a query that moves over an image reads each of them once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its body and media type."""

    body: bytes
    kind: str


class Answers:
    """Answers with the page, lists of images, rows of maps and pixels; shared by all threads.

    Images are those of the first run; the others show what they share with it.
    """

    def __init__(self, runs: Sequence[Viewed], pixels: Callable[[str], bytes | None]) -> None:
        """`pixels` gives an image as a PNG or WebP file, by id; None if it is not at hand."""
        self._runs = [run for run in runs if explorable(run.maps)]
        if not self._runs:
            raise InputError(f"nothing to view: {' '.join(left_out(runs))}")
        self._stages = [explorable(run.maps) for run in self._runs]
        self._ids = list(self._runs[0].maps.image_ids)
        self._folded = [image_id.casefold() for image_id in self._ids]
        self._pixels = pixels
        self._reading, self._fetching = threading.Lock(), threading.Lock()  # h5py, and the process of the pictures
        self._stopped = False
        self._layers: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()
        self._found: tuple[str, list[int]] = ("", [])
        index = {
            "served": True,
            "page": IMAGES_LISTED,
            "runs": [described(run) for run in self._runs],
            "total": len(self._ids),
            "notes": left_out(runs),
        }
        self._page = page.whole_page(index).encode("utf-8", "replace")

    def stop(self) -> None:
        """Read nothing from now on: requests that wait for another one are refused."""
        self._stopped = True

    def answer(self, what: str, query: Mapping[str, str]) -> Answer | None:
        """The answer to GET what?query; None if there is no such thing.

        Raises:
            InputError: numbers that name nothing, a damaged file, or the viewer has been stopped.
        """
        if what == "":
            return Answer(self._page, "text/html; charset=utf-8")
        if what == "images":
            return Answer(json.dumps(self._images(query)).encode(), "application/json")
        if what == "row":
            return Answer(self._row(query).astype("<f4").tobytes(), "application/octet-stream")
        if what == "pixels":
            with self._taking_turns(self._fetching):
                found = self._pixels(self._ids[_number(query, "image", self._ids)])
            return Answer(found, "image/png" if found.startswith(b"\x89PNG") else "image/webp") if found else None
        return None

    @contextmanager
    def _taking_turns(self, lock: threading.Lock) -> Iterator[None]:
        with lock:
            if self._stopped:
                raise InputError("the viewer has been stopped; start it again.")
            yield

    def _images(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A few of the images whose ids contain these words, or whose number it is, counted from 1."""
        words = query.get("words", "").strip().casefold()
        places = self._matching(words)
        start = max(0, int(query["first"])) if query.get("first", "").isdecimal() else 0
        with self._taking_turns(self._reading):
            listed = [
                {
                    "place": i,
                    "id": visible(self._ids[i]),
                    "src": f"pixels?image={i}",
                    "told": [run.told(self._ids[i]) for run in self._runs],
                }
                for i in places[start : start + IMAGES_LISTED]
            ]
        return {"total": len(places), "images": listed}

    def _matching(self, words: str) -> Sequence[int]:
        if not words:
            return range(len(self._ids))
        found_words, found = self._found
        if found_words != words:
            found = [i for i, name in enumerate(self._folded) if words in name]
            number = int(words) - 1 if words.isdecimal() else -1
            if 0 <= number < len(self._ids) and number not in found:
                found.insert(0, number)
            self._found = words, found
        return found

    def _row(self, query: Mapping[str, str]) -> np.ndarray:
        """[head, key] of one query."""
        run = _number(query, "run", self._runs)
        stage = _number(query, "stage", self._stages[run])
        shape = self._stages[run][stage]
        site = _number(query, "site", shape.sites)
        layer = _number(query, "layer", shape.layers)
        token = _number(query, "query", shape.queries)
        image_id = self._ids[_number(query, "image", self._ids)]
        image = self._runs[run].places.get(image_id)
        if image is None:
            raise InputError(f"{self._runs[run].name} has no maps of image {image_id!r}.")
        with self._taking_turns(self._reading):
            place = (run, stage, site, image, layer)
            if place not in self._layers:
                read = self._runs[run].layer(shape, shape.sites[site][0], image_id, layer)
                while self._layers and sum(kept.nbytes for kept in self._layers.values()) + read.nbytes > KEPT_BYTES:
                    self._layers.popitem(last=False)
                self._layers[place] = read
            self._layers.move_to_end(place)
            return self._layers[place][:, token]


def _number(query: Mapping[str, str], name: str, among: Sequence[Any]) -> int:
    """A position in a list, from the query."""
    text = query.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < len(among)):
        raise InputError(f"{name}={text!r} is none of 0 to {len(among) - 1}.")
    return int(text)
