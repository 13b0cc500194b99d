"""The manifest of a run, its table `files`: rows, size and checksum of each file as written.

Apart from the modules that write, so that commands which only read the catalog start without
importing pyarrow.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.lake import store
from warehouse.vocabulary import BULK

if TYPE_CHECKING:
    import pyarrow as pa

    from warehouse.lake.objects import ObjectFile

#: Where the table `files` keeps the `digest` of its rows, in its schema's metadata.
DIGEST = b"alab_digest"


def digest(rows: list[dict]) -> bytes:
    """Checksum of the rows of the table `files`, which nothing else vouches for."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest().encode()


def sha256(path: "Path | ObjectFile") -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_row(run_id: str, path: Path, root: Path) -> dict:
    """One row of the table for a Parquet file below `root`; bulky files get no checksum."""
    import pyarrow.parquet as pq

    relative = path.relative_to(root)
    place = re.search(r"/steps=(\d+)-(\d+)/(?:layer=(\d+)/)?", relative.as_posix())
    first, last, layer = (n and int(n) for n in place.groups()) if place else (None,) * 3
    return {
        "run_id": run_id,
        "dataset": relative.parts[0],
        "path": relative.as_posix(),
        "first_step": first,
        "last_step": last,
        "layer": layer,
        "n_rows": pq.read_metadata(path).num_rows,
        "n_bytes": store.size(path),
        "sha256": None if relative.parts[0] in BULK else sha256(path),
    }


def read(folder: Path, table: str = "files") -> "pa.Table":
    """A metadata table of the run whose folder `metadata/run=<run_id>` this is.

    Raises:
        OSError, ValueError: the table is damaged or not there.
    """
    from pyarrow.parquet import ParquetFile

    content = ParquetFile(folder / f"{table}.parquet").read()
    written = (content.schema.metadata or {}).get(DIGEST)
    if written is not None and written != digest(content.to_pylist()):
        raise ValueError("its rows are not those that were written")
    return content


def sound(folder: Path) -> "pa.Table | None":
    """The table of a run whose metadata is as it was written, by checksum; None where it is not."""
    try:
        table, own, root = read(folder), f"metadata/{folder.name}/", folder.parents[1]
        rows = [row for row in table.to_pylist() if row["dataset"] == "metadata"]
        if rows and all(
            row["path"].startswith(own) and sha256(root / row["path"]) == row["sha256"]
            for row in rows
        ):
            return table
    except Exception:  # whatever damage makes of a table
        pass
    return None
