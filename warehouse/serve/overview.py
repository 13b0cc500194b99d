"""The page of one run: what it is, what the report says of it, what it keeps, and its end."""

import asyncio
import json
from datetime import datetime
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from warehouse.catalog import removal
from warehouse.errors import AlabError, NotThereError
from warehouse.report.frame import shape
from warehouse.serve.server import Handler, Server
from warehouse.serve.sql import json_object
from warehouse.vocabulary import BULK

#: Facts of a run that are JSON in themselves, by their names in `run.json`.
_NESTED = {"scenario_json": "scenario", "env_json": "environment", "tokenizer_json": "tokenizer"}
#: Seconds that the report of a run may take: some hundred conversations, or a large dataset.
SECONDS = 120.0


async def overview(server: Server, request: Request) -> Response:
    """One run, without what takes long: the page asks for that when it is there."""
    run = await server.run(request)
    run_id = run["run_id"]
    (totals,) = await server.rows("run_totals", run=run_id)
    files = await server.rows("run_datasets", run=run_id)
    bulk = sum(row["n_bytes"] for row in files if row["dataset"] in BULK)
    return server.pages.render(
        "overview",
        title=run_id,
        run=run,
        part="",
        facts=_facts(run, totals),
        warnings=await server.rows("run_warnings_page", run=run_id),
        sites=await server.rows("run_sites_page", run=run_id),
        files=[
            [row["dataset"], f"{row['files']:,}", f"{row['n_rows']:,}", _size(row["n_bytes"])]
            for row in files
        ],
        size=_size(sum(row["n_bytes"] for row in files)),
        bulk=_size(bulk) if bulk else "",
        run_json=_run_json(run),
    )


def _facts(run: dict[str, Any], totals: dict[str, int]) -> list[tuple[str, str, str]]:
    """Name, value and detail of what is said first."""
    began, ended = (datetime.fromisoformat(run[key]) for key in ("created_at", "finished_at"))
    cut = totals["cut"]
    stored = "" if run["store_dtype"] == run["dtype"] else f"stored as {run['store_dtype']}"
    return [
        ("Model", run["model_id"], run["arch"] or ""),
        ("Layers × width", shape(run), ""),
        ("Prompts", f"{totals['prompts']:,}", ""),
        ("Tokens read", f"{totals['tokens_read']:,}", ""),
        ("Tokens written", f"{totals['tokens_written']:,}", f"{cut:,} cut" if cut else ""),
        ("Precision", run["dtype"] or "–", stored),
        ("Device", run["device"] or "–", "" if run["seed"] is None else f"seed {run['seed']}"),
        ("Captured", f"{began:%Y-%m-%d %H:%M} UTC", f"in {(ended - began).total_seconds():.1f} s"),
    ]


_size = removal.readable


def _run_json(run: dict[str, Any]) -> str:
    """Everything that the catalog says of a run, indented."""
    facts = {key: value for key, value in run.items() if key not in ("has", "parts", *_NESTED)}
    nested = {name: json.loads(run[key] or "null") for key, name in _NESTED.items()}
    return json.dumps(facts | nested, indent=2, ensure_ascii=False)


async def run_json(server: Server, request: Request) -> Response:
    """The run's facts as a file."""
    return Response(_run_json(await server.run(request)), media_type="application/json")


async def scenario(server: Server, request: Request) -> Response:
    """The run's scenario as YAML, with every default filled in."""
    run = await server.run(request)
    asked = json.loads(run["scenario_json"] or "{}")
    text = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)
    return Response(text, media_type="application/yaml")


async def card(server: Server, request: Request) -> Response:
    """What the report says of the run, for its page."""
    run = await server.run(request)
    body = await server.workers.ask("card", run=run["run_id"], seconds=SECONDS)
    return Response(body, media_type="application/json")


async def remove(server: Server, request: Request) -> Response:
    """Delete the run that is named by its whole id, or drop its activations."""
    what, run_id = (await json_object(request)).get("what"), request.path_params["run"]
    if what not in ("run", "activations"):
        raise AlabError(f"what to remove is 'run' or 'activations', not {what!r}", "", 2)
    if run_id not in server.lake.run_ids():
        raise NotThereError(f"there is no run {run_id!r}", "It may have been deleted.")
    only = what == "activations"
    freed = await asyncio.to_thread(removal.remove, server.lake, [run_id], activations_only=only)
    server.workers.copies.look_again()
    return JSONResponse({"freed": freed})


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/run/{run}", overview, ["GET"]),
    ("/run/{run}/run.json", run_json, ["GET"]),
    ("/run/{run}/scenario.yaml", scenario, ["GET"]),
    ("/run/{run}/card", card, ["GET"]),
    ("/run/{run}/remove", remove, ["POST"]),
]
