"""Which models there are, and what a capture would take from each.

What a model is made of, `alab layers` says, in a process of its own: nothing here loads one.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from warehouse.errors import AlabError, NotThereError
from warehouse.serve import drafts
from warehouse.serve.server import Handler, Server

#: Seconds that `alab layers` may take.
SECONDS = 180.0
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Model:
    """A model that is here.

    Attributes:
        id: what a scenario names it.
        gguf: its GGUF file; None where its weights are others.
        place: `package`, `cache` or `directory`.
        folder: where its files are.
        bytes: of its weights.
    """

    id: str
    gguf: str | None
    place: str
    folder: Path
    bytes: int


async def page(server: Server, request: Request) -> Response:
    """The models that are here, and of the one that the address names what it is made of."""
    there = await _models(server)
    return server.pages.render(
        "models",
        title="Models",
        here="/models",
        models=there,
        chosen=request.query_params.get("model"),
        gguf=request.query_params.get("gguf"),
        online=server.allowed.online,
    )


async def listing(server: Server, request: Request) -> Response:
    """The models that are here, for scripts."""
    there = await _models(server)
    return JSONResponse([asdict(model) | {"folder": str(model.folder)} for model in there])


async def layers(server: Server, request: Request) -> Response:
    """What `alab layers` says of a model."""
    query = request.query_params
    facts = await facts_of(server, query.get("model", ""), query.get("gguf") or None)
    return JSONResponse(facts)


async def facts_of(server: Server, id_: str, gguf: str | None = None) -> dict[str, Any]:
    """Sizes and modules of a model, from `alab layers --format json`; kept while its files stay.

    Raises:
        NotThereError: it is not here.
        AlabError: it cannot be probed.
    """
    stamp = await asyncio.to_thread(_stamp, id_, gguf, server.allowed.online)
    key = (id_, gguf)
    known = server.models.get(key)
    if known is None or known[0] != stamp:
        async with server.probing:  # one at a time: each takes a core and hundreds of megabytes
            known = server.models.get(key)
            if known is None or known[0] != stamp:
                known = server.models[key] = (stamp, await _probe(server, id_, gguf))
    return known[1]


def known_facts(server: Server, id_: str, gguf: str | None) -> dict[str, Any] | None:
    """What is known of a model without asking it; None where that is nothing."""
    known = server.models.get((id_, gguf))
    return known[1] if known else None


async def _probe(server: Server, id_: str, gguf: str | None) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "warehouse.cli", "layers", "--format", "json"]
    command += ["--gguf-file", gguf] if gguf else []
    network = {} if server.allowed.online else {"HF_HUB_OFFLINE": "1"}
    child = await asyncio.create_subprocess_exec(
        *command, "--", id_,
        env=os.environ | network,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await child.communicate()
    except TimeoutError:
        raise AlabError(f"alab layers took longer than {SECONDS:g} s, and was stopped") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        told = err.decode(errors="replace").rpartition("error: ")[2].split("\n  ")
        raise AlabError(told[0].strip()[:500] or "alab layers failed", " ".join(told[1:])[:500])
    facts = json.loads(out)
    assert isinstance(facts, dict)
    return facts


def _stamp(id_: str, gguf: str | None, online: bool) -> list[tuple[str, int, int]]:
    """Names, times and sizes of the files that say what a model is.

    Raises:
        NotThereError: there is no such model here.
    """
    folder = _folder(id_)
    if gguf and (gguf.startswith("-") or "/" in gguf or "\0" in gguf):
        raise NotThereError("a GGUF file is named without its folder")
    if folder is not None:
        files = [folder / name for name in ([gguf] if gguf else ["config.json"])]
        there = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files if p.is_file()]
        if there:
            return there
    elif online and _HUB.fullmatch(id_):
        return []
    raise NotThereError(f"there is no model {id_[:120]!r} here", "Those there are: /models")


def _folder(id_: str) -> Path | None:
    """The folder of a model that is here."""
    if not id_ or id_.startswith("-") or "\0" in id_:
        return None
    if id_.startswith("package:"):
        name = id_.removeprefix("package:")
        return next((path for path in _packages() if path.name == name), None)
    try:
        folder = Path(id_).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError):
        return None
    return _cached().get(id_)


def models(ids: Iterable[str]) -> list[Model]:
    """The models in installed packages, in the cache of the hub, and in directories.

    Args:
        ids: models that scenarios or runs name, among them directories.
    """
    there = [one for path in _packages() for one in _of(f"package:{path.name}", "package", path)]
    there += [one for id_, path in _cached().items() for one in _of(id_, "cache", path)]
    for id_ in sorted({id_ for id_ in ids if not id_.startswith("package:")} - set(_cached())):
        if (folder := _folder(id_)) is not None:
            there += _of(id_, "directory", folder)
    return there


def _of(id_: str, place: str, folder: Path) -> list[Model]:
    """A model for each GGUF file of a folder, and one for other weights."""
    try:
        found = [
            Model(id_, path.name, place, folder, path.stat().st_size)
            for path in sorted(folder.glob("*.gguf"))
        ]
        if (folder / "config.json").is_file():
            weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
            size = sum(path.stat().st_size for path in weights)
            found.append(Model(id_, None, place, folder, size))
    except OSError:
        return []
    return found


def _packages() -> list[Path]:
    """Installed packages that bring weights along."""
    folders = {Path(path) for path in sys.path if path.endswith("-packages")}
    files = [file for folder in sorted(folders) for file in folder.glob("*/*.gguf")]
    return sorted({file.parent for file in files if file.parent.name.isidentifier()})


def _cached() -> dict[str, Path]:
    """The newest snapshot of each model in the hub's cache."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    there: dict[str, Path] = {}
    for folder in sorted(cache.glob("models--*")):
        snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
        snapshots = [p for p in snapshots if (p / "config.json").exists() or any(p.glob("*.gguf"))]
        if snapshots:
            id_ = folder.name.removeprefix("models--").replace("--", "/")
            there[id_] = max(snapshots, key=lambda path: path.stat().st_mtime)
    return there


async def _models(server: Server) -> list[Model]:
    runs = {str(row["model_id"]) for row in await server.rows("runs_brief")}

    def all_of_them() -> list[Model]:
        return models(runs | _named(server))

    return await asyncio.to_thread(all_of_them)


def _named(server: Server) -> set[str]:
    """Models that scenario files name."""
    ids = set()
    for name in drafts.names(server):
        try:
            data = drafts.load(drafts.read(server, name), name)
            ids.add(data["model"]["id"])
        except (AlabError, OSError, UnicodeError, TypeError, KeyError):
            continue  # one that is being written says nothing yet
    return {id_ for id_ in ids if isinstance(id_, str)}


ROUTES: list[tuple[str, Handler, list[str]]] = [
    ("/models", page, ["GET"]),
    ("/api/models", listing, ["GET"]),
    ("/api/models/layers", layers, ["GET"]),
]
