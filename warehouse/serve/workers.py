"""The server's side of its workers: one request at a time each, within a time, or a new process."""

import asyncio
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from warehouse.catalog.catalog import Catalog
from warehouse.errors import KINDS, AlabError
from warehouse.lake.lake import Lake

#: Seconds that a request may take.
SECONDS = 30.0
#: Tasks that take long.
LONG = ("report", "card")
#: Seconds after which the lake is looked at again for runs that came or went.
FRESH = 1.0


class Copies:
    """Copies of the catalog: an open catalog would keep captures from registering theirs.

    Args:
        lake: the lake whose catalog it is.
        folder: where the copies lie.
    """

    def __init__(self, lake: Lake, folder: Path):
        self._lake, self._folder = lake, folder
        self._versions: dict[str, int] | None = None
        self._number = 0
        self._looked = float("-inf")
        self._lock = asyncio.Lock()
        #: A thread goes on when nobody waits for it any more, and another may come.
        self._renewing = threading.Lock()

    async def newest(self) -> Path:
        """A copy that has the runs that the lake has.

        Raises:
            AlabError: there is no warehouse, or its catalog is damaged.
        """
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now - self._looked > FRESH:
                await asyncio.to_thread(self._renew)
                self._looked = now
            return self._path()

    def look_again(self) -> None:
        """Look at the lake at the next request: it was just changed."""
        self._looked = float("-inf")

    def _path(self) -> Path:
        return self._folder / f"catalog-{self._number}.duckdb"

    def _renew(self) -> None:
        with self._renewing:
            versions = self._lake.versions()
            if versions != self._versions:
                older = self._path()
                self._number += 1
                Catalog(self._lake).copy(self._path())
                self._versions = versions
                older.unlink(missing_ok=True)  # whoever has it open still reads it


class Worker:
    """A worker process; one that was killed is started anew by the next request."""

    def __init__(self, lake: Lake, copies: Copies, spill: Path, *, locked: bool):
        self._lake, self._copies, self._spill = lake, copies, spill
        self._locked = locked
        self._process: asyncio.subprocess.Process | None = None
        self._copy: Path | None = None
        #: Whether the kernel keeps the process from writing; None before it was started.
        self.is_bound: bool | None = None

    async def ask(self, do: str, *, seconds: float | None = None, **arguments: Any) -> bytes:
        """What a task of `warehouse.serve.tasks` gives.

        Raises:
            AlabError: it cannot be done, or took longer than `seconds`, by default `SECONDS`.
        """
        seconds = SECONDS if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                await self._prepare()
                return await self._exchange(do, arguments)
        except TimeoutError:
            await self.stop()
            raise AlabError(f"it took longer than {seconds:g} s, and was stopped") from None
        except (OSError, asyncio.IncompleteReadError, ValueError):  # it died
            await self.stop()
            hint = "It may have needed too much memory."
            raise AlabError("the query's process ended", hint) from None
        except asyncio.CancelledError:
            await self.stop()  # else the next request would read this one's answer
            raise

    async def _prepare(self) -> None:
        """Start the process where there is none, and give it the newest copy."""
        copy = await self._copies.newest()
        if self._process is None or self._process.returncode is not None:
            self._copy = None
            shutil.rmtree(self._spill, ignore_errors=True)
            self._spill.mkdir(parents=True)
            self._process = await asyncio.create_subprocess_exec(
                # -P: a file in the user's folder must not be taken for one of our libraries.
                *(sys.executable, "-P", "-m", "warehouse.serve.worker", str(self._spill)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 20,
            )
        if copy != self._copy:
            place = {"warehouse": str(self._lake.warehouse), "copy": str(copy)}
            self.is_bound = json.loads(
                await self._exchange("open", {**place, "locked": self._locked})
            )
            self._copy = copy

    async def _exchange(self, do: str, arguments: dict[str, Any]) -> bytes:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        await process.stdin.drain()
        head = json.loads(await process.stdout.readuntil(b"\n"))
        if "error" in head:
            raise KINDS[head["kind"]](head["error"], head["hint"])
        return await process.stdout.readexactly(head["size"])

    async def stop(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


class Workers:
    """Workers for the pages, which share what is to do, and one for users' own queries.

    Args:
        lake: the lake that they read.
        count: workers for the pages.
    """

    def __init__(self, lake: Lake, count: int = 2):
        self._folder = Path(tempfile.mkdtemp(prefix="alab-serve-"))
        #: The copy of the catalog that they read.
        self.copies = copies = Copies(lake, self._folder)
        self._all = [
            Worker(lake, copies, self._folder / f"spill-{n}", locked=n == count)
            for n in range(count + 1)
        ]
        self._free: asyncio.Queue[Worker] = asyncio.Queue()
        for worker in self._all[:-1]:
            self._free.put_nowait(worker)
        self._alone = asyncio.Lock()
        self._long = asyncio.Lock()

    async def ask(self, do: str, **arguments: Any) -> bytes:
        """What a task gives, from the next worker that is free; as `Worker.ask`.

        Of those that take long there is one at a time: the other pages go on meanwhile.
        """
        async with self._long if do in LONG else nullcontext():
            worker = await self._free.get()
            try:
                return await worker.ask(do, **arguments)
            finally:
                self._free.put_nowait(worker)

    async def query(self, sql: str, **arguments: Any) -> bytes:
        """What a user's own query gives, one at a time; as `Worker.ask`."""
        async with self._alone:
            return await self._all[-1].ask("query", sql=sql, **arguments)

    @property
    def is_bound(self) -> bool:
        """Whether the kernel keeps workers from writing: all alike, those that were started."""
        return any(worker.is_bound for worker in self._all)

    async def close(self) -> None:
        """End them all; nothing of theirs stays."""
        for worker in self._all:
            await worker.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@asynccontextmanager
async def workers(lake: Lake) -> AsyncIterator[Workers]:
    """Workers while the server is up."""
    own = Workers(lake)
    try:
        yield own
    finally:
        await own.close()
