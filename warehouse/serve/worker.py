"""A process that reads a copy of the catalog and the lake, and has no right to write.

`python -m warehouse.serve.worker SPILL` reads requests from standard input and answers on standard
output: a line of JSON each, `{"do": …}` with arguments and `{"size": …}` or `{"error": …}`, the
answer's bytes after it. A query that takes too long ends with the process; nothing is lost with it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import duckdb

from warehouse.catalog.catalog import Catalog
from warehouse.errors import KINDS, DefectError, explain, first_line
from warehouse.lake.lake import Lake
from warehouse.query import landlock
from warehouse.serve import dataset_tasks, tasks, tensor_tasks
from warehouse.serve.tasks import Desk

#: What may be asked, by the name that a request says.
TASKS = tasks.TASKS | tensor_tasks.TASKS | dataset_tasks.TASKS
#: Memory that DuckDB takes before it spills; threads of one query.
MEMORY, THREADS = "1GB", 2
#: Bytes of memory that a worker may have, whoever in it asks: then it says so, or ends.
MOST = 3 << 30


class Worker:
    """The catalog's copy, open, and what is asked of it.

    Args:
        spill: the only folder that may be written.
    """

    def __init__(self, spill: Path):
        self._spill = spill
        # Before DuckDB starts its threads: they are bound as the one that starts them.
        self._is_bound = landlock.restrict([spill])
        self._db: duckdb.DuckDBPyConnection | None = None

    def open(self, warehouse: str, copy: str, locked: bool) -> bytes:
        """Open a copy of a warehouse's catalog.

        Args:
            warehouse: the warehouse's directory.
            copy: the copy.
            locked: whether settings stay as they are, and files outside the lake out of reach: for
                queries that are not ours.

        Returns:
            Whether the kernel keeps this process from writing, as JSON.
        """
        if self._db is not None:
            self._db.close()
        self._lake = Lake(warehouse)
        self._db = duckdb.connect(copy, read_only=True)
        self._db.execute("SET GLOBAL TimeZone = 'UTC'")
        self._db.execute("SET temp_directory = ?", [str(self._spill)])
        self._db.execute("SET memory_limit = ?", [MEMORY])
        self._db.execute("SET threads = ?", [THREADS])
        if locked:
            self._db.execute("SET allowed_directories = ?", [[f"{self._lake.root}/"]])
            self._db.execute("SET enable_external_access = false")
            self._db.execute("SET lock_configuration = true")
        return json.dumps(self._is_bound).encode()

    def answer(self, request: dict[str, Any]) -> bytes:
        """Do what a request asks for.

        Raises:
            AlabError: it cannot be done.
        """
        name = request.pop("do")
        if name == "open":
            return self.open(**request)
        assert self._db is not None  # the first request opens it
        # What a query leaves behind, such as temporary tables, goes with its connection.
        with self._db.cursor() as own:
            Catalog(self._lake).point(own)
            return TASKS[name](Desk(self._lake, own), **request)


def serve(source: BinaryIO, target: BinaryIO, answer: Callable[[dict[str, Any]], bytes]) -> None:
    """Answer requests until there are no more."""
    for line in source:
        body = b""
        try:
            body = answer(json.loads(line))
            head: dict[str, Any] = {"size": len(body)}
        except Exception as error:
            told = explain(error) or DefectError(f"{type(error).__name__}: {first_line(error)}")
            kind = next(name for name, kind in KINDS.items() if isinstance(told, kind))
            head = {"error": told.message, "hint": told.hint, "kind": kind}
        target.write(json.dumps(head).encode() + b"\n" + body)
        target.flush()


def main() -> None:
    """Serve over the standard streams."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the server
    with suppress(ImportError, ValueError, OSError):  # a system without, or with a lower one
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    with suppress(BrokenPipeError), answers:  # nobody waits any more: the server was killed
        serve(sys.stdin.buffer, answers, Worker(Path(sys.argv[1])).answer)


if __name__ == "__main__":
    main()
