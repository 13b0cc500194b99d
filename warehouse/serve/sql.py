"""The page for a user's own queries: an editor, what there is to ask, rows, and a chart of them."""

import json
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from warehouse.atomic import writing
from warehouse.errors import AlabError, NotThereError
from warehouse.serve.server import MEDIA, Handler, Server, unless_gone

#: Rows that are shown, and that a file may have.
SHOWN, SAVED = 1000, 100_000
#: Characters of a query, at the most.
LONGEST = 100_000


async def editor(server: Server, request: Request) -> Response:
    """The editor, with the query of the address in it; a link to this page runs nothing."""
    objects = await server.rows("help_page")
    return server.pages.render(
        "sql",
        title="SQL",
        here="/sql",
        query=request.query_params.get("q", ""),
        saved=saved(server),
        bound=server.workers.is_bound,
        data={"objects": objects},
    )


async def run_query(server: Server, request: Request) -> Response:
    """The first rows of the query in the body, unless the browser goes away meanwhile."""
    form = request.path_params.get("form", "cells")
    if form != "cells" and form not in MEDIA:
        there = ", ".join(filter(None, MEDIA))
        raise NotThereError(f"there is no form {form!r} of rows", f"There are: {there}")
    body = await json_object(request)
    sql, params = body_text(body, "sql"), body.get("params", {})
    if not isinstance(params, dict):
        raise AlabError("params is an object: a value for each $name", "", 2)
    limit = SHOWN if form == "cells" else SAVED
    work = server.workers.query(sql, params=params, limit=limit, form=form)
    answer = await unless_gone(request, work)
    return Response(answer, media_type=MEDIA.get(form, "application/json"))


def saved(server: Server) -> list[dict[str, str]]:
    """The queries that are kept in the warehouse, as `queries/NAME.sql`, for `alab sql -f` too."""
    paths = sorted(_folder(server).glob("*.sql"))
    return [
        {"name": path.stem, "sql": path.read_text("utf-8", "replace")[:LONGEST]}
        for path in paths
        if re.fullmatch(_NAME, path.stem) and path.is_file() and not path.is_symlink()
    ]


async def keep(server: Server, request: Request) -> Response:
    """Keep a query under a name; an empty one takes it away."""
    body = await json_object(request)
    name, sql = body_text(body, "name"), body.get("sql", "")
    if not re.fullmatch(_NAME, name):
        raise AlabError(f"a query cannot be called {name[:80]!r}", "Letters, digits, - and _.", 2)
    if not isinstance(sql, str) or len(sql) > LONGEST:
        raise AlabError(f"a query has at most {LONGEST:,} characters", "", 2)
    path = _folder(server) / f"{name}.sql"
    if sql.strip():
        with writing(path, "the warehouse") as draft:
            draft.write_text(sql, encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
    return JSONResponse({"saved": saved(server)})


#: Names of saved queries.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_ -]{0,60}"


def _folder(server: Server) -> Path:
    return server.lake.home / "queries"


async def json_object(request: Request) -> dict[str, Any]:
    """The body of a request, an object in JSON.

    Raises:
        AlabError: it is none.
    """
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise AlabError(f"the body is no JSON: {error}", "", 2) from error
    if not isinstance(body, dict):
        raise AlabError("the body is no object", "", 2)
    return body


def body_text(body: dict[str, Any], key: str) -> str:
    """A text of a body.

    Raises:
        AlabError: there is none, or it is empty or too long.
    """
    text = body.get(key)
    if not isinstance(text, str) or not text.strip():
        raise AlabError(f"there is no {key}", "", 2)
    if len(text) > LONGEST:
        raise AlabError(f"{key} has at most {LONGEST:,} characters", "", 2)
    return text


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/sql", editor, ["GET"]),
    ("/api/sql", run_query, ["POST"]),
    ("/api/sql.{form}", run_query, ["POST"]),
    ("/api/queries", keep, ["POST"]),
]
