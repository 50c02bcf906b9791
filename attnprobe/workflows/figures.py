"""Which images does a report show, and where does the model look in them?"""

import warnings

import numpy as np

from attnprobe.core.examined import AttendedImage
from attnprobe.io.reference import NOT_SAID, UserImages
from attnprobe.io.run import run_of
from attnprobe.store import MapReader
from attnprobe.workflows.view_images import DataSet


def pictures_of(reader: MapReader, count: int, user: UserImages = NOT_SAID) -> tuple[AttendedImage, ...]:
    """A few images, evenly spread over the file, with the attention they get; none if the data set is not at hand.

    Warns why it is not.
    """
    config = reader.attrs.get("config", {})
    data = DataSet(config, run_of(reader.path), user) if count else None
    if data and data.why and config.get("images"):
        warnings.warn(f"{reader.path} is shown without pictures: {data.why}", stacklevel=2)
    chosen = [int(i) for i in np.linspace(0, len(reader) - 1, min(count, len(reader)))]
    chosen = [i for i in chosen if data and reader.image_ids[i] in data.where]
    if not data or not chosen:
        return ()
    pixels = data.pixels([reader.image_ids[i] for i in chosen])
    maps = reader.maps(site=reader.sites()[0], images=chosen)
    grid = maps.grid
    if maps.part.queries is not None and maps.part.queries[0] != 0:
        return ()  # whom the first of its rows belongs to is not shown
    if maps.kind not in ("self", "pyramid") or maps.values.shape[-1] != grid.n_tokens or not grid.rows:
        return ()  # what its keys are has no place in the picture
    rows = maps.values[:, :, :, 0] if grid.n_prefix else maps.values.mean(3)  # [image, layer, head, key]
    attention = rows[..., grid.n_prefix :].unflatten(-1, (grid.rows, grid.cols)).float().numpy()
    names = config.get("class_names") or ()
    told = maps.outcome

    def class_name(index: int) -> str:
        return names[index] if 0 <= index < len(names) else str(index) if index >= 0 else ""

    return tuple(
        AttendedImage(
            image_id=maps.image_ids[i],
            pixels=pixels[i],
            label=class_name(int(told.labels[i])) if told else "",
            prediction=class_name(int(told.prediction[i])) if told else "",
            probability=float(told.probability[i]) if told else float("nan"),
            attention=attention[i],
        )
        for i in range(len(chosen))
    )
