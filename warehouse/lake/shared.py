"""A run at a URL that many machines read in shards: what they tell each other of it.

    <url>/lake/metadata/run=<run_id>/manifest              its claim, until it is published
    <url>/lake/metadata/run=<run_id>/shard-<claim>-00003   a shard that is there: all but its data
    <url>/lake/<dataset>/run=<run_id>/…                    its data, under the names that they keep

A shard is there once its object is, which is written once, after its data, and named by the claim
that it was read for. Of two machines that read one shard at once the second finds the first's, and
deletes its own data; one whose run was published or deleted meanwhile finds that out.
"""

import io
import json
import re
import uuid
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.errors import AlabError, ConflictError
from warehouse.lake import manifest, store
from warehouse.lake.staging import PARTS

if TYPE_CHECKING:
    from warehouse.lake.remote import Remote

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
        claim: what its claim is known by: a run that was begun anew has the same id, and another.
    """

    def __init__(self, remote: "Remote", run_id: str, folder: Path, claim: str):
        self._remote, self._run_id, self._folder, self.claim = remote, run_id, folder, claim
        self._name = f"lake/metadata/run={run_id}/shard-{claim}-"

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
                self._unpack(number, self._there(number))

    def send(self, number: int) -> None:
        """Send a shard that was finished here; where another machine was first, take that one.

        Raises:
            ConflictError: the run was published or deleted meanwhile; nothing of the shard is left.
        """
        folder = self._shard(number)
        if not (folder / FILES).is_file():
            self._upload(number)
        for path in _data(folder):
            store.delete(path)
        mine = json.loads((folder / FILES).read_bytes())
        first = self._put(number, store.packed(folder, "**/*"))
        with zipfile.ZipFile(io.BytesIO(first)) as files:
            theirs = json.loads(files.read(FILES))
        if self._remote.claimed_as(self._run_id) != self.claim:
            kept = self._remote.names(self._run_id) if self._remote.refresh(self._run_id) else set()
            if kept is not None:  # else it is damaged, and nothing more is lost
                self._remote.objects.delete({self._object(number), *_names(mine)} - kept)
            told = f"{self._run_id} was published or deleted while this shard was read"
            raise ConflictError(told, "What there is: alab runs")
        if theirs == mine:
            store.create(folder / SENT).close()
            return
        store.delete(folder)  # first: what is here may be published
        self._remote.objects.delete(_names(mine) - _names(theirs))
        self._unpack(number, first)

    def _put(self, number: int, data: bytes) -> bytes:
        """Write a shard's object where there is none; gives what is there then."""
        for _ in range(5):  # a store may refuse one of two at once, and then have neither
            if self._remote.objects.put(self._object(number), data, None):
                return data
            if found := self._remote.objects.get(self._object(number)):
                return found[0]
        raise AlabError(
            f"{self._object(number)} cannot be written: the store refuses it again and again",
            "It is kept on this machine; the same command goes on.",
        )

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
        store.write(folder / FILES, json.dumps(rows).encode())

    def _there(self, number: int) -> bytes:
        """The object of a shard that another machine has read."""
        if (found := self._remote.objects.get(self._object(number))) is None:
            raise ConflictError(f"{self._run_id} was published or deleted", "Try again.")
        return found[0]

    def _unpack(self, number: int, data: bytes) -> None:
        """Take over a shard that another machine has read."""
        draft = self._shard(number).with_name(f".{number:05d}")
        store.delete(draft)
        with zipfile.ZipFile(io.BytesIO(data)) as files:
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


def _names(rows: list[dict]) -> set[str]:
    """Names of the objects that rows of `files` are about."""
    return {f"lake/{row['path']}" for row in rows}


def _data(folder: Path) -> list[Path]:
    """The files of a shard that hold its data."""
    paths = store.paths(folder, "*/run=*/**/*.parquet")
    return [path for path in paths if path.relative_to(folder).parts[0] != "metadata"]
