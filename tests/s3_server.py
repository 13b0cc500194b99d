"""An S3 server on loopback, which counts requests and can refuse them.

One request at a time: moto looks whether an object is there and then writes it, and conditional writes have to do both
at once.
"""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from urllib.parse import parse_qs

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "the-key-id-of-a-test",
    "AWS_SECRET_ACCESS_KEY": "the-secret-key-of-a-test",
    "AWS_SESSION_TOKEN": "the-session-token-of-a-test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Server:
    """The server.

    Attributes:
        url: its address.
        asked: (method, key) of each request, or `LIST` for a listing.
        refuse: given the method and key of a request, the code of an error to answer with, or None.
    """

    def __init__(self) -> None:
        # Here, since every test imports this file.
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: object) -> None:
                pass

        self.asked: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], str | None] = lambda method, key: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ, start_response):
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"].partition("/")[2]
        query = parse_qs(environ["QUERY_STRING"])
        if method == "GET" and "list-type" in query:
            method, key = "LIST", query.get("prefix", [""])[0]
        self.asked.append((method, key))
        if code := self.refuse(method, key):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = f"<Error><Code>{code}</Code><Message>{code} of a test</Message></Error>".encode()
            status = {"ExpiredToken": "400 Bad Request"}.get(code, "403 Forbidden")
            start_response(
                status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            )
            return [body]
        with self._lock:
            return [b"".join(self._app(environ, start_response))]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def counting(self) -> Iterator[Counter]:
        """Requests of each method while it is open."""
        counts: Counter = Counter()
        start = len(self.asked)
        yield counts
        counts.update(method for method, _ in self.asked[start:])

    def bucket(self, name: str) -> str:
        """A new bucket; gives its URL."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    @cached_property
    def client(self):
        import boto3

        return boto3.client("s3", endpoint_url=self.url)

    def keys(self, bucket: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    """The server, which boto and s3fs find in the environment."""
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.url}).items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture
def url(s3, tmp_path, monkeypatch, request) -> str:
    """URL of a warehouse in a new bucket, with a cache of its own, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3.refuse = lambda method, key: None
    return s3.bucket(f"test-{uuid.uuid4().hex[:12]}") + "/lab"
