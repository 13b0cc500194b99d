"""The far side of a lake at a URL, and its mirror here.

    <url>/lake/index.json                        which runs there are: one small object
    <url>/lake/metadata/run=<run_id>/manifest    all metadata of a run: one object, a zip of Parquet
    <url>/lake/<dataset>/run=<run_id>/…          data, under the names that a local lake has

A manifest goes through states, each entered by one conditional write: a claim (nobody else takes
the id), the metadata (the run exists), the metadata as amended, a grave (the run is gone; who was
still writing it finds out). The claim of a run that many machines read in shards is what it was
begun with: see `warehouse.lake.shared`. Data are written before, and deleted after. The index saves
a listing; what it lacks is found by `alab check`.

The mirror is a folder like a local lake without data. Runs are staged there, and the metadata of
published ones are unpacked there, of which a catalog is made as of any lake.
"""

import io
import json
import os
import random
import re
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from warehouse.errors import AlabError, ConflictError
from warehouse.lake import manifest, store
from warehouse.lake.objects import Entry, ObjectFile, ObjectStore, each

INDEX = "lake/index.json"
#: How often a change of the index is tried while others change it.
TRIES = 40
GRAVE = b"gone"


def home(url: str) -> Path:
    """Folder of a warehouse's mirror, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    own = Path(os.environ.get("ALAB_CACHE") or Path(cache) / "alab")
    return own / "lakes" / f"{Path(url).name[:40]}-{sha256(url.encode()).hexdigest()[:12]}"


class Leftover(NamedTuple):
    """Objects that belong to no run: its id if it is claimed, the claim's version, their names."""

    run_id: str
    version: str | None
    names: list[str]


