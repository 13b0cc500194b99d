"""The states after messages against the references, in any layer."""

from starlette.requests import Request
from starlette.responses import Response

from warehouse.serve.server import Handler, Server


async def references(server: Server, request: Request) -> Response:
    """Messages × references, and one message over the layers."""
    run = await server.run(request)
    labels = [row["label"] for row in await server.rows("labels", runs=[run["run_id"]])]
    return server.pages.render(
        "references",
        title=f"{run['run_id']} · references",
        run=run,
        part="references",
        data={"labels": labels},
        messages=await server.rows("snapshots", runs=[run["run_id"]]),
        kept=await server.rows("state_places", run=run["run_id"]),
    )


ROUTES: list[tuple[str, Handler, list[str]]] = [("/run/{run}/references", references, ["GET"])]
