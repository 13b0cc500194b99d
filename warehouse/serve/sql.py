"""The page for a user's own queries: an editor, what there is to ask, and the rows."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from warehouse.errors import AlabError
from warehouse.serve.server import Handler, Server

#: Rows that are shown.
LIMIT = 1000


async def editor(server: Server, request: Request) -> Response:
    """The editor, with the query of the address in it; a link to this page runs nothing."""
    objects = await server.rows("help_page")
    query = request.query_params.get("q", "")
    return server.pages.render("sql", title="SQL", here="/sql", objects=objects, query=query)


async def run_query(server: Server, request: Request) -> Response:
    """The first rows of the query in the body."""
    body = await json_object(request)
    sql = body.get("sql")
    if not isinstance(sql, str) or not sql.strip():
        raise AlabError("there is no query", "Write one.", 2)
    answer = await server.workers.query(sql, limit=LIMIT)
    return Response(answer, media_type="application/json")


async def json_object(request: Request) -> dict[str, Any]:
    """The body of a request, an object in JSON.

    Raises:
        AlabError: it is none.
    """
    try:
        body = await request.json()
    except ValueError as error:
        raise AlabError(f"the body is no JSON: {error}", "", 2) from error
    if not isinstance(body, dict):
        raise AlabError("the body is no object", "", 2)
    return body


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/sql", editor, ["GET"]),
    ("/api/sql", run_query, ["POST"]),
]
