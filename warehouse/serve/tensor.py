"""The pages that show values one by one: any tensor as tiles, and attention head by head."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from warehouse.errors import AlabError
from warehouse.serve.server import Handler, Server, form_of, in_form
from warehouse.serve.tensor_tasks import ATTENDED, SIDE
from warehouse.serve.values import values_of

#: What the address of a tile need not say.
_TILE = {"head": 0, "row": 0, "column": 0, "rows": SIDE, "columns": SIDE, "down": 1, "across": 1}
#: Attention weights that the map of all heads reads; of long sequences it is of the last tokens.
WEIGHTS = 4_000_000


async def tensor(server: Server, request: Request) -> Response:
    """Any tensor of a run."""
    return await _page(server, request, "tensor", "tensors")


async def attention(server: Server, request: Request) -> Response:
    """All heads by how widely they look, and the maps of some."""
    return await _page(server, request, "attention", "attention")


async def _page(server: Server, request: Request, name: str, title: str) -> Response:
    run = await server.run(request)
    named = {"run": run["run_id"]}
    sites = await server.rows("tensor_sites", **named)
    passes = await server.rows("passes", **named)
    (size,) = await server.rows("attention_size", **named)
    has_values = {"v", "attention"} <= {row["site"] for row in sites}
    attended: list[dict[str, Any]] = (
        [{"site": ATTENDED, "layers": [], "width": None}] if has_values else []
    )
    heads, longest = run["num_layers"] * (run["num_heads"] or 1), max(1, size["longest"] or 1)
    return server.pages.render(
        name,
        title=f"{run['run_id']} · {title}",
        run=run,
        part=name,
        page_class=name,
        passes=passes,
        sites=[*sites, *attended],
        layers=sorted({layer for row in sites for layer in row["layers"] or []}),
        queries=min(longest, max(1, WEIGHTS // (heads * longest))),
        has_values=has_values,
        data={"run": run["run_id"]},
    )


async def facts(server: Server, request: Request) -> Response:
    """What a tensor is drawn with: its size, its ends and its tokens."""
    body = await server.workers.ask("tensor", **_tensor(request))
    return Response(body, media_type="application/json")


async def tile(server: Server, request: Request) -> Response:
    """A rectangle of a tensor: float32, or a table in the form of the address's suffix."""
    suffix = request.path_params.get("form", "")
    form = form_of(suffix) if suffix else "binary"
    values = values_of(request.query_params)
    asked = {name: values.get(name, default) for name, default in _TILE.items()}
    asked["statistic"] = values.get("statistic", "extreme")
    body = await server.workers.ask("tile", **_tensor(request), **asked, form=form)
    if suffix:
        return in_form(body, "tensor", suffix)
    return Response(body, media_type="application/octet-stream")


def _tensor(request: Request) -> dict[str, Any]:
    """The tensor that an address names."""
    values = values_of(request.query_params)
    if "site" not in values:
        raise AlabError("a tensor needs a site", "Write for example: site=hidden_out&layer=0", 2)
    named = {name: values.get(name) for name in ("site", "layer", "prompt", "step")}
    return {"run": request.path_params["run"], **named}


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/run/{run}/tensor", tensor, ["GET"]),
    ("/run/{run}/attention", attention, ["GET"]),
    ("/run/{run}/tensor/facts", facts, ["GET"]),
    ("/run/{run}/tensor/tile", tile, ["GET"]),
    ("/run/{run}/tensor/tile.{form}", tile, ["GET"]),
]
