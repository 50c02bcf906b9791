"""NAME.parts while it becomes NAME.h5, by one process or by all of a job: plan -> claim -> part -> commit -> merge."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, InUse, MapsFileError, WorkError, option
from attnprobe.core.maps import AttentionMaps
from attnprobe.io import fs
from attnprobe.io.lock import FileLock
from attnprobe.io.ranks import Claims, Rank, shared_out
from attnprobe.io.remote import RemotePath
from attnprobe.store import parts
from attnprobe.store.first_batch import decide
from attnprobe.store.merge import merge
from attnprobe.store.plan import CapturePlan, Pinned, require_same_plan, write_plan
from attnprobe.store.seal import read_seal, verify
from attnprobe.store.stored import StoredMaps


class Job:
    """The folder in which processes make shards; arguments and errors as of `MapWriter`, which stores maps there.

    Attributes:
        pinned: the plan, once it is known what a shard is.
        done: numbers of the shards that this process found, checked, or committed.
        result: what there is when all is over: NAME.h5, also if others made it, or NAME.parts.
    """

    def __init__(
        self, path: Path, plan: CapturePlan, rank: Rank, *, dtype: str, overwrite: bool, keep_shards: bool
    ) -> None:
        self.path, self.folder = path, parts.parts_of(path)
        self.plan, self._rank, self._dtype = plan, rank, dtype
        self._overwrite, self._keep_shards = overwrite, keep_shards
        self._remote = isinstance(path, RemotePath)
        self.pinned: Pinned | None = None
        self.done: set[int] = set()
        self.result: Path | None = None
        self._merged = self._was_whole = False
        self._lock: FileLock | None = None
        self._claims: Claims | None = None
        self._open()

    @property
    def over(self) -> bool:
        """True if no shard is to be made any more."""
        return self.result is not None or self._merged

    def pin(self, maps: Sequence[AttentionMaps], batch_images: int | None) -> None:
        """Decide what a shard is, unless others have decided it or made the file meanwhile."""
        if self._is_there():
            self._leave_to_others()
            return
        layout = decide(maps, self._dtype, batch_images)
        batch = {} if batch_images is None else {"batch_images": batch_images}
        pinned = Pinned(self.plan.facts() | batch, layout, datetime.now(UTC).isoformat())
        self._require_room(pinned)
        with fs.as_work_error(f"writing {self.folder / 'plan.json'}"):
            fs.make_folder(self.folder / "shards")
            try:
                write_plan(self.folder, self.plan, pinned)
            except FileExistsError:  # another process was first: its shards are ours
                pinned = require_same_plan(self.folder, self.plan, self._dtype)
        self.pinned = pinned

    def claimed(self) -> Iterator[range]:
        """Positions of the images of each shard that this process claims, one after the other."""
        if self.over:
            return
        assert self.pinned is not None, "pin() comes first"
        with fs.as_work_error(f"sharing out {self.folder}"):  # a claim is a file, for which a full disk has no room
            self._claims = Claims(self.folder / "claims")
            for number in shared_out(self._rank, self.pinned.n_shards, self._claims, self._is_done):
                yield self.pinned.shard(number)

    def missing(self) -> list[range]:
        """Positions of the images of all shards that are not finished; others of a job may be at some of them."""
        if self.over:
            return []
        if self.pinned is None:
            return [range(len(self.plan.image_ids))]
        return [self.pinned.shard(k) for k in range(self.pinned.n_shards) if not self._is_done(k)]

    def commit(self, number: int, data: memoryview) -> None:
        """Give a sealed shard its name.

        It counts as done only now that its bytes are synced, its name is linked and the folder synced: a claim let go
        earlier would be taken for work to do again, and a shard counted earlier could be lost with the power.
        """
        assert self.pinned is not None, "there are shards, so there is a plan"
        name = parts.shard_path(self.folder, number)
        with fs.as_work_error(f"writing {name} ({len(self.done)} of {self.pinned.n_shards} are done and stay)"):
            try:
                fs.write_file(name, data)
            except FileExistsError:  # only where the file system has no locks: another process was first
                try:
                    verify(name)
                except MapsFileError:
                    if not self._is_over_elsewhere():
                        raise
            if self._is_over_elsewhere():
                fs.unlink(name)
        self.done.add(number)

    def finish(self, certificate: Mapping[str, Any] | None) -> Path:
        """Merge the shards, if none is missing and no other process does; what there is then."""
        if self.result is None:
            made = self._made(certificate) if self._is_to_merge() else None
            self.result = made or (self.path if self.path.exists() else self.folder)
        return self.result

    def release(self) -> None:
        """Let go of the claims and the folder, which goes if nothing was begun in it, or all is done."""
        claims, self._claims = self._claims, None
        if claims is not None:
            if (self.folder / "plan.json").exists():
                claims.release_all()
            else:  # all is done, and a process that came late may have claimed once more what was being removed
                claims.remove()
        lock, self._lock = self._lock, None
        if lock is not None:
            parts.leave(self.folder, lock)
            if self._rank.job and self.result == self.path:
                self._clear_up()

    def _open(self) -> None:
        """Lock the folder and take up what is in it, unless others have made the file."""
        if self._is_there():
            self._leave_to_others()
            return
        try:
            if not (self.folder / "plan.json").exists():
                self._refuse_existing()
            with fs.as_work_error(f"opening {self.folder}"):
                fs.make_folder(self.folder)
                self._lock = FileLock(self.folder / "run.lock", self._rank.job)
                try:
                    self._resume()
                except BaseException:
                    self.release()
                    raise
        except (InputError, OSError):
            if not self._is_there():  # others finished while we looked
                raise
            self._leave_to_others()
        else:
            if self.pinned is None and self._is_there():  # or when we had looked
                self._leave_to_others()

    def _is_there(self) -> bool:
        """True if other processes of this job have made the file: it is of this very plan."""
        if self._rank.job:
            with suppress(MapsFileError, OSError), StoredMaps.open(self.path) as stored:
                return stored.is_of(self.plan)
        return False

    def _leave_to_others(self) -> None:
        """They have made the file."""
        self.release()
        self.result = self.path
        self._clear_up()

    def _clear_up(self) -> None:
        """Remove parts of a file that is there; unless others are at them.

        Left by a job that was killed when the file had its name, or begun again by a process that came late.
        """
        if not (self.folder / "plan.json").exists():
            return
        with suppress(InUse, InputError, MapsFileError, WorkError, OSError):
            lock = FileLock(self.folder / "run.lock")
            try:
                require_same_plan(self.folder, self.plan, self._dtype)
                if verify(self.path).part is None:
                    parts.discard(self.folder)
            finally:
                parts.leave(self.folder, lock)

    def _refuse_existing(self) -> None:
        if self.path.exists() and not self._overwrite:
            replace = option("overwrite", python="overwrite=True")
            raise InputError(f"{self.path} exists. Choose another output, or replace it with {replace}.")

    def _resume(self) -> None:
        if not self._rank.job:  # the others of a job may be writing theirs
            parts.remove_temporaries(self.folder)
        if not (self.folder / "plan.json").exists():
            return
        try:
            pinned = require_same_plan(self.folder, self.plan, self._dtype)
        except InputError as error:
            # of a start that was refused at its first image
            nothing_done = not self._rank.job and not any((self.folder / "shards").glob("*.h5"))
            if not self._overwrite and (isinstance(error, MapsFileError) or not nothing_done):
                raise
            self._refuse_existing()
            parts.discard(self.folder)
            return
        self._merged = self._is_merged(pinned)
        if not self._merged:
            self._refuse_existing()
            # Of an object store every process would download all shards: there who merges or reads them checks them.
            self.done = set((parts.named if self._remote else parts.recover)(self.folder, pinned))
            self._was_whole = len(self.done) == pinned.n_shards
            self._require_room(pinned)
        self.pinned = pinned

    def _is_merged(self, pinned: Pinned) -> bool:
        """True if NAME.h5 was made from these very shards: the process died between the two steps."""
        try:
            return read_seal(self.path).plan == pinned.plan_id and verify(self.path).part is None
        except MapsFileError:
            return False

    def _require_room(self, pinned: Pinned) -> None:
        if self._remote:
            return
        n_images = sum(len(pinned.shard(k)) for k in range(pinned.n_shards) if k not in self.done)
        needed, free = n_images * pinned.layout.image_bytes, fs.free_bytes(self.folder)
        if needed > free:
            raise WorkError(
                f"{self.folder} needs about {needed / 1e6:.0f} MB for {n_images} images and the disk has "
                f"{free / 1e6:.0f} MB. Free some, choose another disk, or capture fewer images."
            )

    def _is_done(self, number: int) -> bool:
        """True if a shard is there. Of a job, where the file is there or plan.json has gone, all were.

        The shard first: it may be removed while we look, but only once it is in the file.
        """
        if number in self.done or not self._rank.job:
            return number in self.done
        if parts.shard_path(self.folder, number).exists():
            return True
        # An object store would be asked once more for every shard; there a shard that comes too late does no harm.
        is_made = not self._remote and self._is_there()
        return is_made or not (self.folder / "plan.json").exists()

    def _is_to_merge(self) -> bool:
        """True if this process makes the file: nothing is missing, and no other has claimed to."""
        missing = sum(map(len, self.missing()))
        if self._merged or not self._rank.job:
            if missing:
                raise WorkError(
                    f"{missing} of {len(self.plan.image_ids)} images were not captured; finished shards stay in "
                    f"{self.folder}. Run the same command again to capture the rest."
                )
            return True
        if missing or self._claims is None:
            return False
        # A claim in an object store may be a dead process's: whoever found every shard there merges them in any case.
        claimed = self._claims.take("merge") or (self._remote and self._was_whole)
        return claimed and not self.path.exists()

    def _made(self, certificate: Mapping[str, Any] | None) -> Path:
        pinned = self.pinned
        assert pinned is not None, "no image is missing, so there was a first batch"
        with fs.as_work_error(f"finishing {self.path}; all shards are in {self.folder}"):
            if not self._merged:
                if certificate is not None:  # before the merge, which copies it into the file
                    parts.write_certificate(self.folder, certificate)
                try:
                    if self._keep_shards or not self._room_for_both(pinned):
                        return self.folder
                    merge(self.folder, self.path, pinned, overwrite=self._overwrite)
                except (FileExistsError, FileNotFoundError, WorkError, MapsFileError) as error:
                    if not (self._remote and self._is_there()):  # else another process merged them, too
                        self._require_intact(pinned)
                        if isinstance(error, FileExistsError):
                            self._refuse_existing()
                        raise
            parts.discard(self.folder)  # only now: until the file has its name, the shards are the capture
        return self.path

    def _is_over_elsewhere(self) -> bool:
        """True if other processes, which no lock held up, have made the file and removed the plan."""
        return self._remote and not (self.folder / "plan.json").exists()

    def _require_intact(self, pinned: Pinned) -> None:
        """Move damaged shards of an object store out of the way, and say so."""
        damaged = pinned.n_shards - len(parts.recover(self.folder, pinned)) if self._remote else 0
        if damaged:
            raise WorkError(
                f"{damaged} of {pinned.n_shards} shards of {self.folder} were damaged and are in quarantine/. Run the "
                "same command again to capture these images anew."
            )

    def _room_for_both(self, pinned: Pinned) -> bool:
        paths = [parts.shard_path(self.folder, k) for k in range(pinned.n_shards)]
        shards = sum(p.size() if isinstance(p, RemotePath) else p.stat().st_size for p in paths)
        return fs.free_bytes(self.folder) > shards + (1 << 20)
