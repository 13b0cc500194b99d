"""Files for a user that appear whole or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from warehouse.errors import AlabError, first_line


@contextmanager
def writing(path: Path, option: str) -> Iterator[Path]:
    """Give the place to write what becomes a file when the block ends well.

    After an exception what was there before is there still.

    Args:
        path: the file; folders above it are made. A link's target is replaced, not the link; a
            device or a pipe is written as it is.
        option: what names the file on the command line.

    Raises:
        AlabError: the file cannot be written.
    """
    special = path.exists() and not path.is_file() and not path.is_dir()
    hint = f"Name another file with {option}."
    if _is_circle(path):
        raise AlabError(f"cannot write {path}: its links go round in a circle", hint)
    place = path if special else path.resolve()
    draft = place if special else place.with_name(f".{uuid.uuid4().hex}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(draft))
        yield draft
        if not special:
            if place.exists():
                shutil.copymode(place, draft)
            draft.replace(place)
    except BrokenPipeError:
        raise
    except (OSError, duckdb.IOException) as error:
        if not _is_about(error, draft):
            raise
        why = getattr(error, "strerror", None) or first_line(error)
        raise AlabError(f"cannot write {path}: {why}", hint) from error
    finally:
        if not special:
            with suppress(OSError):
                draft.unlink()


def _is_circle(path: Path) -> bool:
    """Whether links go round in a circle; `Path.resolve` says nothing of it since Python 3.13."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _is_about(error: OSError | duckdb.Error, draft: Path) -> bool:
    """Whether an error is about the file that is written, not about one that is read meanwhile."""
    if isinstance(error, duckdb.Error):
        return str(draft) in str(error)
    return bool(error.errno) and (
        error.filename is None or Path(error.filename) in (draft, *draft.parents)
    )
