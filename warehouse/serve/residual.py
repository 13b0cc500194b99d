"""What each layer writes to the residual stream, at the last token of any pass."""

from starlette.requests import Request
from starlette.responses import Response

from warehouse.serve.server import Handler, Server


async def residual(server: Server, request: Request) -> Response:
    """How much each layer adds, and whether that reinforces what is there."""
    run = await server.run(request)
    passes = await server.rows("passes", run=run["run_id"])
    return server.pages.render(
        "residual",
        title=f"{run['run_id']} · residual stream",
        run=run,
        part="residual",
        passes=passes,
        sites=await server.rows("sites_kept", run=run["run_id"]),
    )


ROUTES: list[tuple[str, Handler, list[str]]] = [("/run/{run}/residual", residual, ["GET"])]
