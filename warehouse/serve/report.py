"""The one-file report of some runs, to keep."""

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from warehouse.serve.overview import SECONDS
from warehouse.serve.server import Handler, Server


async def report(server: Server, request: Request) -> Response:
    """The report as a file: its script is its own, which the policy of these pages forbids."""
    names = request.query_params.getlist("run")
    runs = [(await server.find(name))["run_id"] for name in names]
    body = await server.workers.ask("report", runs=runs, seconds=SECONDS)
    name = f"{runs[0]}-report" if len(runs) == 1 else "report"
    head = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}.html"}
    return Response(body, media_type="text/html; charset=utf-8", headers=head)


ROUTES: list[tuple[str, Handler, list[str]]] = [("/report", report, ["GET"])]
