"""What a lake asks of the folder where it lies, or of the mirror of a lake at a URL.

Rooms above may open what the lake names, to read it, and ask whether it is there. Whatever makes a
file part of the lake or takes it away, and whatever else is asked of files, goes through these
functions. A file is written from its beginning to its end below `.staging`, or under a name that
begins with a dot, where no query looks; `move` then gives it its name, whole or not at all. What an
object store does instead is in `warehouse.lake.objects`, and a lake there in
`warehouse.lake.remote`.
"""

import io
import os
import shutil
from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

    from warehouse.lake.objects import ObjectFile

#: Buffers that one call may write, on Linux and macOS.
_BUFFERS = 1024


def paths(folder: Path, pattern: str) -> list[Path]:
    """What lies below a folder, if it is there, under names like the pattern, sorted."""
    return sorted(folder.glob(pattern))


def size(path: "Path | ObjectFile") -> int:
    """Size of a file, bytes."""
    return path.stat().st_size if isinstance(path, Path) else path.size()


def parquet(path: "Path | ObjectFile") -> "ParquetFile":
    """Open a Parquet file, to read."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path if isinstance(path, Path) else path.open())


def packed(folder: Path, pattern: str) -> bytes:
    """Files below a folder as one zip, by relative names; the same files give the same bytes."""
    import zipfile  # which takes its time, and local lakes have no use for

    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as files:
        for path in paths(folder, pattern):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                files.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return text.getvalue()


def version(folder: Path) -> int | None:
    """When a folder last changed, in nanoseconds; None where it is gone."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def free(place: Path) -> int:
    """Bytes that can still be written at a place, there already or not."""
    return shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free


def create(path: Path) -> BinaryIO:
    """A new file to append to, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb", buffering=0)


def append(file: BinaryIO, buffers: Iterable[bytes]) -> int:
    """Write buffers one behind the other, in as few calls as can be; gives their size."""
    views, size = deque(memoryview(buffer) for buffer in buffers), 0
    while views:
        if hasattr(os, "writev"):
            written = os.writev(file.fileno(), list(islice(views, _BUFFERS)))
        else:
            written = file.write(views[0])
        size += written
        while views and written >= len(views[0]):
            written -= len(views.popleft())
        if written:
            views[0] = views[0][written:]
    return size


def write(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}")
    with create(draft) as file:
        append(file, [data])
    move(draft, path)


def copy(folder: Path, to: Path) -> None:
    """Copy a folder; those above the new one are made."""
    shutil.copytree(folder, to)


def move(source: Path, target: Path) -> None:
    """Give a file or folder the name that makes it part of the lake; a file there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def delete(path: Path) -> None:
    """Delete a file or a folder, as far as that can be done; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def lock(path: Path, wait: float = 0) -> FileLock:
    """Lock a name for this process alone.

    Args:
        path: the name, which nothing else has.
        wait: seconds to wait for another holder.

    Raises:
        TimeoutError: another process holds it.
    """
    own = FileLock(path, timeout=wait)
    own.acquire()
    return own


def unlock(own: FileLock) -> None:
    """Let go of a name; its file goes while it is still ours, so that nobody else's does."""
    Path(own.lock_file).unlink(missing_ok=True)
    own.release()
