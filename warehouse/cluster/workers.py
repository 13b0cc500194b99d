"""A function for each of many items: here one after the other, or as tasks of Ray."""

import platform
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from warehouse.catalog import catalog
from warehouse.errors import AlabError, explain, first_line
from warehouse.extras import needing

#: Calls a function with each item, and gives each item's place with what it gave, as it comes.
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]
#: The address that means: start a Ray here, and stop it.
LOCAL = "local"
#: How often a task is begun anew whose worker died.
RETRIES = 5
#: Seconds in which a Ray has to answer.
PATIENCE = 10.0


def alone(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Call a function with each item in this process; an `Each`."""
    return enumerate(map(function, items))


def in_order(results: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """What an `Each` gives, in the order of the items.

    >>> list(in_order(iter([(1, "b"), (0, "a"), (2, "c")])))
    ['a', 'b', 'c']
    """
    waiting: dict[int, Any] = {}
    due = 0
    for place, result in results:
        waiting[place] = result
        while due in waiting:
            yield waiting.pop(due)
            due += 1


@contextmanager
def workers(address: str | None, *, count: int | None = None, gpus: float = 0) -> Iterator[Each]:
    """What calls a function for each of many items.

    Args:
        address: of a Ray, `auto` for the one of this machine; `local` starts one and stops it; None
            does without. A Ray that this process uses already is used. What is printed meanwhile
            goes to standard error.
        count: workers of a Ray that is started; None is one for each processor.
        gpus: GPUs that each worker has for itself.

    Raises:
        AlabError: there is no such Ray, or it is of another version or has no such GPUs.
    """
    if address is None:
        yield alone
        return
    with needing("ray", "--ray"):
        import ray
    own = not ray.is_initialized()
    with redirect_stdout(sys.stderr):  # Ray prints what becomes of its workers
        if own:
            _connect(ray, address, count)
        try:
            if gpus > ray.cluster_resources().get("GPU", 0):
                raise AlabError(f"Ray has no {gpus:g} GPUs for a worker", "Ask for fewer, or none.")
            yield partial(_tasks, ray, gpus)
        finally:
            if own:
                ray.shutdown()


def _connect(ray: Any, address: str, count: int | None) -> None:
    if address != LOCAL and count is not None:
        raise AlabError(f"the Ray at {address} has its workers", "Leave out --workers.", 2)
    if address not in (LOCAL, "auto"):
        _reach(address)
    options = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, num_cpus=count, logging_level="ERROR", log_to_driver=False, **options)
    except Exception as error:  # of many kinds, by the reason
        if "ersion mismatch" in str(error):
            lines = [line.strip() for line in str(error).splitlines()]
            raise AlabError(
                f"the Ray at {address} is of another version: {', '.join(lines[1:])}",
                "Install the same Ray and Python here and there.",
            ) from error
        raise AlabError(
            f"cannot use the Ray at {address}: {first_line(error)}",
            "Start one there (ray start --head), or leave out the address.",
        ) from error


def _reach(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself tries for minutes, and ends us."""
    at = urlsplit(address if "://" in address else f"//{address}")
    try:
        socket.create_connection((at.hostname or "", at.port or 10001), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise AlabError(
            f"there is no Ray at {address}: {first_line(error)}",
            "It is HOST:PORT as `ray start` says it, auto, or nothing, which starts one here.",
        ) from error


def _tasks(
    ray: Any, gpus: float, function: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[tuple[int, Any]]:
    """Call a function with each item as a task of Ray, spread over the machines; an `Each`."""
    options = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    task = ray.remote(_call).options(max_retries=RETRIES, **options)
    waiting = {task.remote(function, item): place for place, item in enumerate(items)}
    try:
        while waiting:
            for ref in ray.wait(list(waiting))[0]:
                yield waiting.pop(ref), _result(ray, ref)
    finally:
        for ref in waiting:
            ray.cancel(ref)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    """What a task does; its errors name the machine."""
    catalog.THREADS = 1  # as torch, which Ray tells so
    try:
        return function(item)
    except AlabError as error:
        error.message = f"on {platform.node()}: {error.message}"
        raise


def _result(ray: Any, ref: Any) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if missing := re.search(r"No module named '([\w.]+)'", str(error.cause)):
            raise AlabError(
                f"a worker of Ray has no module {missing[1]}",
                "Install the same alab, with what it needs, on every machine.",
            ) from error
        raise explain(error.cause) or error.cause from error
    except ray.exceptions.RayError as error:
        raise AlabError(
            f"a task of Ray was lost, as were {RETRIES} more tries: {first_line(error)}",
            "What was finished is kept: give the command once more.",
        ) from error
