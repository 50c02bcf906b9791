"""How do several processes write one maps file? Each its own shards into one folder; who is last makes the file.

Question: who decides what a shard is? Choice: the first images decide, as for one process, so shards depend on neither
rank nor number of processes: every process captures them and the first to write plan.json is believed.
Question: who does what? Choice: see `io.ranks`: no process waits for another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, InUse, MapsFileError, WorkError
from attnprobe.core.maps import AttentionMaps
from attnprobe.io import fs
from attnprobe.io.lock import FileLock
from attnprobe.io.ranks import Claims, Rank, shared_out
from attnprobe.store import parts
from attnprobe.store.plan import CapturePlan, Pinned, require_same_plan, write_plan
from attnprobe.store.seal import verify
from attnprobe.store.stored import StoredMaps
from attnprobe.store.writer import MapWriter


class SharedMapWriter(MapWriter):
    """A `MapWriter` of one of several processes.

        with SharedMapWriter(path, plan, rank) as writer:
            if not writer.begun:
                writer.begin(first_maps)                   # of the first images of the plan
            for positions in writer.mine():
                ...                                        # as with MapWriter
            writer.close(certificate)

    Raises:
        InputError: as MapWriter; `overwrite`, since processes that come late could not tell old from new.
    """

    def __init__(self, path: Path, plan: CapturePlan, rank: Rank, *, overwrite: bool = False, **options: Any) -> None:
        self._rank, self._job = rank, rank.job
        self._claims: Claims | None = None
        self.path, self.plan, self._whole = Path(path), plan, False
        if overwrite:
            raise InputError(f"several processes do not replace {path}; remove it first.")
        if self._is_there():
            self._whole, self._dtype = True, options.get("dtype", "bfloat16")
            self._clear_up()
            return
        try:
            super().__init__(path, plan, **options)
        except (InputError, OSError):
            if not self._is_there():  # others finished while we looked
                raise
            self._whole = True
        if not self._whole and self._pinned is None and self._is_there():  # or when we had looked
            self._leave_to_others()

    def _leave_to_others(self) -> None:
        """They have made the file."""
        super()._release()
        self._whole = True
        self._clear_up()

    def _clear_up(self) -> None:
        """Remove parts of a file that is there; unless others are at them.

        Left by a job that was killed when the file had its name, or begun again by a process that came late.
        """
        folder = parts.parts_of(self.path)
        if not (folder / "plan.json").exists():
            return
        with suppress(InUse, InputError, MapsFileError, WorkError, OSError):
            lock = FileLock(folder / "run.lock")
            try:
                require_same_plan(folder, self.plan, self._dtype)
                if verify(self.path).part is None:
                    parts.discard(folder)
            finally:
                parts.leave(folder, lock)

    @property
    def begun(self) -> bool:
        """Whether it is known what a shard is."""
        return self._whole or super().begun

    def begin(self, maps: Sequence[AttentionMaps]) -> range:
        """As MapWriter; no images where others have made the file meanwhile, whose parts are gone then."""
        if self._is_there():
            self._leave_to_others()
            return range(0)
        return super().begin(maps)

    def mine(self) -> Iterator[range]:
        """Positions of the images of each shard that this process is to capture."""
        if self._whole or self._merged:
            return
        pinned = self._pinned
        assert pinned is not None, "begin() comes first"
        with fs.as_work_error(f"sharing out {self.folder}"):
            self._claims = Claims(self.folder / "claims")
        for number in shared_out(self._rank, pinned.n_shards, self._claims, self._is_done):
            yield pinned.shard(number)

    def close(self, certificate: Mapping[str, Any] | None = None) -> Path:
        """Wait for the last shard of this process; if no other is missing, make the file, unless another does."""
        if self._whole:
            return self.path
        if self._result is not None:
            return self._result
        try:
            self._wait()
            pinned = self._pinned
            whole = pinned is not None and all(map(self._is_done, range(pinned.n_shards)))
            last = whole and self._claims is not None and self._claims.take("merge") and not self.path.exists()
            if self._merged or last:
                self._result = self._finish(certificate)
            self._result = self._result or (self.path if self.path.exists() else self.folder)
        finally:
            self._release()
        if self._result == self.path:
            self._clear_up()
        return self._result

    def _missing(self) -> list[range]:
        """As MapWriter; others may be at some of them."""
        if self._pinned is not None and not self._merged:
            self._done = {k for k in range(self._pinned.n_shards) if self._is_done(k)}
        return [] if self._whole else super()._missing()

    def _is_done(self, number: int) -> bool:
        return parts.shard_path(self.folder, number).exists() or not (self.folder / "plan.json").exists()

    def _is_there(self) -> bool:
        """Whether the finished file is of this very plan."""
        with suppress(MapsFileError, OSError), StoredMaps.open(self.path) as stored:
            return stored.facts == self.plan.facts()
        return False

    def _publish(self, pinned: Pinned) -> Pinned:
        try:
            write_plan(self.folder, self.plan, pinned)
        except FileExistsError:
            return require_same_plan(self.folder, self.plan, self._dtype)
        return pinned

    def _resume(self) -> None:
        if not (self.folder / "plan.json").exists():
            return
        pinned = require_same_plan(self.folder, self.plan, self._dtype)
        self._merged = self._is_merged(pinned)
        if not self._merged:
            self._refuse_existing()
            self._done = set(parts.recover(self.folder, pinned))
        self._pinned = pinned

    def _release(self) -> None:
        if self._whole:
            return
        if self._claims is not None:
            self._claims.release_all()
            if not (self.folder / "plan.json").exists():  # all is done
                with suppress(OSError):
                    self._claims.folder.rmdir()
        super()._release()
