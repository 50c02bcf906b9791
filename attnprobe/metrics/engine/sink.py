"""Measuring without keeping a map: a folder of slices, made by one process or by all of a job."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from attnprobe.core.errors import InputError, MapsFileError
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.spec import KEEP_VALUES
from attnprobe.io import fs
from attnprobe.io.ranks import Claims, Rank, shared_out
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.folding import Folding
from attnprobe.metrics.engine.slices import Skipped, images_of, measure_slice, merge_slices
from attnprobe.metrics.engine.tree import Tree
from attnprobe.stats.poisson import REPLICATES

MOST_BYTES = 64 << 20
"""Maximum size of plan.json, which has some kilobytes of facts."""

SLICE = 64
"""Images whose measurements are one file: what a stop costs at most, and the smallest share of work."""

LARGER = 16
"""A slice of folded values has so many times as many images, since each is as large as the sums of all."""

MOST_SLICES = 512
"""Slices of folded values at most; of very many images a slice has more."""


class MeasureSink:
    """Slices instead of shards: to whoever captures, the same as a `MapWriter`, but it keeps measurements and no maps.

    plan.json says what is measured and how many images are a batch; it is written once, and whoever comes later
    believes it. A slice is a whole number of batches, claimed by one process and committed in one step. Of more than
    `keep_values` images, values are folded into sums (`folding`), and slices into one another (`tree`), so that neither
    memory nor disk grow with the number of images.

    Attributes:
        skipped: images that could not be read, once it is closed.

    Args:
        folder: where the slices are; made if need be. The caller holds its lock (`io.ranks.held`).
        rank: which process of which job this is.
        facts: of the capture, as plain JSON.
        image_ids: of all images, in order.
        metrics: as for `measure`.
        keep_values: images up to which the values of each are kept.
        group: as for `measure`; what is folded is folded by group.

    Raises:
        InputError: the folder was begun with other facts or metrics, or by an attnprobe that did not pin the batch.
    """

    may_skip = True
    """Images that cannot be read may be left out; the source of the images decides."""

    def __init__(
        self,
        folder: Path,
        rank: Rank,
        facts: Mapping[str, Any],
        image_ids: Sequence[str],
        metrics: Sequence[str] | None = None,
        keep_values: int = KEEP_VALUES,
        group: str | None = None,
    ) -> None:
        self.folder, self._rank, self._image_ids, self._metrics = folder, rank, image_ids, metrics
        measured = [{"name": metric.name, **metric.all_settings} for metric in choose(metrics)[0]]
        self.skipped = Skipped()
        self._folding = Folding.of(image_ids, keep_values, group)
        folded = {"keep_values": keep_values, "group": group, "replicates": REPLICATES} if self._folding else {}
        self._facts = json.loads(json.dumps({**facts, "metrics": measured, **folded}))  # as plan.json will have them
        self.batch_images: int | None = None
        fs.make_folder(folder)
        self._claims = Claims(folder / "claims")
        if (folder / "plan.json").exists():
            self._adopt()

    @property
    def begun(self) -> bool:
        """True if it is known what a slice is."""
        return self.batch_images is not None

    def begin(self, maps: Sequence[AttentionMaps], batch_images: int) -> None:
        """Pin how many images are a batch, unless another process was first; what maps look like does not matter."""
        plan = json.dumps({**self._facts, "batch_images": batch_images}, sort_keys=True)
        with suppress(FileExistsError):
            fs.write_file(self.folder / "plan.json", plan.encode())
        self._adopt()

    def pending(self) -> list[range]:
        """Positions of the images of each slice that is not there."""
        return [self._images(k) for k in range(self._tree.n) if not self._tree.has(k)]

    def parts(self) -> Iterator[range]:
        """Positions of the images of each slice that this process is to measure, claimed one after the other."""
        tree = self._tree
        yield from map(self._images, shared_out(self._rank, tree.n, self._claims, tree.has))

    def write(self, part: range, batches: Iterator[list[AttentionMaps]], skipped: Skipped | None = None) -> None:
        """Measure the images of one slice, and commit that; `skipped` is filled while batches are read."""
        maps = (maps for batch in batches for maps in _popped(batch))
        data = measure_slice(maps, self._metrics, self._folding, skipped)
        number = part.start // self._size
        with suppress(FileExistsError):  # another process was first, where the file system has no locks
            fs.write_file(self._tree.path((0, number)), data)
        if self._folding:
            self._tree.fold(number)

    def close(self) -> list[Path]:
        """All slices if they are there, whoever made them; none while others are at some. Folded, they are a few files.

        Raises:
            MapsFileError: a slice is about other images than those of the plan, in order.
        """
        if self.pending():
            return []
        tree = self._tree
        nodes = tree.roots() if self._folding else [(0, k) for k in range(tree.n)]
        files = tree.complete() if self._folding else [tree.path(node) for node in nodes]
        for numbers, path in zip(map(tree.slices, nodes), files, strict=True):
            ids = self._image_ids[self._images(numbers[0]).start : self._images(numbers[-1]).stop]
            kept = self._folding.kept(ids) if self._folding else list(ids)
            found, n_images, skipped = images_of(fs.read_regular(path))
            self.skipped.add(skipped.names, skipped.n)
            if (found != kept and not (skipped.n and set(found) <= set(kept))) or n_images + skipped.n != len(ids):
                raise MapsFileError(
                    f"{path} is about {n_images} images where {len(ids)} were to be measured, or about others. Remove "
                    "it and run the same command again."
                )
        self._claims.remove()
        return files

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._claims.release_all()

    def _adopt(self) -> None:
        """Take the batch from the plan that is there."""
        try:
            pinned = fs.parse_json(fs.read_regular(self.folder / "plan.json", MOST_BYTES))
            batch_images = pinned.pop("batch_images", None)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{self.folder / 'plan.json'} is damaged: {error}. Remove the folder.") from error
        if batch_images is None:
            raise InputError(f"{self.folder} was begun by an older attnprobe; remove it, or choose another -o.")
        if pinned != self._facts or type(batch_images) is not int or batch_images < 1:
            raise InputError(
                f"{self.folder} was begun with another model, images, options or metrics; choose another -o."
            )
        self.batch_images = batch_images

    @property
    def _size(self) -> int:
        assert self.batch_images is not None, "begin() comes first"
        if not self._folding:
            return self.batch_images * max(SLICE // self.batch_images, 1)
        batches = -(-len(self._image_ids) // (MOST_SLICES * self.batch_images))
        return self.batch_images * max(batches, LARGER * SLICE // self.batch_images, 1)

    @property
    def _tree(self) -> Tree:
        return Tree(self.folder, -(-len(self._image_ids) // self._size), merge_slices)

    def _images(self, number: int) -> range:
        return range(number * self._size, min(len(self._image_ids), (number + 1) * self._size))


def _popped(batch: list[AttentionMaps]) -> Iterator[AttentionMaps]:
    """One by one, so that none is held while the next batch is computed: its memory is then used again."""
    while batch:
        yield batch.pop(0)
