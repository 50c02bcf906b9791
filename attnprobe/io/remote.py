"""Files by URL (s3://, gs://, hf://, memory://): the only module that knows fsspec.

A `RemotePath` is a `Path` whose files lie in an object store. Only `place` makes one, from text that the user typed; a
path that a file names stays a path on this machine, so nothing is fetched because a file says so.

An object appears whole or not at all. What must not be overwritten is put on the condition that nothing has its name
(S3: If-None-Match, Google: ifGenerationMatch=0), which does here what a hard link does on a disk. There are no locks:
work may be done twice, and the first result stays.
"""

import fnmatch
import glob
import io
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from attnprobe.core.errors import InputError, WorkError

T = TypeVar("T")

SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "memory": "fsspec"}
"""Schemes of URLs, and the package that fsspec needs for each; file:// names a path of this machine."""

EXCLUSIVE = {"s3", "gs", "memory"}
"""Schemes whose file systems can put an object on the condition that nothing has its name."""

ATTEMPTS = 3
"""Times that an operation is tried, each of them after what the libraries retry by themselves."""

PAUSE = 1.0
"""Seconds before the second attempt; half of it to all of it, by chance, and twice as long before each later one."""

FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors that another attempt would not change."""

REFUSED = ("NoCredentials", "PartialCredentials", "CredentialRetrieval", "TokenRetrieval", "GatedRepo",
           "Unauthorized", "RepositoryNotFound", "DefaultCredentials", "RefreshError", "ProfileNotFound",
           "ParamValidation")  # fmt: skip
"""Beginnings of the names of errors of the libraries that say that who asks, or the name asked for, is wrong."""

BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NotImplementedError, TypeError)
"""Errors that are not of the network; the libraries have hundreds of classes for those that are."""

LIBRARIES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "huggingface_hub", "s3fs")
"""Packages that log what goes wrong before it is tried again."""

OPTIONS: dict[str, dict[str, Any]] = {
    # `total_max_attempts` counts tries of one request, with growing pauses; a listing that is kept would hide what
    # others commit.
    "s3": {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 5}, "connect_timeout": 20}},
}

MARKS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "created")
"""What stores say of an object by which two states of it can be told apart."""

BLOCK, BLOCKS = 4 << 20, 16
"""Bytes of a range request, and how many of them are kept while a file is open."""

_URL = re.compile(r"(s3|gs|hf|memory|file):/+(.*)", re.DOTALL)


def place(ref: Path | str, *, output: bool = False) -> Path:
    """The path that a user's text names: in an object store if it is a URL, else on this machine.

    Also of a `Path` made of a URL, which has lost one of its two slashes. A text `hf:/folder` is no URL: it names a
    folder with a model of transformers.

    Args:
        output: it is to be written.

    Raises:
        InputError: it is to be written, and nothing of its scheme can be put on a condition.
    """
    match = None if isinstance(ref, RemotePath) else _URL.fullmatch(str(ref))
    if match is None or (isinstance(ref, str) and ref.startswith("hf:") and not ref.startswith("hf://")):
        return ref if isinstance(ref, Path) else Path(ref)
    if match[1] == "file":
        return Path("/", match[2])
    path = RemotePath(f"{match[1]}:/{match[2]}")
    if output:
        path.require_exclusive()
    return path


def matching(pattern: str) -> list[Path]:
    """The files and folders that a user's pattern with *, ? and [ ] names, sorted; on this machine or by URL."""
    path = place(pattern)
    if not isinstance(path, RemotePath):
        return [Path(name) for name in sorted(glob.glob(os.path.expanduser(path)))]
    found = _attempt(path, "listing", lambda fs: fs.glob(path.key))
    return [RemotePath(f"{path.scheme}:/{name.strip('/')}") for name in sorted(found)]


def require_local(path: Path) -> None:
    """Refuse a URL where a command writes to this machine alone; it would become a folder called "s3:".

    Raises:
        InputError: it is one.
    """
    if not isinstance(path, RemotePath) and _URL.match(str(path)):
        raise InputError(f"{place(path)} is a URL, and this command writes to this machine: name a local path.")


