"""A run at a URL that many machines read in shards: what they tell each other of it.

    <url>/lake/metadata/run=<run_id>/manifest      until it is published its claim: the request
    <url>/lake/metadata/run=<run_id>/shard-00003   a shard that is there: all of it but its data
    <url>/lake/<dataset>/run=<run_id>/…            its data, under the names that they keep

A shard is there once its object is, which is written once, after its data. Of two machines that
read one shard at once the second finds the first's, and deletes its own data.
"""

import io
import json
import re
import uuid
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.errors import ConflictError
from warehouse.lake import manifest, store

if TYPE_CHECKING:
    from warehouse.lake.remote import Remote

#: More part files of a layer than a shard ever has.
PARTS = 1000
#: File of a shard that names its data, which are at the URL.
FILES = "files.json"
#: File of a shard that says that it is the one at the URL.
SENT = ".sent"


class SharedRun:
    """The far side of a run that is read in shards, and what of it lies here.

    Args:
        remote: the far side of the lake.
        run_id: id of the run.
        folder: where the run is staged here.
    """

    def __init__(self, remote: "Remote", run_id: str, folder: Path):
        self._remote, self._run_id, self._folder = remote, run_id, folder
        self._name = f"lake/metadata/run={run_id}/shard-"

    def names(self) -> set[str]:
        """Names of the objects of the shards that are there."""
        listed = self._remote.objects.listing(f"lake/metadata/run={self._run_id}")
        return {name for name in listed if name.startswith(self._name)}

    def there(self) -> set[int]:
        """Numbers of the shards that are there."""
        return {int(name.removeprefix(self._name)) for name in self.names()}

    def collect(self, numbers: Iterable[int]) -> None:
        """Fetch what is there of some shards and not here, and send what is only here."""
        there = self.there()
        for number in numbers:
            folder = self._shard(number)
            if folder.is_dir() and not (folder / SENT).exists():
                self.send(number)
            elif number in there and not folder.is_dir():
                self._fetch(number)

    def send(self, number: int) -> None:
        """Send a shard that was finished here; where another machine was first, take that one."""
        folder = self._shard(number)
        if not (folder / FILES).is_file():
            self._upload(number)
        for path in _data(folder):
            store.delete(path)
        if self._remote.objects.put(self._object(number), _packed(folder), None):
            store.create(folder / SENT).close()
            return
        rows = json.loads((folder / FILES).read_bytes())
        store.delete(folder)  # first: what is here may be published
        self._remote.objects.delete([f"lake/{row['path']}" for row in rows])
        self._fetch(number)

    def _upload(self, number: int) -> None:
        """Upload a shard's data under names that no other machine gives, and note them."""
        folder, once = self._shard(number), uuid.uuid4().hex[:8]
        rows, data = [], []
        for path in _data(folder):
            part = number * PARTS + int(path.stem.removeprefix("part-"))
            row = manifest.file_row(self._run_id, path, folder)
            row["path"] = re.sub(r"[^/]+$", f"part-{part}.{once}.parquet", row["path"])
            rows.append(row)
            data.append((path, f"lake/{row['path']}"))
        self._remote.objects.upload(data)
        draft = folder / f".{FILES}"
        with store.create(draft) as file:
            store.append(file, [json.dumps(rows).encode()])
        store.move(draft, folder / FILES)

    def _fetch(self, number: int) -> None:
        """Take over a shard that another machine has read."""
        found = self._remote.objects.get(self._object(number))
        if found is None:
            raise ConflictError(f"{self._run_id} was published or deleted meanwhile", "Try again.")
        draft = self._shard(number).with_name(f".{number:05d}")
        store.delete(draft)
        with zipfile.ZipFile(io.BytesIO(found[0])) as files:
            files.extractall(draft)
        store.create(draft / SENT).close()
        store.move(draft, self._shard(number))

    def rows(self) -> list[dict]:
        """Rows of `files` about the data of all shards that are here."""
        paths = store.paths(self._folder, f"shards/[0-9]*/{FILES}")
        return [row for path in paths for row in json.loads(path.read_bytes())]

    def tidy(self) -> None:
        """Delete what nobody needs of the shards once the run is published."""
        self._remote.objects.delete(self.names())

    def _shard(self, number: int) -> Path:
        return self._folder / "shards" / f"{number:05d}"

    def _object(self, number: int) -> str:
        return f"{self._name}{number:05d}"


def _data(folder: Path) -> list[Path]:
    """The files of a shard that hold its data."""
    paths = store.paths(folder, "*/run=*/**/*.parquet")
    return [path for path in paths if path.relative_to(folder).parts[0] != "metadata"]


def _packed(folder: Path) -> bytes:
    """What is left of a shard as one zip."""
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as files:
        for path in store.paths(folder, "**/*"):
            if path.is_file():
                files.write(path, path.relative_to(folder).as_posix())
    return text.getvalue()
