"""The queue of captures in the browser: what runs, how far it is, and its end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from warehouse.errors import AlabError
from warehouse.serve import drafts
from warehouse.serve.joblog import JobLog
from warehouse.serve.jobs import Job
from warehouse.serve.server import Handler, Server

#: Seconds between looks at the queue, and at the log of a capture that somebody watches.
LOOK, FOLLOW = 0.5, 0.2
#: Seconds after which a stream that has nothing to say says so: else nobody sees that it is dead.
BEAT = 15.0


@asynccontextmanager
async def following(server: Server) -> AsyncIterator[None]:
    """Keep the queue going while the server is up."""

    async def keep_going() -> None:
        while True:
            with suppress(OSError, AlabError):  # a full disk: what waits goes on waiting
                await asyncio.to_thread(server.jobs.step)
            await asyncio.sleep(LOOK)

    task = asyncio.create_task(keep_going())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def queue(server: Server, request: Request) -> Response:
    """All captures that were launched from the browser."""
    jobs = await asyncio.to_thread(_told, server)
    return server.pages.render("jobs", title="Captures", here="/capture", jobs=jobs)


async def listing(server: Server, request: Request) -> Response:
    """The same for scripts; with `active=1` those that wait or run."""
    jobs = await asyncio.to_thread(_told, server)
    if request.query_params.get("active"):
        jobs = [job for job in jobs if job["state"] in ("queued", "running")]
    return JSONResponse(jobs)


async def page(server: Server, request: Request) -> Response:
    """One capture."""
    job = await _job(server, request)
    told = await asyncio.to_thread(_one, server, job)
    path = server.jobs.path(job, "scenario.yaml")
    text = await asyncio.to_thread(path.read_text, encoding="utf-8")
    queued = await asyncio.to_thread(_told, server)
    return server.pages.render(
        "job", title=f"Capture of {job.name}", here="/capture", job=told, text=text,
        jobs=[one for one in queued if one["state"] in ("queued", "running")],
    )  # fmt: skip


async def about(server: Server, request: Request) -> Response:
    """The same for scripts."""
    job = await _job(server, request)
    return JSONResponse(await asyncio.to_thread(_one, server, job))


async def _job(server: Server, request: Request) -> Job:
    return await asyncio.to_thread(server.jobs.get, request.path_params["job"])


def _told(server: Server) -> list[dict[str, Any]]:
    """Every job, the newest first."""
    return [_short(server, job) for job in reversed(server.jobs.all())]


def _short(server: Server, job: Job) -> dict[str, Any]:
    """What a list says of a job."""
    stage = server.jobs.log(job).stage if job.state == "running" else None
    return {
        "id": job.id,
        "name": job.name,
        "state": "cancelling" if job.state == "running" and job.is_cancelled else job.state,
        "created": job.created,
        "finished": job.end.get("finished"),
        "exit_code": job.end.get("exit_code"),
        "error": job.end.get("error", ""),
        "runs": job.end.get("runs", []),
        "resume": job.resume,
        "stage": stage,
    }


def _one(server: Server, job: Job) -> dict[str, Any]:
    """What its page says of a job: also what it left to be gone on with."""
    return _short(server, job) | {"kept": server.jobs.kept(job)}


async def events(server: Server, request: Request) -> Response:
    """What a capture says, as it comes: server-sent events, each a list of events of the log.

    Their ids are places in the log, from which a browser that lost the line goes on.
    """
    job = await _job(server, request)
    last = request.headers.get("last-event-id", "0")
    since = int(last) if last.isascii() and last.isdecimal() and len(last) < 16 else 0
    return StreamingResponse(_stream(server, job.id, since), media_type="text/event-stream")


async def _stream(server: Server, id_: str, since: int) -> AsyncIterator[str]:
    log = JobLog(server.jobs.path(server.jobs.get(id_), "log.jsonl"))
    shown: dict[str, Any] | None = None
    quiet = 0.0
    while True:
        try:  # first how it stands: what is in the log then is all there will be, where it ended
            job = await asyncio.to_thread(server.jobs.get, id_)
            told = await asyncio.to_thread(_one, server, job)
        except AlabError:
            return  # forgotten by now
        while some := await asyncio.to_thread(log.read):
            lines, offset = some
            if not lines:
                break
            if offset > since:
                yield f"id: {offset}\ndata: {json.dumps(lines)}\n\n"
                quiet = 0.0
        if told != shown:
            shown = told
            yield f"event: job\ndata: {json.dumps(told)}\n\n"
            quiet = 0.0
        if not job.is_active:
            yield "event: over\ndata: {}\n\n"
            return
        await asyncio.sleep(FOLLOW)
        quiet += FOLLOW
        if quiet >= BEAT:
            yield ": still here\n\n"
            quiet = 0.0


async def cancel(server: Server, request: Request) -> Response:
    """Ask for a job's end."""
    await asyncio.to_thread(server.jobs.cancel, request.path_params["job"])
    return await about(server, request)


async def resume(server: Server, request: Request) -> Response:
    """Go on with the capture of a dataset that a job left, as another job."""
    job = await _job(server, request)
    path = server.jobs.path(job, "scenario.yaml")
    text = await asyncio.to_thread(path.read_text, encoding="utf-8")
    text, _ = await asyncio.to_thread(drafts.launchable, server, text)
    id_ = await asyncio.to_thread(server.jobs.go_on, job, text, online=server.allowed.online)
    return JSONResponse({"id": id_, "address": f"/jobs/{id_}"}, 201)


async def discard(server: Server, request: Request) -> Response:
    """Delete what a job left to be gone on with."""
    gone = await asyncio.to_thread(server.jobs.discard, request.path_params["job"])
    return JSONResponse({"discarded": gone})


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/jobs", queue, ["GET"]),
    ("/jobs/{job}", page, ["GET"]),
    ("/api/jobs", listing, ["GET"]),
    ("/api/jobs/{job}", about, ["GET"]),
    ("/api/jobs/{job}/events", events, ["GET"]),
    ("/api/jobs/{job}/cancel", cancel, ["POST"]),
    ("/api/jobs/{job}/resume", resume, ["POST"]),
    ("/api/jobs/{job}/discard", discard, ["POST"]),
]
