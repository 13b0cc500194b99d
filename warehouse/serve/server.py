"""What every page is made with: the lake, the templates, and the workers that read."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from warehouse.errors import AlabError, ConflictError, DefectError, NotThereError
from warehouse.lake.lake import Lake
from warehouse.serve.jobs import Jobs
from warehouse.serve.pages import PARTS, Pages
from warehouse.serve.workers import Workers

#: Statuses of the kinds of errors; 400 of all others.
_STATUS: dict[type[AlabError], int] = {NotThereError: 404, ConflictError: 409, DefectError: 500}

#: Media types, by the suffix of an address of data; without one it is for a page's script.
MEDIA = {
    "": "application/json",
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}


def form_of(suffix: str) -> str:
    """How a worker is to write rows for an address of that suffix.

    Raises:
        AlabError: there is no such form.
    """
    if suffix not in MEDIA:
        there = ", ".join(filter(None, MEDIA))
        raise NotThereError(f"there is no form {suffix!r} of data", f"There are: {there}")
    return suffix or "columns"


def in_form(body: bytes, name: str, suffix: str) -> Response:
    """Rows as they were asked for; with a suffix a file of that name."""
    file = {"Content-Disposition": f'attachment; filename="{name}.{suffix}"'} if suffix else {}
    return Response(body, media_type=MEDIA[suffix], headers=file)


@dataclass(frozen=True)
class Allowed:
    """What captures from the browser may do, as the server was started.

    Attributes:
        scenarios: the folder of scenario files; None: `scenarios` beside the warehouse.
        trust_remote_code: whether they may run code that comes with a model.
        online: whether they may use the network.
    """

    scenarios: Path | None = None
    trust_remote_code: bool = False
    online: bool = False


class Server:
    """A warehouse's pages, and the workers that read it.

    Args:
        lake: the lake.
        allowed: what captures may do.

    Attributes:
        lake: the lake.
        allowed: what captures may do.
        jobs: the captures that wait, run and have ended.
        pages: the pages' templates and files.
        workers: there while the server is up.
    """

    def __init__(self, lake: Lake, allowed: Allowed | None = None):
        self.lake = lake
        self.allowed = allowed or Allowed()
        self.jobs = Jobs(lake)
        #: What `alab layers` said of models, with their files' stamps; one is asked at a time.
        self.models: dict[tuple[str, str | None], tuple[Any, dict[str, Any]]] = {}
        self.probing = asyncio.Lock()
        self.pages = Pages(lake)
        self.workers: Workers

    async def rows(self, name: str, **values: Any) -> list[dict[str, Any]]:
        """The rows of `reports/serve/queries/<name>.sql`, for a template."""
        rows = json.loads(await self.workers.ask("data", name=name, values=values, form="json"))
        assert isinstance(rows, list)
        return rows

    async def run(self, request: Request) -> dict[str, Any]:
        """The run that an address is about; as `find`."""
        return await self.find(request.path_params["run"])

    async def find(self, name: str) -> dict[str, Any]:
        """The run of any name that runs have, and in `parts` which pages there are of it.

        Raises:
            NotThereError: there is no such run.
        """
        try:
            (run,) = await self.rows("run", run=name)
        except NotThereError as error:
            hint = f"If it was there before, it was deleted since. {error.hint}".strip()
            raise NotThereError(error.message, hint) from error
        there = set(run["has"])
        run["parts"] = [(path, name) for path, name, needs in PARTS if not needs or needs in there]
        return run

    def told(self, request: Request, error: AlabError) -> Response:
        """An error as its asker takes it: a page, or JSON."""
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
        return self.answer(request, status, error.message, error.hint)

    def answer(self, request: Request, status: int, message: str, hint: str = "") -> Response:
        """What went wrong, as a page for a browser and as JSON for a script."""
        if "text/html" in request.headers.get("accept", ""):
            return self.pages.problem(status, message, hint)
        return JSONResponse({"error": message, "hint": hint}, status)


Answer = TypeVar("Answer")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """What some work gives; it is stopped soon after nobody waits for it any more.

    Raises:
        AlabError: the work does, or nobody waits.
    """
    task = asyncio.ensure_future(work)
    # What ends within a second is let end: a process that is stopped has to be started again.
    while not (await asyncio.wait([task], timeout=1))[0]:
        if await request.is_disconnected():
            task.cancel()
            await asyncio.wait([task])
            raise AlabError("nobody waits for the answer any more")
    return task.result()


#: What answers an address.
Handler = Callable[[Server, Request], Coroutine[Any, Any, Response]]
