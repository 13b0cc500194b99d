"""What each layer would say next, at every token that the logit lens was asked about."""

from starlette.requests import Request
from starlette.responses import Response

from warehouse.serve.server import Handler, Server
from warehouse.serve.values import values_of

#: Tokens that one view shows, as `lens_cells.sql` has it, and how far the next view is.
SHOWN, STRIDE = 48, 32


async def lens(server: Server, request: Request) -> Response:
    """Positions against layers, and the tokens that are pinned."""
    run = await server.run(request)
    prompt = values_of(request.query_params)["prompt"]
    places = await server.rows("lens_places", run=run["run_id"])
    looked = max((row["places"] for row in places if row["prompt_id"] == prompt), default=0)
    return server.pages.render(
        "lens",
        title=f"{run['run_id']} · logit lens",
        run=run,
        part="lens",
        prompts=list(dict.fromkeys(row["prompt_id"] for row in places)),
        sites=list(dict.fromkeys(row["site"] for row in places)),
        prompt=prompt,
        looked=looked,
        views=[
            (first, min(first + SHOWN, looked))
            for first in range(0, max(looked - SHOWN + STRIDE, 1), STRIDE)
        ],
    )


ROUTES: list[tuple[str, Handler, list[str]]] = [("/run/{run}/lens", lens, ["GET"])]
