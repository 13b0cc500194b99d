"""The addresses, and what answers each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from warehouse.errors import AlabError, explain
from warehouse.serve import compare, residual, sql
from warehouse.serve.server import NOT_THERE, Handler, Server
from warehouse.serve.values import values_of
from warehouse.serve.workers import workers

#: Media types, by the suffix of an address of data.
MEDIA = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}


async def home(server: Server, request: Request) -> Response:
    """All runs."""
    rows = await server.rows("runs_page")
    return server.pages.render("runs", title="Runs", here="/", runs=rows)


async def data(server: Server, request: Request) -> Response:
    """The rows behind a figure, in the form of the address's suffix."""
    name, _, suffix = request.path_params["name"].partition(".")
    if suffix and suffix not in MEDIA:
        raise AlabError(
            f"there is no form {suffix!r} of data", f"There are: {', '.join(MEDIA)}", NOT_THERE
        )
    values = values_of(request.query_params)
    body = await server.workers.ask("data", name=name, values=values, form=suffix or "columns")
    file = {"Content-Disposition": f'attachment; filename="{name}.{suffix}"'} if suffix else {}
    return Response(body, media_type=MEDIA[suffix or "json"], headers=file)


async def static(server: Server, request: Request) -> Response:
    """A file that pages refer to."""
    return server.pages.file(**request.path_params)


#: Address, what answers it, and by which methods.
ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/", home, ["GET"]),
    ("/data/{name}", data, ["GET"]),
    ("/static/{digest}/{name}", static, ["GET"]),
    *compare.ROUTES,
    *residual.ROUTES,
    *sql.ROUTES,
]


def make_app(server: Server) -> Starlette:
    """The application that answers for a server; nothing in it asks who is there: see `Guard`."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with workers(server.lake) as server.workers:
            yield

    def route(path: str, handler: Handler, methods: list[str]) -> Route:
        async def answer(request: Request) -> Response:
            try:
                return await handler(server, request)
            except Exception as error:
                if (known := explain(error)) is None:
                    raise
                return server.told(request, known)

        return Route(path, answer, methods=methods)

    async def missing(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return server.answer(request, status, f"there is nothing at {request.url.path}")

    return Starlette(
        routes=[route(*one) for one in ROUTES],
        lifespan=lifespan,
        exception_handlers={404: missing, 405: missing},
    )