class RemotePath(type(Path())):
    """The name of an object, or of the folder that a common beginning of names stands for; made by `place`.

    Raises, in every operation:
        InputError: the package for its scheme is missing, or the store does not know or admit whoever asks.
        WorkError: the network or the store failed, and again when the operation was repeated.
    """

    __slots__ = ()

    def __str__(self) -> str:
        scheme, _, key = super().__str__().partition(":/")
        return f"{scheme}://{key}"

    @property
    def scheme(self) -> str:
        return self.parts[0].removesuffix(":")

    @property
    def key(self) -> str:
        """The name as fsspec has it, the bucket first."""
        return "/".join(self.parts[1:])

    def exists(self, **_: Any) -> bool:
        return _attempt(self, "looking for", lambda fs: fs.exists(self.key))

    def is_dir(self) -> bool:
        return _attempt(self, "looking for", lambda fs: fs.isdir(self.key))

    def is_file(self) -> bool:
        return _attempt(self, "looking for", lambda fs: fs.isfile(self.key))

    def size(self) -> int:
        """Bytes of the object."""
        return _attempt(self, "looking for", lambda fs: fs.info(self.key)["size"])

    def resolve(self, strict: bool = False) -> "RemotePath":
        return self

    def expanduser(self) -> "RemotePath":
        return self

    def iterdir(self) -> Iterator["RemotePath"]:
        for entry in _attempt(self, "listing", lambda fs: fs.ls(self.key, detail=False)):
            yield self / entry.rstrip("/").rpartition("/")[2]

    def glob(self, pattern: str, **_: Any) -> Iterator["RemotePath"]:
        """Objects of the folder itself whose names match; none if there is no folder."""
        try:
            return (path for path in sorted(self.iterdir()) if fnmatch.fnmatchcase(path.name, pattern))
        except FileNotFoundError:
            return iter(())

    def states(self) -> dict[str, tuple[int, str]]:
        """Size of every object in the folder and below, and what the store says of its content; "" for itself."""

        def look(fs: Any) -> dict[str, tuple[int, str]]:
            try:
                found = fs.find(self.key, detail=True)
            except FileNotFoundError:
                return {}
            return {
                "" if name.strip("/") == self.key else self._relative(name): (
                    entry["size"],
                    " ".join(str(entry[mark]) for mark in MARKS if mark in entry),
                )
                for name, entry in found.items()
                if entry.get("type") == "file"
            }

        return _attempt(self, "looking for", look)

    def get_file(self, target: Path) -> None:
        """Download the object into a new file."""
        _attempt(self, "reading", lambda fs: fs.get_file(self.key, str(target)))

    def read_bytes(self) -> bytes:
        return _attempt(self, "reading", lambda fs: fs.cat_file(self.key))

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`."""
        return _attempt(self, "reading", lambda fs: fs.cat_file(self.key, start=start, end=stop))

    def open_ranges(self) -> io.BufferedReader:
        """The object, open for reading by range requests; an error if it is replaced meanwhile."""
        return io.BufferedReader(_Ranges(self), 1 << 16)

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def put(self, data: Any, *, overwrite: bool = False) -> None:
        """Make the object of these bytes; it is there with all of them or not at all.

        Raises:
            FileExistsError: the name is taken and `overwrite` is False.
        """
        content, mode = bytes(data), "overwrite" if overwrite else "create"
        _attempt(self, "writing", lambda fs: fs.pipe_file(self.key, content, mode=mode))

    def put_file(self, source: Path, *, overwrite: bool = False) -> None:
        """Make the object of a file of this machine, in several requests if it is large; errors as of `put`."""
        mode = "overwrite" if overwrite else "create"
        if self.scheme == "memory":
            return self.put(source.read_bytes(), overwrite=overwrite)
        _attempt(self, "writing", lambda fs: fs.put_file(str(source), self.key, mode=mode))

    def require_exclusive(self) -> None:
        """Refuse to write where an object might be overwritten unseen.

        Raises:
            InputError: nothing of this scheme can be put on a condition.
        """
        if self.scheme not in EXCLUSIVE:
            raise InputError(
                f"{self} is not written: {self.scheme}:// has no way to put a file without overwriting another's. "
                f"Write to {', '.join(f'{name}://' for name in sorted(EXCLUSIVE - {'memory'}))} or a local path."
            )

    def prove_exclusive(self) -> None:
        """Try, with this object and once for a bucket, that the store refuses to overwrite: not every copy of S3 does.

        Raises:
            InputError: it overwrote.
        """
        bucket = self.parts[:2]
        if bucket in _PROVED:
            return
        try:
            self.put(b"attnprobe works here\n")
            self.put(b"attnprobe works here\n")
        except FileExistsError:
            _PROVED.add(bucket)
        else:
            raise InputError(
                f"{self} was overwritten, although the request forbade it: this store ignores conditional puts "
                "(If-None-Match). Write to another store, or to a local path."
            )

    def rename(self, target: Any) -> "RemotePath":
        """Copy, then remove."""
        _attempt(self, "moving", lambda fs: fs.mv(self.key, target.key))
        return target

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _attempt(self, "removing", lambda fs: fs.rm_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a folder is there when an object is in it."""

    def rmdir(self) -> None:
        """Nothing: a folder is gone when its last object is."""

    def _not_here(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{self} lies in an object store, which cannot do that")

    open = stat = lstat = touch = write_bytes = write_text = symlink_to = rglob = replace = _not_here

    def _relative(self, name: str) -> str:
        return name.strip("/").removeprefix(f"{self.key.strip('/')}/")


_PROVED: set[tuple[str, ...]] = set()


class _Ranges(io.RawIOBase):
    """A file-like object over range requests, each of them repeated where the network fails."""

    def __init__(self, path: RemotePath) -> None:
        options = {"block_size": BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": BLOCKS}}
        self._path, self._at = path, 0
        self._file = _attempt(path, "reading", lambda fs: fs.open(path.key, "rb", **options))
        self._size = path.size() if self._file.size is None else self._file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        def read(_fs: Any) -> bytes:
            self._file.seek(self._at)
            return self._file.read(min(len(buffer), max(0, self._size - self._at)))

        data = _attempt(self._path, "reading", read)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _file_system(path: RemotePath) -> Any:
    """fsspec's file system for a path, the same one for all paths of a process.

    Raises:
        InputError: its package is missing.
    """
    try:
        import fsspec  # late: only those who name a URL need it; torch brings it

        for name in LIBRARIES:  # they would print the tracebacks of what is tried again
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return fsspec.filesystem(path.scheme, use_listings_cache=False, **OPTIONS.get(path.scheme, {}))
    except ImportError as error:
        raise InputError(f'{path} needs {SCHEMES[path.scheme]} ({error}): pip install "attnprobe[cloud]".') from None


def _attempt(path: RemotePath, doing: str, call: Callable[[Any], T]) -> T:
    """The result of an operation on a file system, repeated after growing pauses where the network fails."""
    fs = _file_system(path)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(fs)
        except Exception as error:
            if isinstance(error, PermissionError) or type(error).__name__.startswith(REFUSED):
                raise _not_admitted(path, doing, error) from error
            if type(error).__name__ == "FileExpired":  # s3fs asks for the state that it opened
                raise InputError(f"{path} was replaced while it was read. Run the same command again.") from error
            if isinstance(error, FileNotFoundError) and doing == "writing":
                raise InputError(f"{path} cannot be written: {_reason(error)}. Make the bucket first.") from error
            if isinstance(error, (*FINAL, *BUGS)):
                raise
            if attempt == ATTEMPTS:
                raise WorkError(
                    f"{doing} {path} failed {ATTEMPTS} times: {_reason(error)}. Check the network and the store's "
                    "address, then run the same command again: what is finished stays."
                ) from error
            time.sleep(PAUSE * 2 ** (attempt - 1) * (0.5 + random.random() / 2))
    raise AssertionError("the last attempt returns or raises")


def _not_admitted(path: RemotePath, doing: str, error: Exception) -> InputError:
    where = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
        "hf": "HF_TOKEN, or hf auth login",
    }.get(path.scheme, "who you are")
    return InputError(f"{doing} {path} was refused: {_reason(error)}. Check the name and the credentials ({where}).")


def _reason(error: BaseException) -> str:
    """What an error says, in one line and without a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")
