"""Who may ask: this browser, from these pages, and nobody else on the machine or the network.

A page of another site can make a browser send requests to a local server. Such a request names
another host (DNS rebinding), or carries the origin of its page, or lacks the cookie, which is never
sent along from elsewhere. Each is refused before anything else looks at it.
"""

import hmac
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warehouse.serve.pages import Pages

#: Bytes of a request's body, at the most.
BODY = 1 << 20
#: Scripts, styles and data come from here alone. Vega sets styles on what it draws.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_READING = ("GET", "HEAD")


class Guard:
    """Lets requests through to `app` that come from this server's own pages.

    Args:
        app: what answers them.
        pages: what the page for strangers is made with.
        hosts: what browsers may name this server, the port included.
        port: the port.

    Attributes:
        token: the secret of this start: what the printed address ends with, and the cookie holds.
    """

    def __init__(self, app: ASGIApp, pages: Pages, hosts: Iterable[str], port: int):
        self.token = secrets.token_urlsafe(32)
        self._app, self._pages = app, pages
        self._hosts = frozenset(hosts)
        # Cookies do not tell ports apart: two servers would take each other's away.
        self._cookie = f"alab_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            answer = self._refusal(Request(scope)) or self._app
            await answer(scope, _limited(receive), _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        """What is answered in place of the page; None where the page may be."""
        headers = request.headers
        if headers.getlist("host") not in [[host] for host in self._hosts]:
            return PlainTextResponse("this server has another name", 421)
        if request.method not in _READING and (refusal := self._foreign(headers)):
            return refusal
        if self._is_known(headers):
            return None
        query = parse_qsl(request.url.query, keep_blank_values=True)
        if request.method == "GET" and self._is_token(dict(query).get("token", "")):
            return self._welcome(request, [pair for pair in query if pair[0] != "token"])
        if "text/html" in headers.get("accept", "") and request.method in _READING:
            return self._pages.stranger(request.url.path, request.url.query)
        return JSONResponse({"error": "open the address that alab serve printed"}, 403)

    def _foreign(self, headers: Headers) -> Response | None:
        """Refuses what would change something, unless a page of ours asks for it, in JSON."""
        origin = headers.get("origin", "")
        if origin.removeprefix("http://") != headers["host"] or "://" not in origin:
            return JSONResponse({"error": "another site asks"}, 403)
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return JSONResponse({"error": "another site asks"}, 403)
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return JSONResponse({"error": "a body has to be application/json"}, 415)
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > BODY:
            return JSONResponse({"error": "the body is too large"}, 413)
        return None

    def _is_known(self, headers: Headers) -> bool:
        try:
            jar = SimpleCookie("; ".join(headers.getlist("cookie")))
        except CookieError:
            return False
        return self._cookie in jar and self._is_token(jar[self._cookie].value)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())

    def _welcome(self, request: Request, query: list[tuple[str, str]]) -> Response:
        """Exchange the token of the address for a cookie: it stays out of the history then."""
        path = "/" + request.url.path.lstrip("/")  # `//elsewhere` would be another site
        answer = RedirectResponse(path + (f"?{urlencode(query)}" if query else ""), 303)
        answer.set_cookie(self._cookie, self.token, httponly=True, samesite="strict")
        return answer


def _limited(receive: Receive) -> Receive:
    """The body of a request as far as it may go; what says no length is cut off there."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= BODY else {"type": "http.disconnect"}

    return limited


def _with_headers(send: Send) -> Send:
    """Adds to every answer what tells the browser what it may do with it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
