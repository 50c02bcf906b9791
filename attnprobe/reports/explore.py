"""Which of a report's runs and images can be explored in the page?"""

from collections.abc import Sequence

import numpy as np

from attnprobe.core.examined import Examined
from attnprobe.reports.drawing import as_uri
from attnprobe.view.described import Viewed, explorable, left_out
from attnprobe.view.embedded import Embedded, embed
from attnprobe.view.photo import as_file

MOST_IMAGES = 6


def explorer_of(runs: Sequence[Examined], budget: int) -> Embedded | None:
    """The maps of the report's pictures, in at most `budget` bytes; images that several runs have seen come first."""
    viewed = [Viewed(e.name, e.maps, e.class_names) for e in runs if e.maps is not None]
    pictures = {picture.image_id: picture.pixels for e in runs for picture in e.pictures}
    ids = list(pictures) or [image_id for run in viewed[:1] for image_id in _spread(run.maps.image_ids)]
    ids.sort(key=lambda image_id: -sum(image_id in run.places for run in viewed))
    files = {i: as_file(pixels) for i, pixels in pictures.items()}
    uris = {i: str(as_uri(kind, data)) for i, (data, kind) in files.items()}
    return embed(viewed, ids[:MOST_IMAGES], uris, budget)


def why_none(runs: Sequence[Examined]) -> list[str]:
    """In sentences, why a page whose runs have maps has no explorer."""
    viewed = [Viewed(e.name, e.maps, e.class_names) for e in runs if e.maps is not None]
    if not any(explorable(run.maps) for run in viewed):
        return left_out(viewed)
    return ["No image's maps fit into this page; attnprobe view maps.h5 shows them all."]


def _spread(ids: Sequence[str]) -> list[str]:
    """A few, evenly spread."""
    return [ids[int(i)] for i in np.linspace(0, len(ids) - 1, min(MOST_IMAGES, len(ids)))]
