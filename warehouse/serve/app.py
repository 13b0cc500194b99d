"""The addresses, and what answers each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from warehouse.errors import explain
from warehouse.serve import (
    capture,
    compare,
    dataset,
    job_pages,
    lens,
    models,
    neuron,
    overview,
    references,
    report,
    residual,
    runs,
    search,
    sql,
    tensor,
    tokens,
)
from warehouse.serve.server import Handler, Server, form_of, in_form, unless_gone
from warehouse.serve.values import values_of
from warehouse.serve.workers import workers


async def data(server: Server, request: Request) -> Response:
    """The rows behind a figure, in the form of the address's suffix."""
    name, _, suffix = request.path_params["name"].partition(".")
    form = form_of(suffix)
    values = values_of(request.query_params)
    rows = await server.workers.ask("data", name=name, values=values, form=form)
    return in_form(rows, name, suffix)


async def static(server: Server, request: Request) -> Response:
    """A file that pages refer to."""
    return server.pages.file(**request.path_params)


#: Address, what answers it, and by which methods.
ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/data/{name}", data, ["GET"]),
    ("/static/{digest}/{name}", static, ["GET"]),
    *compare.ROUTES,
    *lens.ROUTES,
    *neuron.ROUTES,
    *overview.ROUTES,
    *references.ROUTES,
    *report.ROUTES,
    *residual.ROUTES,
    *search.ROUTES,
    *runs.ROUTES,
    *sql.ROUTES,
    *tokens.ROUTES,
    *tensor.ROUTES,
    *dataset.ROUTES,
    *capture.ROUTES,
    *job_pages.ROUTES,
    *models.ROUTES,
]


def make_app(server: Server) -> Starlette:
    """The application that answers for a server; nothing in it asks who is there: see `Guard`."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with workers(server.lake) as server.workers, job_pages.following(server):
            yield

    def route(path: str, handler: Handler, methods: list[str]) -> Route:
        async def answer(request: Request) -> Response:
            work = handler(server, request)
            try:
                return await (unless_gone(request, work) if methods == ["GET"] else work)
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
