"""Maps on their way to the disk, while the model computes the next ones; by one process, or by all of a job."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from attnprobe.core.errors import InputError, did_you_mean, option
from attnprobe.core.maps import AttentionMaps
from attnprobe.io.ranks import ALONE, Rank
from attnprobe.io.remote import RemotePath, place
from attnprobe.store.first_batch import difference, stage_layouts
from attnprobe.store.job import Job
from attnprobe.store.layout import ITEM_BYTES
from attnprobe.store.memory import Memory
from attnprobe.store.offload import Offloaded, copies_by_itself
from attnprobe.store.plan import CapturePlan, Pinned
from attnprobe.store.shard import Shard


class MapWriter:
    """Writes NAME.h5 by way of NAME.parts, and resumes what an earlier process left there.

        with MapWriter(Path("maps.h5"), plan) as writer:
            if not writer.begun:
                writer.begin(first_maps)                    # of some of the images: they tell shapes and sizes
            for positions in writer.parts():                # a shard at a time, claimed by this process
                for maps in capture_images(positions):      # every stage and site of the same images
                    writer.append(maps)
            writer.close(certificate)

    One thread casts, compresses and commits, while the caller computes the next batch, on a GPU too: in memory are
    at most that one batch and one shard. Tensors belong to the writer once appended. A finished shard survives
    whatever comes; an unfinished one is lost with the process.

    Several processes of one job write into one folder, each the shards that it claims. What a shard is depends neither
    on rank nor on their number: the first to write plan.json is believed. None waits for another; whoever closes when
    no shard is missing makes the file.

    Args:
        path: NAME.h5. The folder it lies in is made if need be. Of an object store it is a URL, where processes that
            know nothing of each other write one file as those of a job do.
        rank: which process of which job this is.
        dtype: of maps and tokens in the file. float16 turns weights below 6e-8 to zero.
        overwrite: NAME.h5 may be replaced, when the new one is complete; an unfinished capture by another
            plan may be thrown away. One by the same plan is continued. Not for a job, whose late processes could not
            tell the old file from the new one.
        keep_shards: the result is NAME.parts. Also where the disk has no room for a second copy.

    Raises:
        InputError: NAME.h5 exists, or NAME.parts was begun with another plan. To a process of a job, NAME.h5 of the
            same plan is no error: the others were faster.
        MapsFileError: plan.json is damaged.
        InUse: another process writes here, that is not of this job.
        WorkError: the disk has no room for what is still to come.
    """

    may_skip = False
    """A file holds every image of its plan."""

    def __init__(
        self,
        path: Path,
        plan: CapturePlan,
        rank: Rank = ALONE,
        *,
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        overwrite: bool = False,
        keep_shards: bool = False,
    ) -> None:
        self.path, self.plan, self._dtype = place(path, output=True), plan, dtype
        if self.path.suffix != ".h5":
            raise InputError(f"maps are written to a file that ends in .h5, got {self.path}; try {self.path}.h5.")
        if dtype not in ITEM_BYTES:
            raise InputError(f"maps cannot be stored as {dtype!r}.{did_you_mean(dtype, ITEM_BYTES)}")
        if isinstance(self.path, RemotePath):  # nothing tells whether other processes write there
            rank = replace(rank, job=rank.job or "object store")
        if overwrite and rank.job:
            raise InputError(f"several processes do not replace {path}; remove it first.")
        self._position = {name: i for i, name in enumerate(plan.image_ids)}
        self._begun: set[int] = set()
        self._next = 0
        self._shard: Shard | None = None
        self._memory = Memory()
        self._work: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="maps-writer")
        self._job = Job(self.path, plan, rank, dtype=dtype, overwrite=overwrite, keep_shards=keep_shards)

    @property
    def folder(self) -> Path:
        """NAME.parts."""
        return self._job.folder

    @property
    def begun(self) -> bool:
        """True if it is known what a shard is."""
        return self._job.over or self._job.pinned is not None

    @property
    def batch_images(self) -> int | None:
        """Images of one forward pass, as `begin` pinned it; None where nothing was."""
        return None if self._job.pinned is None else self._job.pinned.batch_images

    def begin(self, maps: Sequence[AttentionMaps], batch_images: int | None = None) -> None:
        """Decide what a shard is, from all maps of some images, and pin it for this capture and its resumptions.

        What is computed in one batch may depend on it in the last bit. So that a file depends neither on where a
        capture was stopped nor on who captured what, a shard is a whole number of batches of `batch_images`, if given.
        """
        self._job.pin(maps, batch_images)

    def pending(self) -> list[range]:
        """Positions in `plan.image_ids` of the images to capture, one range per shard that is not finished.

        Before the first batch no shard size is known, and there is one range.
        """
        self._wait()
        return [range(self._next, s.stop) if self._next in s else s for s in self._job.missing()]

    def parts(self) -> Iterator[range]:
        """Positions of the images of each shard that this process is to capture, claimed one after the other."""
        return self._job.claimed()

    def write(self, part: range, batches: Iterator[list[AttentionMaps]]) -> None:
        """Append the batches of a shard, one after the other."""
        for maps in batches:
            self.append(maps)
            del maps  # the thread has them; here they would be held while the next ones are computed

    def settle(self) -> None:
        """Wait until every shard that is full is committed."""
        self._wait()

    def append(self, maps: Sequence[AttentionMaps]) -> None:
        """Store all the maps, every stage and site, of the same images.

        The images follow those of the last call, or begin another pending range. Waits for the batch before
        this one, and returns while this one is being stored.

        Raises:
            InputError: images that are not in the plan, or not next; maps unlike the first ones.
            WorkError: the disk failed or is full; all finished shards stay.
        """
        self._wait()
        start = self._place(maps)
        if not self.begun:
            self.begin(maps)
        pinned = self._job.pinned
        if self._job.over or pinned is None:
            raise InputError(f"{self.path} is complete; nothing can be appended.")
        unlike = difference(pinned.layout.stages, stage_layouts(maps, self._dtype, pinned.batch_images))
        if unlike:
            raise InputError(
                f"these maps are unlike the first ones in {self.folder}: {unlike}. Append every stage and site of "
                f"each image, or start anew with {option('overwrite', python='overwrite=True')}."
            )
        self._expect(pinned, start, maps[0].n_images)
        device, dtype = maps[0].values.device, getattr(torch, self._dtype)
        batch = Offloaded(maps, dtype) if copies_by_itself(device) else list(maps)
        self._work = self._thread.submit(self._store, pinned, start, batch)

    def close(self, certificate: Mapping[str, Any] | None = None) -> Path:
        """Wait for the last shard, merge, and return what was made: NAME.h5, or NAME.parts if shards are kept.

        For a process of a job also NAME.parts if others are still at some shards, or at merging them.

        Args:
            certificate: what capture proved about these maps; None keeps what an earlier process noted.

        Raises:
            WorkError: images are missing, or the disk failed; all finished shards stay.
        """
        try:
            self._wait()
            return self._job.finish(certificate)
        finally:
            self._release()

    def __enter__(self) -> "MapWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def _place(self, maps: Sequence[AttentionMaps]) -> int:
        """Position of the first of these images, which follow one another in the plan."""
        if not maps or any(m.image_ids != maps[0].image_ids for m in maps):
            raise InputError("append all the maps of the same images together; these are of different images, or none.")
        ids = maps[0].image_ids
        start = self._position.get(ids[0]) if ids else None
        if start is None or self.plan.image_ids[start : start + len(ids)] != ids:
            raise InputError(f"images {ids[:2]} and on do not follow one another in the plan; capture in plan order.")
        return start

    def _expect(self, pinned: Pinned, start: int, n_images: int) -> None:
        """Refuse images that are neither next nor the beginning of a shard that nobody began."""
        size = pinned.layout.shard_images
        spans = set(range(start // size, (start + n_images - 1) // size + 1))
        if start != self._next:
            between_shards = self._next % size == 0 or self._next == pinned.n_images
            if not (between_shards and start % size == 0):
                raise InputError(
                    f"image {self.plan.image_ids[start]!r} (position {start}) came where position {self._next} was "
                    "next; capture the ranges of pending() one after the other."
                )
        already = spans & self._job.done or {k for k in spans & self._begun if k * size >= start}
        if already:
            raise InputError(
                f"image {self.plan.image_ids[start]!r} is stored already; capture only what pending() says."
            )
        self._begun |= spans
        self._next = start + n_images

    def _store(self, pinned: Pinned, start: int, batch: list[AttentionMaps] | Offloaded) -> None:
        """In the writer's thread: hand the images to their shards and commit those that are full."""
        maps = batch.arrived() if isinstance(batch, Offloaded) else batch
        stop = start + maps[0].n_images
        at = start
        while at < stop:
            number = at // pinned.layout.shard_images
            if self._shard is None:
                self._shard = Shard(pinned, self.plan.image_ids, self.plan.labels, number, self._memory)
            until = min(stop, self._shard.positions.stop)
            self._shard.add([m.images(at - start, until - start) for m in maps])
            if self._shard.full:
                self._job.commit(number, self._shard.finish())
                self._shard = None
            at = until

    def _wait(self) -> None:
        """For the batch in the writer's thread; raises what went wrong there, each time."""
        if self._work is not None:
            self._work.result()

    def _release(self) -> None:
        # The thread first: it may still commit a shard, for which the folder's lock and its claim are held.
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        self._job.release()