class Remote:
    """The objects of a lake, and its mirror.

    Attributes:
        home: the mirror's folder.
        objects: the objects below the warehouse's URL.
        address: the lake's URL.
        sized: the state of the catalog that told of sizes.
    """

    def __init__(self, url: str):
        self.url, self.home = url, home(url)
        self.objects = ObjectStore(url)
        self.address = f"{self.objects.url}/lake"
        self.sized: tuple | None = None
        self._root = self.home / "lake"

    def known(self) -> dict:
        """The index as it was last seen; of a mirror without one, or a damaged one, nothing."""
        index: dict = {"version": None, "runs": {}, "models": [], "begun": {}}
        with suppress(FileNotFoundError):
            index |= index_in((self._root / "index.json").read_bytes()) or {}
        return index

    def pull(self) -> dict:
        """Bring the mirror up to date: one request where nothing changed, else one more a run."""
        with self._mirror() as known:
            old = known["runs"]
            there = {path.name: path for path in store.paths(self._root / "metadata", "run=*")}
            data, version = self.objects.get(INDEX, known["version"]) or (b"", None)
            if version is None or version != known["version"]:
                index = self._index(data) if version else {"runs": {}, "models": []}
                known |= {"begun": {}} | index | {"version": version}
            new = known["runs"]
            for name in there.keys() - {f"run={run_id}" for run_id in new}:
                store.delete(there[name])
            stale = [k for k in new if old.get(k) != new[k] or f"run={k}" not in there]
            each(self._fetch, stale)
            return known

    def _index(self, data: bytes) -> dict:
        """What an index says; in place of none, or a damaged one, what the lake holds."""
        from warehouse.lake import survey  # which is built on this

        return index_in(data) or survey.index_of(self)

    def refresh(self, run_id: str) -> str | None:
        """Mirror a run as it is now, and give its version; None where it is gone."""
        with self._mirror():
            return self._fetch(run_id)

    def mend(self, run_id: str) -> None:
        """Mirror a run again where its mirror is damaged."""
        if manifest.sound(self._metadata(run_id)) is None:
            self.refresh(run_id)

    def _fetch(self, run_id: str) -> str | None:
        data, version = self.objects.get(manifest_name(run_id)) or (GRAVE, None)
        folder = self._metadata(run_id)
        if not is_whole(data):
            store.delete(folder)
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as tables:
            tables.extractall(draft)  # of a damaged one nothing: then the run counts as damaged
        store.delete(folder)
        store.move(draft, folder)
        return version

    @contextmanager
    def _mirror(self) -> Iterator[dict]:
        """Keep other processes from the mirror; gives what is known, and keeps what it becomes."""
        self._root.mkdir(parents=True, exist_ok=True)
        lock = store.lock(self._root / ".mirror.lock", wait=600)
        try:
            before, known = self.known(), self.known()
            yield known
            if known != before:
                store.write(self._root / "index.json", json.dumps(known).encode())
        finally:
            lock.release()

    def _metadata(self, run_id: str) -> Path:
        return self._root / "metadata" / f"run={run_id}"

    def file(self, path: str) -> ObjectFile:
        """A data file, by its path in the table `files`."""
        return ObjectFile(self.objects, f"lake/{path}")

    def begin(self) -> None:
        """Make a lake where there is none: the mirror's files without rows, and an index."""
        if self.pull()["version"] is None:
            self.objects.probe()
            self.upload(self._root, store.paths(self._root, ".empty/**/*.parquet"))
            self.change(lambda index: None)

    def share(self, run_id: str, request: dict | None) -> tuple[dict, str] | None:
        """What a run that is read in shards was begun with, and its claim's version.

        Args:
            run_id: id of the run, which all machines know.
            request: what it is begun with where nobody has begun it; None to begin nothing.

        Returns:
            None where it is published, or not begun.

        Raises:
            ConflictError: another process deletes it.
        """
        name = manifest_name(run_id)
        if self.objects.get(name) is None and request:
            claim = request | {"claim": uuid.uuid4().hex}
            self.objects.put(name, json.dumps(claim).encode(), None)
        if (found := self.objects.get(name)) is None:
            if run_id in self.pull()["begun"]:  # it was deleted while somebody began it
                self.enlist({run_id: None})
            return None
        data, version = found
        if is_whole(data):  # the index may not know it yet
            if run_id in self.pull()["begun"]:
                self.enlist({run_id: version})
            return None
        if (begun := request_of(data)) is None:
            raise ConflictError(
                f"another process is deleting {run_id}",
                "Try again when it is done; where it died, ten minutes later: alab check --fix",
            )
        if self.pull()["begun"].get(run_id) != begun:
            self.change(lambda index: index.setdefault("begun", {}).update({run_id: begun}))
        return begun, version

    def claimed_as(self, run_id: str) -> str | None:
        """What the claim of a run that is read in shards is known by; None where it has none."""
        data, _ = self.objects.get(manifest_name(run_id)) or (GRAVE, "")
        return (request_of(data) or {}).get("claim")

    def claim(self, run_id: str) -> str | None:
        """Take an id for a new run, and give the claim's version; None where it is taken."""
        return self.objects.put(manifest_name(run_id), os.urandom(8).hex().encode(), None)

    def renew(self, run_id: str, claim: str) -> str | None:
        """A claim as new as if it were made now, also where it was swept; None where it is lost."""
        text = os.urandom(8).hex().encode()
        return self.objects.put(manifest_name(run_id), text, claim) or self.claim(run_id)

    def upload(self, folder: Path, files: Iterable[Path]) -> None:
        """Write files below a folder that is laid out as a lake."""
        names = ((path, f"lake/{path.relative_to(folder).as_posix()}") for path in files)
        self.objects.upload(names)

    def publish(self, run_id: str, folder: Path, claim: str | None) -> None:
        """Make a run exist whose data are uploaded, by its metadata tables in a folder.

        Without a claim it was published before, and only the index may lack it.

        Raises:
            AlabError: what was uploaded was swept meanwhile.
        """
        version = claim and self.objects.put(
            manifest_name(run_id), store.packed(folder, "*.parquet"), claim
        )
        if version is None:  # it was published already, or its claim is gone
            if (version := self.refresh(run_id)) is None:
                raise AlabError(f"{run_id} was deleted, or swept: nobody published it for a day")
            self.enlist({run_id: version})
            return
        self.enlist({run_id: version})
        with self._mirror() as known:
            store.delete(self._metadata(run_id))
            store.move(folder, self._metadata(run_id))
            known["runs"][run_id] = version

    def withdraw(self, run_id: str, claim: str, names: Iterable[str]) -> None:
        """Give up a run that was claimed; one that was published just before a kill is listed."""
        data, version = self.objects.get(manifest_name(run_id)) or (GRAVE, None)
        if is_whole(data):
            self.enlist({run_id: version})
        elif version == claim:
            left = Leftover(run_id, claim, sorted(set(names) - {manifest_name(run_id)}))
            if not self.bury(left):
                raise ConflictError(f"{run_id} was published meanwhile", "See: alab runs")

    def of_run(self, run_id: str) -> dict[str, Entry]:
        """All objects of a run."""
        return by_run(self.objects.listing("lake")).get(run_id, {})

    def amend(self, run_id: str, folder: Path, version: str | None) -> None:
        """Replace a run's metadata by the tables of a folder, and delete data that they name not.

        Raises:
            AlabError: another process has changed the run since it had this version.
        """
        before, after = self.names(run_id), self.names(run_id, folder)
        new = self.objects.put(manifest_name(run_id), store.packed(folder, "*.parquet"), version)
        if new is None:
            raise ConflictError(f"another process has changed the run {run_id}", "Try again.")
        self.enlist({run_id: new})
        self.objects.delete((before or set()) - (after or set()))

    def names(self, run_id: str, folder: Path | None = None) -> set[str] | None:
        """Names of a run's data, by metadata in the mirror or another folder; None if damaged."""
        files = manifest.sound(folder or self._metadata(run_id))
        rows = files.to_pylist() if files else []
        named = {f"lake/{row['path']}" for row in rows if row["dataset"] != "metadata"}
        return named if files else None

    def remove(self, run_id: str, version: str | None) -> None:
        """Delete a published run.

        Raises:
            AlabError: another process has changed it since it had this version.
        """
        if not self.bury(Leftover(run_id, version, sorted(self.names(run_id) or ()))):
            raise ConflictError(f"another process has changed the run {run_id}", "Try again.")

    def bury(self, left: Leftover) -> bool:
        """Delete what is left of a run, unless somebody has changed it; gives whether it did."""
        name = manifest_name(left.run_id)
        if left.version:
            if not self.objects.put(name, GRAVE, left.version):
                return False
            self.enlist({left.run_id: None})
        self.objects.delete(left.names)
        if left.version:
            self.objects.delete([name])
        return True

    def keep(self, folder: Path) -> None:
        """Keep a model's head, a folder of the mirror."""
        self.upload(self._root, folder.iterdir())
        self.change(lambda index: index.update(models=[*{*index["models"], folder.name}]))

    def head(self, key: str) -> None:
        """Mirror a model's head where the lake has one, or upload one that could not be before."""
        folder, has_one = self._root / "models" / key, key in self.known()["models"]
        if folder.is_dir() and not has_one:
            self.keep(folder)
        elif has_one and not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
            names = [f"lake/models/{key}/{name}.parquet" for name in ("norm", "unembedding")]
            self.objects.download(names, draft)
            with suppress(OSError):  # another process has just done so
                store.move(draft, folder)

    def enlist(self, versions: dict[str, str | None]) -> None:
        """Name runs in the index with their versions; with None no longer."""

        def change(index: dict) -> None:
            both = index["runs"] | versions
            index["runs"] = {run_id: version for run_id, version in both.items() if version}
            begun = index.get("begun", {})
            index["begun"] = {k: request for k, request in begun.items() if k not in versions}

        self.change(change)

    def change(self, change: Callable[[dict], None]) -> None:
        """Change the index, again and again while others change it too."""
        for attempt in range(TRIES):
            data, version = self.objects.get(INDEX) or (b"", None)
            index = self._index(data)
            change(index)
            new = json.dumps(index, sort_keys=True).encode()
            if new == data or self.objects.put(INDEX, new, version):
                return
            time.sleep(random.uniform(0, min(2.0, 0.05 * 1.5**attempt)))
        raise AlabError(
            f"the index of {self.address} changes faster than it can be written",
            "The run is there; the index gets it with: alab check --fix",
        )


def manifest_name(run_id: str) -> str:
    """Name of the object that says which state a run is in."""
    return f"lake/metadata/run={run_id}/manifest"


def index_in(data: bytes) -> dict | None:
    """The index that bytes hold; None of those that are damaged."""
    with suppress(ValueError):
        if isinstance(index := json.loads(data), dict) and {"runs", "models"} <= index.keys():
            return index
    return None


def is_whole(data: bytes) -> bool:
    """Whether a manifest is that of a run, not a claim or a grave."""
    return data.startswith(b"PK")


def request_of(data: bytes) -> dict | None:
    """What a claim says that a run was begun with which is read in shards; None of any other."""
    try:
        request = json.loads(data)
    except ValueError:
        return None
    return request if isinstance(request, dict) else None


def by_run(found: dict[str, Entry]) -> dict[str, dict[str, Entry]]:
    """The objects of each run, of a listing."""
    runs: dict[str, dict[str, Entry]] = {}
    for name, entry in found.items():
        if match := re.match(r"lake/[^/.][^/]*/run=([^/]+)/", name):
            runs.setdefault(match[1], {})[name] = entry
    return runs
