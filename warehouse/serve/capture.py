"""The page where a scenario is written, checked and launched."""

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from warehouse.errors import AlabError
from warehouse.scenario import Scenario
from warehouse.serve import drafts, estimate, models
from warehouse.serve.drafts import Draft
from warehouse.serve.server import Handler, Server
from warehouse.serve.sql import json_object
from warehouse.serve.yaml_edit import edit

#: Mistakes told at once; rows of a dataset that are shown; seconds that reading it may take.
MISTAKES, ROWS, SECONDS = 20, 5, 10.0
_NEW = """\
# What is this capture for?
name: new
model:
  id: {id}
{gguf}prompt:
  messages:
    - role: user
      content: Hello!
generation:
  max_new_tokens: 20
"""


async def page(server: Server, request: Request) -> Response:
    """The form and the YAML, begun anew or from a file, an example or a run."""
    query = request.query_params
    text = await _beginning(server, dict(query))
    runs = await server.rows("runs_brief")
    there = await asyncio.to_thread(models.models, [row["model_id"] for row in runs])
    return server.pages.render(
        "capture",
        title="Capture",
        here="/capture",
        text=text,
        file=query.get("file", ""),
        files=await asyncio.to_thread(drafts.names, server),
        examples=drafts.examples(),
        runs=[row["run_id"] for row in runs[:200]],
        models=there,
        fields=_fields(),
        folder=str(drafts.folder(server)),
        allowed=server.allowed,
    )


async def _beginning(server: Server, query: dict[str, str]) -> str:
    if "file" in query:
        return await asyncio.to_thread(drafts.read, server, query["file"])
    if "example" in query:
        return await asyncio.to_thread(drafts.example, query["example"])
    if "run" in query:
        (row,) = await server.rows("run", run=query["run"])
        return drafts.of_run(row["scenario_json"] or "{}")
    there = await asyncio.to_thread(models.models, [])
    first = there[0] if there else None
    id_ = query.get("model") or (first.id if first else "owner/model")
    gguf = query.get("gguf") if "model" in query else first and first.gguf
    new = _NEW.format(id="x", gguf="")
    changes: list[dict[str, Any]] = [{"path": ["model", "id"], "value": id_}]
    changes += [{"path": ["model", "gguf_file"], "value": gguf}] if gguf else []
    return edit(new, changes)


def _fields() -> dict[str, list[dict[str, Any]]]:
    """The single values of a scenario's parts, from its own schema: a control for each."""
    schema = Scenario.model_json_schema()
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in ("model", "generation", "capture", "output"):
        properties = schema["$defs"][part.capitalize()]["properties"]
        parts[part] = [_field(f"{part}.{key}", value) for key, value in properties.items()]
    return parts


def _field(path: str, about: dict[str, Any]) -> dict[str, Any]:
    """What a control needs to know: `kind` is text, number, switch, choice or list."""
    kinds = [about, *about.get("anyOf", [])]
    types = {one.get("type") for one in kinds}
    options = next((one["enum"] for one in kinds if "enum" in one), None)
    items = next((one["items"] for one in kinds if one.get("type") == "array"), None)
    kind = (
        "list" if items else "choice" if options else "switch" if "boolean" in types
        else "number" if types & {"integer", "number"} else "text"
    )  # fmt: skip
    usual = about.get("default")
    return {
        "path": path,
        "name": path.rpartition(".")[2],
        "kind": kind,
        "options": options or (items or {}).get("enum") or [],
        "whole": "integer" in types or (items or {}).get("type") == "integer",
        "usual": usual,
        "about": about.get("description", ""),
    }


async def check(server: Server, request: Request) -> Response:
    """What is to be said of a scenario; edits of the form are made in its text first."""
    body = await json_object(request)
    text, refused = _text_of(body), None
    if changes := body.get("edits"):
        if not isinstance(changes, list) or not all(isinstance(one, dict) for one in changes):
            raise AlabError("edits is a list of changes", "", 2)
        try:
            text = await asyncio.to_thread(edit, text, changes)
        except AlabError as error:
            refused = str(error)
    draft = await asyncio.to_thread(drafts.check, server, text)
    answer = {
        "yaml": text,
        "data": draft.data,
        "refused": refused,
        "mistakes": [vars(one) for one in draft.mistakes[:MISTAKES]],
        **(await _beyond(server, draft, ask=bool(body.get("ask")))),
    }
    return Response(json.dumps(_plain(answer)), media_type="application/json")


def _text_of(body: dict[str, Any]) -> str:
    text = body.get("yaml")
    if not isinstance(text, str):
        raise AlabError("there is no yaml", "Write a scenario.", 2)
    return text


async def _beyond(server: Server, draft: Draft, *, ask: bool) -> dict[str, Any]:
    """What a sound scenario would read and take; with `ask` its model is asked for its sizes."""
    if draft.scenario is None or draft.mistakes:
        return {"preview": None, "estimate": None}
    scenario = await asyncio.to_thread(drafts.located, server, draft.scenario)
    preview: dict[str, Any] | None = None
    if scenario.dataset is not None:
        try:
            request = scenario.dataset.model_dump()
            told = await server.workers.ask(
                "dataset_preview", seconds=SECONDS, dataset=request, count=ROWS
            )
            preview = json.loads(told)
        except AlabError as error:
            return {"preview": {"error": str(error)}, "estimate": None}
    return {"preview": preview, "estimate": await _estimate(server, scenario, preview, ask=ask)}


async def _estimate(
    server: Server, scenario: Scenario, rows: dict[str, Any] | None, *, ask: bool
) -> dict[str, Any]:
    """Bytes and seconds, and why one is not known."""
    spec, why = scenario.model, "the model has not been asked for its sizes"
    facts = models.known_facts(server, spec.id, spec.gguf_file)
    if facts is None and ask:
        try:
            facts = await models.facts_of(server, spec.id, spec.gguf_file)
        except AlabError as error:
            why = error.message
    kept = estimate.amounts(scenario, rows)
    (speed,) = await server.rows("capture_speed", model=spec.id)
    return {
        "tokens": kept.tokens,
        "bytes": estimate.bytes_of(scenario, kept, facts) if facts else None,
        "why": "" if facts else why,
        "seconds": estimate.seconds_of(scenario, rows, speed),
        "context": facts and facts["context"],
    }


async def save(server: Server, request: Request) -> Response:
    """Write the scenario as a file of the folder."""
    body = await json_object(request)
    name, overwrite = body.get("name"), body.get("overwrite") is True
    if not isinstance(name, str):
        raise AlabError("the file has no name", "Give it one.", 2)
    saved = await asyncio.to_thread(drafts.save, server, name, _text_of(body), overwrite=overwrite)
    return Response(json.dumps({"file": saved}), media_type="application/json")


async def launch(server: Server, request: Request) -> Response:
    """Put a capture at the end of the queue."""
    body = await json_object(request)
    text, scenario = await asyncio.to_thread(drafts.launchable, server, _text_of(body))
    id_ = await asyncio.to_thread(
        server.jobs.add, text, scenario.name, online=server.allowed.online
    )
    return Response(
        json.dumps({"id": id_, "address": f"/jobs/{id_}"}), 201, media_type="application/json"
    )


def _plain(value: Any) -> Any:
    """A value of YAML as JSON can say it: numbers that JavaScript cannot hold become text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, int) and abs(value) >= 1 << 53:
        return hex(value) if abs(value) >= 1 << 4096 else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/capture", page, ["GET"]),
    ("/api/capture/check", check, ["POST"]),
    ("/api/capture/save", save, ["POST"]),
    ("/api/jobs", launch, ["POST"]),
]
