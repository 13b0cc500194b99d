"""Starts the server on a port of this machine, and says where."""

import errno
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import uvicorn

from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.serve.app import make_app
from warehouse.serve.guard import Guard
from warehouse.serve.server import Allowed, Server


class Service:
    """A server that is about to run.

    Attributes:
        address: where a browser finds it, with the token of this start.

    Args:
        lake: the lake that it serves.
        host: the address of this machine to listen at.
        port: the port; 0 takes a free one.
        allowed: what captures from the browser may do.

    Raises:
        AlabError: there is no warehouse, it is at a URL, or the port is in use.
    """

    def __init__(
        self, lake: Lake, host: str = "127.0.0.1", port: int = 0, allowed: Allowed | None = None
    ):
        if lake.remote:
            raise AlabError(
                f"alab serve looks at warehouses on this machine, and {lake.warehouse} is none",
                "alab sql and alab report read it where it is.",
            )
        if not lake.root.is_dir():
            raise AlabError(
                f"there is no warehouse at {lake.warehouse}",
                "Capture a run first (alab capture SCENARIO), "
                "or name a warehouse with --warehouse or $ALAB_WAREHOUSE.",
            )
        self._socket = listen(host, port)
        port = self._socket.getsockname()[1]
        server = Server(lake, allowed)
        self._guard = Guard(make_app(server), server.pages, host_names(host, port), port)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{port}/?token={self._guard.token}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._guard,
                lifespan="on",
                log_level="error",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=2,
            )
        )

    def __repr__(self) -> str:
        return f"alab serve at {self.address}"

    def _repr_html_(self) -> str:
        """A link, for notebooks."""
        return f'<a href="{self.address}" target="_blank" rel="noopener">the warehouse</a>'

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, or `stop`."""
        self._server.run([self._socket])

    def start(self) -> None:
        """Serve on a thread of its own."""
        thread = threading.Thread(target=self.run, name="alab serve", daemon=True)
        thread.start()
        while thread.is_alive() and not self._server.started:
            thread.join(0.02)

    def stop(self) -> None:
        """Stop, soon."""
        self._server.should_exit = True


def serve(
    lake: Lake,
    host: str,
    port: int,
    tell: Callable[[str], None],
    *,
    open_it: bool = False,
    **allowed: Any,
) -> None:
    """Serve a warehouse until it is stopped, and tell its address first; `allowed`: `Allowed`."""
    service = Service(lake, host, port, Allowed(**allowed))
    with suppress(KeyboardInterrupt):  # the usual end
        tell(service.address)
        if not is_loopback(host):
            tell(
                "Whoever reaches this machine and has this address may read the warehouse, start "
                "and delete runs; what is sent is not encrypted."
            )
        if open_it:
            webbrowser.open(service.address)
        service.run()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        AlabError: another program has the port, or the host is none of this machine.
    """
    if host in ("", "0.0.0.0", "::", "0"):
        hint = "Name the address of this machine that browsers will use."
        raise AlabError(f"--host {host or repr(host)} means every address at once", hint, 2)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, or asyncio leaves small answers waiting for 40 ms (TCP_NODELAY).
    own = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((host, port))
        own.listen(128)
    except (OSError, OverflowError) as error:
        own.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            hint = "Take another: --port PORT, or any that is free: --port 0"
            raise AlabError(f"the port {port} is in use", hint) from error
        raise AlabError(f"cannot listen at {host}, port {port}: {error}") from error
    return own


def host_names(host: str, port: int) -> list[str]:
    """What a browser may call this server; it leaves out the port of HTTP.

    >>> host_names("192.0.2.7", 8484), host_names("192.0.2.7", 80)
    (['192.0.2.7:8484'], ['192.0.2.7'])
    """
    names = ["localhost", "127.0.0.1", "[::1]"] if is_loopback(host) else []
    names.append(f"[{host}]" if ":" in host else host)
    return names if port == 80 else [f"{name}:{port}" for name in names]


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
