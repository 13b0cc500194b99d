"""Files for a user that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from warehouse.errors import AlabError


@contextmanager
def writing(path: Path, option: str) -> Iterator[Path]:
    """Give the place to write what becomes a file when the block ends well; an exception leaves what was there.

    Args:
        path: the file; folders above it are made. A link's target is replaced, not the link; a device or a pipe is
            written as it is.
        option: what names the file on the command line.

    Raises:
        AlabError: the file cannot be written.
    """
    place = path.resolve()
    special = place.exists() and not place.is_file() and not place.is_dir()
    draft = place if special else place.with_name(f".{place.name[:200]}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        if not special:
            draft.replace(place)
    except BrokenPipeError:
        raise
    except (OSError, duckdb.IOException) as error:
        if not _is_about(error, draft):
            raise
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise AlabError(f"cannot write {path}: {why}", f"Name another file with {option}.") from error
    finally:
        if not special:
            with suppress(OSError):
                draft.unlink()


def _is_about(error: Exception, draft: Path) -> bool:
    """Whether an error is about the file that is written, and not about one that is read meanwhile."""
    if isinstance(error, duckdb.Error):
        return str(draft) in str(error)
    return bool(error.errno) and (error.filename is None or Path(error.filename) in (draft, *draft.parents))
