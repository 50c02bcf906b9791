"""How do maps get to the disk while the model goes on computing?"""

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from attnprobe.core.errors import InputError, MapsFileError, WorkError, did_you_mean
from attnprobe.core.maps import AttentionMaps
from attnprobe.io import fs
from attnprobe.io.lock import FileLock
from attnprobe.store import parts
from attnprobe.store.first_batch import decide, difference, stage_layouts
from attnprobe.store.layout import ITEM_BYTES
from attnprobe.store.memory import Memory
from attnprobe.store.merge import merge
from attnprobe.store.offload import Offloaded, copies_by_itself
from attnprobe.store.plan import CapturePlan, Pinned, require_same_plan, write_plan
from attnprobe.store.seal import read_seal, verify
from attnprobe.store.shard import Shard


class MapWriter:
    """Writes NAME.h5 by way of NAME.parts, and goes on with what an earlier process left there.

        with MapWriter(Path("maps.h5"), plan) as writer:
            if not writer.begun:
                writer.begin(first_maps)                    # of the first images of the plan
            for positions in writer.pending():
                for maps in capture_images(positions):      # every stage and site of the same images
                    writer.append(maps)
            writer.close(certificate)

    One thread casts, compresses and commits, while the caller computes the next batch, on a GPU too: in memory are
    at most that one batch and one shard. Tensors belong to the writer once
    appended. A finished shard survives whatever comes; an unfinished one is lost with the process.

    Args:
        path: NAME.h5. The folder it lies in is made if need be.
        dtype: of maps and tokens in the file. float16 turns weights below 6e-8 to zero.
        overwrite: NAME.h5 may be replaced, when the new one is complete; an unfinished capture by another
            plan may be thrown away. One by the same plan is continued.
        keep_shards: the result is NAME.parts. Also where the disk has no room for a second copy.

    Raises:
        InputError: NAME.h5 exists, or NAME.parts was begun with another plan.
        MapsFileError: plan.json is damaged.
        InUse: another process writes here.
        WorkError: the disk has no room for what is still to come.
    """

    _job = ""

    def __init__(
        self,
        path: Path,
        plan: CapturePlan,
        *,
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        overwrite: bool = False,
        keep_shards: bool = False,
    ) -> None:
        self.path = Path(path)
        self.folder = parts.parts_of(self.path)
        self.plan, self._dtype = plan, dtype
        self._overwrite, self._keep_shards = overwrite, keep_shards
        if self.path.suffix != ".h5":
            raise InputError(f"maps are written to a file that ends in .h5, got {self.path}; try {self.path}.h5.")
        if dtype not in ITEM_BYTES:
            raise InputError(f"maps cannot be stored as {dtype!r}.{did_you_mean(dtype, ITEM_BYTES)}")
        if not (self.folder / "plan.json").exists():
            self._refuse_existing()
        self._position = {name: i for i, name in enumerate(plan.image_ids)}
        self._pinned: Pinned | None = None
        self._done: set[int] = set()
        self._begun: set[int] = set()
        self._next = 0
        self._merged = False
        self._result: Path | None = None
        self._shard: Shard | None = None
        self._memory = Memory()
        self._work: Future[None] | None = None
        with fs.as_work_error(f"opening {self.folder}"):
            fs.make_folder(self.folder)
            self._lock = FileLock(self.folder / "run.lock", self._job)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="maps-writer")
            try:
                self._resume()
            except BaseException:
                self._release()
                raise

    @property
    def begun(self) -> bool:
        """Whether it is known what a shard is."""
        return self._merged or self._pinned is not None

    def begin(self, maps: Sequence[AttentionMaps]) -> range:
        """Decide what a shard is, from all maps of the first images; positions of the images of the first shard.

        What is computed in one batch may depend on it in the last bit. So that a file does not depend on where a
        capture was stopped, or on who captured what, a batch should be within one shard.
        """
        return self._pin(maps).shard(0)

    def pending(self) -> list[range]:
        """Positions in `plan.image_ids` of the images to capture, one range per shard that is not finished.

        Before the first batch no shard size is known, and there is one range.
        """
        return [range(self._next, s.stop) if self._next in s else s for s in self._missing()]

    def _missing(self) -> list[range]:
        """Positions of the images of all shards that are not finished."""
        self._wait()
        if self._merged:
            return []
        if self._pinned is None:
            return [range(len(self.plan.image_ids))]
        return [self._pinned.shard(k) for k in range(self._pinned.n_shards) if k not in self._done]

    def append(self, maps: Sequence[AttentionMaps]) -> None:
        """Store all the maps, every stage and site, of the same images.

        The images follow those of the last call, or begin another pending range. Waits for the batch before
        this one, and returns while this one is being stored.

        Raises:
            InputError: images that are not in the plan, or not next; maps unlike the first ones.
            WorkError: the disk failed or is full; all finished shards stay.
        """
        self._wait()
        if self._result or self._merged:
            raise InputError(f"{self.path} is complete; nothing can be appended.")
        start = self._place(maps)
        pinned = self._pinned or self._pin(maps)
        unlike = difference(pinned.layout.stages, stage_layouts(maps, self._dtype))
        if unlike:
            raise InputError(
                f"these maps are unlike the first ones in {self.folder}: {unlike}. Append every stage and site of each "
                "image, or start anew with --overwrite."
            )
        self._claim(pinned, start, maps[0].n_images)
        device, dtype = maps[0].values.device, getattr(torch, self._dtype)
        batch = Offloaded(maps, dtype) if copies_by_itself(device) else list(maps)
        self._work = self._thread.submit(self._store, pinned, start, batch)

    def close(self, certificate: Mapping[str, Any] | None = None) -> Path:
        """Wait for the last shard, merge, and return what was made: NAME.h5, or NAME.parts if shards are kept.

        Args:
            certificate: what capture proved about these maps; None keeps what an earlier process noted.

        Raises:
            WorkError: images are missing, or the disk failed; all finished shards stay.
        """
        if self._result is not None:
            return self._result
        try:
            self._wait()
            self._result = self._finish(certificate)
        finally:
            self._release()
        return self._result

    def __enter__(self) -> "MapWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def _refuse_existing(self) -> None:
        if self.path.exists() and not self._overwrite:
            raise InputError(f"{self.path} exists. Choose another output, or replace it with --overwrite.")

    def _resume(self) -> None:
        parts.remove_temporaries(self.folder)
        if not (self.folder / "plan.json").exists():
            return
        try:
            pinned = require_same_plan(self.folder, self.plan, self._dtype)
        except InputError:
            if not self._overwrite:
                raise
            parts.discard(self.folder)
            return
        self._merged = self._is_merged(pinned)
        if not self._merged:
            self._refuse_existing()
            self._done = set(parts.recover(self.folder, pinned))
            self._require_room(pinned)
        self._pinned = pinned

    def _is_merged(self, pinned: Pinned) -> bool:
        """Whether NAME.h5 was made from these very shards: the process died between the two steps."""
        try:
            return read_seal(self.path).plan == pinned.plan_id and verify(self.path).part is None
        except MapsFileError:
            return False

    def _place(self, maps: Sequence[AttentionMaps]) -> int:
        """Position of the first of these images, which follow one another in the plan."""
        if not maps or any(m.image_ids != maps[0].image_ids for m in maps):
            raise InputError("append all the maps of the same images together; these are of different images, or none.")
        ids = maps[0].image_ids
        start = self._position.get(ids[0]) if ids else None
        if start is None or self.plan.image_ids[start : start + len(ids)] != ids:
            raise InputError(f"images {ids[:2]} and on do not follow one another in the plan; capture in plan order.")
        return start

    def _claim(self, pinned: Pinned, start: int, n_images: int) -> None:
        """These images are next, or begin a shard that nobody began."""
        size = pinned.layout.shard_images
        spans = set(range(start // size, (start + n_images - 1) // size + 1))
        if start != self._next:
            between_shards = self._next % size == 0 or self._next == pinned.n_images
            if not (between_shards and start % size == 0):
                raise InputError(
                    f"image {self.plan.image_ids[start]!r} (position {start}) came where position {self._next} was "
                    "next; capture the ranges of pending() one after the other."
                )
        already = spans & self._done or {k for k in spans & self._begun if k * size >= start}
        if already:
            raise InputError(
                f"image {self.plan.image_ids[start]!r} is stored already; capture only what pending() says."
            )
        self._begun |= spans
        self._next = start + n_images

    def _pin(self, maps: Sequence[AttentionMaps]) -> Pinned:
        layout = decide(maps, self._dtype)
        pinned = Pinned(self.plan.facts(), layout, datetime.now(UTC).isoformat())
        self._require_room(pinned)
        with fs.as_work_error(f"writing {self.folder / 'plan.json'}"):
            fs.make_folder(self.folder / "shards")
            self._pinned = self._publish(pinned)
        return self._pinned

    def _publish(self, pinned: Pinned) -> Pinned:
        write_plan(self.folder, self.plan, pinned)
        return pinned

    def _require_room(self, pinned: Pinned) -> None:
        n_images = sum(len(pinned.shard(k)) for k in range(pinned.n_shards) if k not in self._done)
        needed, free = n_images * pinned.layout.image_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise WorkError(
                f"{self.folder} needs about {needed / 1e6:.0f} MB for {n_images} images and the disk has "
                f"{free / 1e6:.0f} MB. Free some, choose another disk, or capture fewer images."
            )

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
                self._commit(self._shard)
                self._shard = None
            at = until

    def _commit(self, shard: Shard) -> None:
        name = parts.shard_path(self.folder, shard.number)
        done = f"{len(self._done)} of {shard.pinned.n_shards} are done and stay"
        with fs.as_work_error(f"writing {name} ({done})"):
            try:
                fs.write_file(name, shard.finish())
            except FileExistsError:  # only where the file system has no locks: another process was first
                verify(name)
        self._done.add(shard.number)

    def _finish(self, certificate: Mapping[str, Any] | None) -> Path:
        missing = sum(map(len, self._missing()))
        if missing:
            raise WorkError(
                f"{missing} of {len(self.plan.image_ids)} images were not captured; finished shards stay in "
                f"{self.folder}. Run the same command again to capture the rest."
            )
        pinned = self._pinned
        assert pinned is not None, "no image is missing, so there was a first batch"
        with fs.as_work_error(f"finishing {self.path}; all shards are in {self.folder}"):
            if not self._merged:
                if certificate is not None:
                    parts.write_certificate(self.folder, certificate)
                if self._keep_shards or not self._room_for_both(pinned):
                    return self.folder
                try:
                    merge(self.folder, self.path, pinned, overwrite=self._overwrite)
                except FileExistsError:
                    self._refuse_existing()
                    raise
            parts.discard(self.folder)
        return self.path

    def _room_for_both(self, pinned: Pinned) -> bool:
        shards = sum(parts.shard_path(self.folder, k).stat().st_size for k in range(pinned.n_shards))
        return shutil.disk_usage(self.folder).free > shards + (1 << 20)

    def _wait(self) -> None:
        """For the batch in the writer's thread; raises what went wrong there, each time."""
        if self._work is not None:
            self._work.result()

    def _release(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        parts.leave(self.folder, self._lock)
