"""Asks a server as any program could, and notes what its warehouse's files were like."""

import http.client
import json
from hashlib import sha256
from pathlib import Path


def state(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


class Asker:
    """Asks the server as any program could, with whatever headers."""

    def __init__(self, service):
        address, _, self.token = service.address.partition("/?token=")
        self.host = address.removeprefix("http://")
        self.cookie = self.get(f"/?token={self.token}").getheader("set-cookie").partition(";")[0]

    def send(self, method: str, path: str, body=None, **headers):
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        lines = {
            "Host": self.host,
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        if data:
            lines.setdefault("Content-Length", str(len(data)))
        for name, text in lines.items():
            if text is not None:
                connection.putheader(name, text)
        connection.endheaders(data)
        answer = connection.getresponse()
        answer.body = answer.read()
        connection.close()
        return answer

    def get(self, path: str, **headers):
        return self.send("GET", path, **headers)

    def post(self, path: str, body, **headers):
        own = {
            "Origin": f"http://{self.host}",
            "Content_Type": "application/json",
            "Cookie": self.cookie,
        }
        return self.send("POST", path, body, **own | headers)
