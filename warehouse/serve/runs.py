"""The front page: the runs of the warehouse, found, sorted, and chosen for a comparison."""

from starlette.requests import Request
from starlette.responses import Response

from warehouse.serve.server import Handler, Server
from warehouse.serve.values import values_of

#: Runs that are shown at first.
SHOWN = 200
#: What runs are sorted by.
SORTS = ("captured", "run", "model", "prompts", "steps", "tokens", "size", "warnings")


async def home(server: Server, request: Request) -> Response:
    """The runs that match, the newest first unless the address says otherwise."""
    values = values_of(request.query_params)
    asked = {name: values.get(name, "") for name in ("q", "scenario", "model", "sort", "order")}
    asked["sort"] = asked["sort"] if asked["sort"] in SORTS else SORTS[0]
    asked["order"] = "up" if asked["order"] == "up" else "down"
    asked["limit"] = max(1, values.get("limit", SHOWN))
    facets = await server.rows("runs_facets")
    runs = await server.rows("runs_page", **asked) if facets else []
    return server.pages.render(
        "runs",
        title="Runs",
        here="/",
        runs=runs,
        matches=runs[0]["matches"] if runs else 0,
        total=sum(row["runs"] for row in facets if row["facet"] == "model"),
        facets=facets,
        asked=asked,
    )


ROUTES: list[tuple[str, Handler, list[str]]] = [("/", home, ["GET"])]
