"""The page of a dataset run: its rows, their vectors in two dimensions, and one row closely."""

from starlette.requests import Request
from starlette.responses import Response

from warehouse.errors import AlabError, NotThereError
from warehouse.report.datasets import LABELS
from warehouse.serve.server import Handler, Server, form_of, in_form
from warehouse.serve.values import values_of


async def dataset(server: Server, request: Request) -> Response:
    """The rows of a dataset."""
    run = await server.run(request)
    if "labels" not in run["has"]:
        raise NotThereError(f"{run['run_id']} is no dataset", "It has conversations.")
    named = {"run": run["run_id"]}
    (overview,) = await server.rows("dataset_overview", runs=[run["run_id"]])
    columns = await server.rows("dataset_columns", **named)
    sites = [row for row in await server.rows("tensor_sites", **named) if row["layers"]]
    layers = sorted({layer for row in sites for layer in row["layers"]})
    for row in columns:
        row["is_number"] = row["kind"] == "number" and row["labels"] not in LABELS
    return server.pages.render(
        "dataset",
        title=f"{run['run_id']} · dataset",
        run=run,
        part="dataset",
        page_class="dataset-page",
        overview=overview,
        sites=sites,
        layers=layers,
        data={"run": run["run_id"], "columns": columns},
    )


async def plane(server: Server, request: Request) -> Response:
    """The rows' vectors in two dimensions."""
    suffix = request.path_params.get("form", "")
    values = values_of(request.query_params)
    if missing := [name for name in ("site", "layer", "selector") if name not in values]:
        raise AlabError(f"the plane of a dataset needs a {missing[0]}", "", 2)
    named = {name: values[name] for name in ("site", "layer", "selector")}
    label = values.get("label") or None
    run = request.path_params["run"]
    body = await server.workers.ask("plane", run=run, **named, label=label, form=form_of(suffix))
    return in_form(body, "plane", suffix)


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/run/{run}/dataset", dataset, ["GET"]),
    ("/run/{run}/dataset/plane", plane, ["GET"]),
    ("/run/{run}/dataset/plane.{form}", plane, ["GET"]),
]
