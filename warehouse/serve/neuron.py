"""One dimension of one site, over all tokens and passes."""

from starlette.requests import Request
from starlette.responses import Response

from warehouse.serve.server import Handler, Server


async def neuron(server: Server, request: Request) -> Response:
    """A neuron's value at every token, and the neurons that speak up most."""
    run = await server.run(request)
    passes = await server.rows("passes", run=run["run_id"])
    sites = await server.rows("sites_kept", run=run["run_id"])
    sites = [row for row in sites if row["site"] != "attention"]
    return server.pages.render(
        "neuron",
        title=f"{run['run_id']} · neurons",
        run=run,
        part="neuron",
        prompts=list(dict.fromkeys(row["prompt_id"] for row in passes)),
        # The neurons proper, where they were kept: what goes into the last map of the MLP.
        sites=sorted(sites, key=lambda row: row["site"] != "mlp_down_in"),
    )


ROUTES: list[tuple[str, Handler, list[str]]] = [("/run/{run}/neuron", neuron, ["GET"])]
