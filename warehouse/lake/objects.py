"""Objects at a URL, as a lake in an object store needs them: conditional writes, and ranges.

Whatever fsspec knows can be read. That an object is created once only, and replaced only by who has
seen its last version, is what S3 promises; to another store one process at a time may write, which
`$ALAB_ONE_WRITER` has to say.
"""

import hashlib
import io
import os
import threading
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from warehouse.errors import AlabError, first_line
from warehouse.extras import needing

#: Bytes that are asked for together, and how many such blocks a process keeps.
BLOCK, BLOCKS = 4 << 20, 64
#: Requests that are under way at once, and bytes of a part of a large upload.
PARALLEL, PART = 8, 16 << 20
ONE_WRITER = "ALAB_ONE_WRITER"
#: Answers that say that an object is unchanged, missing, another than was believed, or shorter.
_UNCHANGED, _MISSING, _OTHER, _CUT = (304,), (404,), (404, 409, 412), (416,)


class Entry(NamedTuple):
    """What a listing says of an object: bytes, when it was written (seconds), and its version."""

    size: int
    at: float
    version: str


class ObjectStore:
    """The objects below a URL such as `s3://bucket/lab`, by names relative to it.

    Attributes:
        sizes: bytes of objects, where known; of others they are asked for.

    Raises:
        AlabError: by every method, where the store cannot be reached or refuses.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.protocol, _, self._place = self.url.partition("://")
        self.sizes: dict[str, int] = {}
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._reading: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._is_s3 = self.protocol in ("s3", "s3a")
        if ":" in self._place.split("@")[0] and "@" in self._place:
            raise AlabError(
                "credentials do not belong into the URL of a warehouse",
                "alab takes them from the environment, and never stores them.",
            )

    @cached_property
    def files(self) -> Any:
        """The store's file system in fsspec."""
        with needing("s3", f"a warehouse at {self.protocol}://"):
            import fsspec

            try:
                return fsspec.filesystem(self.protocol, use_listings_cache=False)
            except ValueError as error:
                raise AlabError(f"there can be no warehouse at {self.url}: {error}") from error

    def get(self, name: str, unless: str | None = None) -> tuple[bytes, str] | None:
        """An object's bytes and version; None where there is none.

        No bytes where it still has the version `unless`.
        """
        with self._told(_UNCHANGED + _MISSING) as told:
            if not self._is_s3:
                data = self.files.cat_file(self._path(name))
                return data, hashlib.sha256(data).hexdigest()
            from fsspec.asyn import sync

            answer = self._s3("get_object", name, **({"IfNoneMatch": unless} if unless else {}))
            return sync(self.files.loop, answer["Body"].read), answer["ETag"]
        return (b"", unless) if told == [304] and unless else None

    def put(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write an object if it has this version, or with None if there is none.

        Returns:
            The new version; None where the object was another, which stays.
        """
        if not self._is_s3:
            seen = self.get(name)
            if (seen and seen[1]) != version:
                return None
            with self._told():
                self.files.pipe_file(self._path(name), data)
            return hashlib.sha256(data).hexdigest()
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        with self._told(_OTHER):
            return self._s3("put_object", name, Body=data, **condition)["ETag"]
        seen = self.get(name)  # an answer that was lost is asked for again, and it may be ours
        return seen[1] if seen and seen[0] == data else None

    def probe(self) -> None:
        """Find out whether the store compares versions.

        Raises:
            AlabError: it does not, and nobody said that only one process writes.
        """
        name = f"lake/.probe-{uuid.uuid4().hex}"
        first, second = self.put(name, b"1", None), self.put(name, b"2", None)
        is_safe = self._is_s3 and first and not second and not self.put(name, b"3", '"0"')
        self.delete([name])
        if not is_safe and not os.environ.get(ONE_WRITER):
            raise AlabError(
                f"{self.url} has no conditional writes: of two processes that write at once, one "
                "can undo what the other published",
                f"Where only one at a time ever writes, say so: export {ONE_WRITER}=1",
            )

    def upload(self, files: Iterable[tuple[Path, str]]) -> None:
        """Write local files as objects of these names."""
        parts = {"chunksize": PART, "max_concurrency": 2} if self._is_s3 else {}
        self._each(lambda f: self.files.put_file(str(f[0]), self._path(f[1]), **parts), files)

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Read objects into files of a folder."""
        self._each(lambda n: self.files.get_file(self._path(n), str(folder / Path(n).name)), names)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, as far as they are there."""
        self._each(lambda name: self.files.rm_file(self._path(name)), names, _MISSING)

    def listing(self, prefix: str) -> dict[str, Entry]:
        """All objects below a folder."""
        with self._told(_MISSING):
            found = self.files.find(self._path(prefix), detail=True)
            return {path.lstrip("/")[len(self._path("")) :]: _entry(i) for path, i in found.items()}
        return {}

    def size(self, name: str) -> int:
        """Bytes of an object; FileNotFoundError where there is none."""
        if name not in self.sizes:
            with self._told(_MISSING):
                self.sizes[name] = self.files.info(self._path(name))["size"]
        if name not in self.sizes:
            raise FileNotFoundError(2, os.strerror(2), f"{self.url}/{name}")
        return self.sizes[name]

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of an object that nobody changes; what is beside them comes too, and stays."""
        stop = min(stop, self.size(name))
        span = range(start // BLOCK, -(-stop // BLOCK)) if start < stop else range(0)
        with self._reading[name]:
            kept = {n: self._blocks.get((name, n)) for n in span}
            blocks = {n: block for n, block in kept.items() if block is not None}
            if missing := [n for n in span if n not in blocks]:
                low, high = missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, self.size(name))
                data = b""
                with self._told(_MISSING + _CUT):
                    data = self.files.cat_file(self._path(name), start=low, end=high)
                if len(data) < high - low:
                    hint = "What of the warehouse is damaged: alab check"
                    raise AlabError(f"{self.url}/{name} is gone or cut", hint)
                blocks |= {n: data[n * BLOCK - low :][:BLOCK] for n in missing}
            for n in span:
                self._blocks.pop((name, n), None)
                self._blocks[name, n] = blocks[n]
            while len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        text = b"".join(blocks[n] for n in span)
        return text[start - span.start * BLOCK : stop - span.start * BLOCK]

    def _path(self, name: str) -> str:
        return f"{self._place}/{name}"

    def _s3(self, method: str, name: str, **options: Any) -> Any:
        bucket, key, _ = self.files.split_path(self._path(name))
        return self.files.call_s3(method, Bucket=bucket, Key=key, **options)

    def _each(self, work: Callable, items: Iterable, expected: Collection[int] = ()) -> None:
        """Do something for many objects at once; the first error is raised."""

        def told(item: Any) -> None:
            with self._told(expected):
                work(item)

        each(told, items)

    @contextmanager
    def _told(self, expected: Collection[int] = ()) -> Iterator[list[int]]:
        """Tell in words what the store refuses; give the status of an answer that is expected."""
        status: list[int] = []
        try:
            yield status
        except AlabError:
            raise
        except Exception as error:
            answers = (getattr(e, "response", None) for e in (error, error.__cause__))
            answer: dict = next(filter(None, answers), {})
            usual = 404 if isinstance(error, FileNotFoundError) else 0
            status.append(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", usual))
            code = answer.get("Error", {}).get("Code", "")
            if status[0] not in expected or code == "NoSuchBucket":
                raise self._refused(error, code) from error

    def _refused(self, error: Exception, code: str) -> AlabError:
        hint = "Try again when the store can be reached; nothing is lost meanwhile."
        if code == "NoSuchBucket":
            hint = "Create it, or name another one with --warehouse."
        elif isinstance(error, PermissionError) or "redential" in type(error).__name__:
            hint = (
                "Credentials come from the environment, as the store's own tools take them: renew "
                "them, or ask for the right to read and write there."
            )
        return AlabError(f"{self.url}: {first_line(error)}", hint)


def each(work: Callable, items: Iterable) -> None:
    """Do something for many at once; the first error is raised when all are done."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(work, items))


def _entry(info: dict) -> Entry:
    at = next((info[key] for key in ("LastModified", "updated", "created") if key in info), 0)
    seconds = at.timestamp() if hasattr(at, "timestamp") else at
    return Entry(info["size"], float(seconds), str(info.get("ETag", "")))


class ObjectFile(io.RawIOBase):
    """An object, for what reads files and what opens paths; `name` is the last part of its own.

    Raises:
        FileNotFoundError: as it is read, where it is not there.
    """

    def __init__(self, store: ObjectStore, name: str):
        self._store, self._name, self._at = store, name, 0
        self.name = name.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self._store.url}/{self._name}"

    def open(self, mode: str = "rb", buffering: int = -1) -> "ObjectFile":
        """The same, from its beginning."""
        return ObjectFile(self._store, self._name)

    def size(self) -> int:
        """Its bytes."""
        return self._store.size(self._name)

    def readable(self) -> bool:  # noqa: D102
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102
        self._at = offset + (0, self._at, self.size() if whence == os.SEEK_END else 0)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: D102
        data = self._store.read(self._name, self._at, self._at + len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def file_system(store: ObjectStore, mirror: Path) -> Any:
    """The store for DuckDB: what the mirror, a local folder, has is read there, the rest in blocks.

    DuckDB asks for files that the catalog names, so nothing is listed, and none is ever replaced.
    """
    from fsspec import AbstractFileSystem

    start = f"{store.url}/"

    class Files(AbstractFileSystem):
        cachable = False
        protocol = store.protocol

        def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
            if not path.startswith(start):
                return store.files.open(path, mode)
            if mode != "rb":
                raise PermissionError(f"{path} is part of a lake")
            here = mirror / path.removeprefix(start)
            return here.open("rb") if here.is_file() else ObjectFile(store, path[len(start) :])

        def info(self, path: str, **_: Any) -> dict:
            if not path.startswith(start):
                return store.files.info(path)
            with self.open(path) as file:
                return {"name": path, "type": "file", "size": file.seek(0, os.SEEK_END)}

        def modified(self, path: str) -> datetime:
            known = path.startswith(start)
            return datetime.fromtimestamp(0, UTC) if known else store.files.modified(path)

        def glob(self, path: str, **_: Any) -> list[str]:
            return store.files.glob(path) if set("*?[") & set(path) else [path]

        def unstrip_protocol(self, name: str) -> str:
            return name if "://" in name else f"{store.protocol}://{name}"

    return Files()
