"""What every page is made with: the lake, the templates, and the workers that read."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.serve.jobs import Jobs
from warehouse.serve.pages import PARTS, Pages
from warehouse.serve.workers import CONFLICT, DEFECT, NOT_THERE, Workers

_STATUS = {NOT_THERE: 404, CONFLICT: 409, DEFECT: 500}


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
        rows = json.loads(await self.workers.ask("rows", name=name, values=values))
        assert isinstance(rows, list)
        return rows

    async def run(self, request: Request) -> dict[str, Any]:
        """The run that an address names, and in `parts` which pages there are of it.

        Raises:
            AlabError: there is no such run.
        """
        try:
            (run,) = await self.rows("run", run=request.path_params["run"])
        except AlabError as error:
            raise AlabError(error.message, error.hint, NOT_THERE) from error
        there = set(run["has"])
        run["parts"] = [(path, name) for path, name, needs in PARTS if not needs or needs in there]
        return run

    def told(self, request: Request, error: AlabError) -> Response:
        """An error as its asker takes it: a page, or JSON."""
        return self.answer(request, _STATUS.get(error.exit_code, 400), error.message, error.hint)

    def answer(self, request: Request, status: int, message: str, hint: str = "") -> Response:
        """What went wrong, as a page for a browser and as JSON for a script."""
        if "text/html" in request.headers.get("accept", ""):
            return self.pages.problem(status, message, hint)
        return JSONResponse({"error": message, "hint": hint}, status)


#: What answers an address.
Handler = Callable[[Server, Request], Awaitable[Response]]
