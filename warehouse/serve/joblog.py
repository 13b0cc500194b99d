"""What a capture says while it runs: the lines of `alab capture --progress jsonl` in a file."""

import json
from pathlib import Path
from typing import Any

#: Characters of a line that are shown, at the most.
LENGTH = 20_000
#: Bytes that are read at once.
_BYTES = 1 << 20


class JobLog:
    """Follows the log of a capture.

    Args:
        path: the file; there may be none yet.

    Attributes:
        pid: the capture's process; None until it says so.
        stage: the newest stage: what, done, total, and where known per_second and seconds_left.
        begun: ids of the runs that were begun.
        runs: ids of those that are kept.
        error: what went wrong; empty where nothing did.
        exit_code: how it ended; None until then, and where it was killed.
    """

    def __init__(self, path: Path):
        self._path, self._offset = path, 0
        self._first: dict[str, Any] = {}
        self.pid: int | None = None
        self.stage: dict[str, Any] | None = None
        self.begun: list[str] = []
        self.runs: list[str] = []
        self.error = ""
        self.exit_code: int | None = None

    def read(self) -> tuple[list[dict[str, Any]], int]:
        """The events since the last call, and how many bytes of the file they end at.

        A line that is no event, as libraries print them, is the event `log`.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                lines = file.read(_BYTES)
        except FileNotFoundError:
            lines = b""
        # What is not whole yet waits, but for a line that never ends.
        whole = len(lines) if len(lines) == _BYTES else 0
        lines = lines[: lines.rfind(b"\n") + 1 or whole]
        self._offset += len(lines)
        texts = lines.decode(errors="replace").split("\n")[: lines.count(b"\n") or 1]
        return [self._take(_event(text)) for text in texts if text.strip()], self._offset

    def read_all(self) -> "JobLog":
        """Read on to the end of what is there."""
        while self.read()[0]:
            pass
        return self

    def _take(self, event: dict[str, Any]) -> dict[str, Any]:
        match event:
            case {"event": "start", "pid": int(pid)}:
                self.pid = pid
            case {"event": "stage", "done": int(), "total": int(), "seconds": int() | float()}:
                event |= self._pace(event)
                self.stage = event
            case {"event": "begun", "run": str(run)}:
                self.begun.append(run)
            case {"event": "run", "run": str(run)}:
                self.runs.append(run)
            case {"event": "error", "message": str(message), "hint": str(hint)}:
                self.error = " ".join(filter(None, [message, hint]))
            case {"event": "interrupted", "text": str(text)}:
                self.error = f"interrupted; {text}"
            case {"event": "end", "exit_code": int(code)}:
                self.exit_code = code
        return event

    def _pace(self, event: dict[str, Any]) -> dict[str, float]:
        """How fast it goes since the first stage that counted the same, and how long it will."""
        first = self._first
        if first.get("total") != event["total"] or event["done"] < first["done"]:
            self._first = first = event
        done, seconds = event["done"] - first["done"], event["seconds"] - first["seconds"]
        if done <= 0 or seconds <= 0:
            return {}
        left = (event["total"] - event["done"]) * seconds / done
        return {"per_second": done / seconds, "seconds_left": left}


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    return {"event": "log", "text": line[:LENGTH]}
