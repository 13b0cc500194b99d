"""Texts, tokens and vectors, looked for in the whole lake."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from warehouse.serve.server import Handler, Server
from warehouse.serve.values import values_of

#: What may be looked for, by the name of it in addresses.
KINDS = (("text", "a text"), ("token", "a token, exactly"), ("vector", "a vector"))


async def search(server: Server, request: Request) -> Response:
    """The fields to search with; the script asks for what they find."""
    values = values_of(request.query_params)
    (offer,) = await server.rows("search_page")
    is_near = {"run", "position"} <= values.keys()
    kind = "vector" if is_near else values.get("kind", "text")
    sites = (values.get("site"), "hidden_out", *offer["sites"])
    names = ("run", "prompt", "position") if is_near else ("q", "vector")
    asked: dict[str, Any] = {name: values[name] for name in names if name in values}
    return server.pages.render(
        "search",
        title="Search",
        here="/search",
        kinds=KINDS,
        kind=kind if kind in dict(KINDS) else "text",
        offer=offer,
        asked=asked,
        source=values.get("source", ""),
        layer=values.get(
            "layer", offer["layers"][len(offer["layers"]) // 2] if offer["layers"] else 0
        ),
        site=next((site for site in sites if site in offer["sites"]), ""),
        is_near=is_near,
    )


ROUTES: list[tuple[str, Handler, list[str]]] = [("/search", search, ["GET"])]
