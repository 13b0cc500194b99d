"""Captures that wait, run and have ended: a queue on disk, one process at a time.

    <warehouse>/jobs/turn            whoever has the lock on it is the capture that runs
    <warehouse>/jobs/<id>/request.json   what is asked for; written last, then the job is there
                         scenario.yaml   the scenario as it was when it was launched
                         started         there once its process was started
                         cancelled       there once somebody asked for its end
                         log.jsonl       what the process says: `joblog`
                         end.json        how it ended; nothing changes after it

The lock goes to the process of the capture: it is held exactly as long as that lives, whatever
becomes of the server. So several servers, or one that was started anew, see the same queue.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from warehouse.errors import AlabError, ConflictError, NotThereError
from warehouse.lake.lake import Lake
from warehouse.serve.joblog import JobLog

#: Seconds that a capture has to end by itself when it is cancelled.
PATIENCE = 10.0
#: Jobs that have ended and are remembered.
KEPT = 200
_ID = re.compile(r"\d{8}T\d{12}-[0-9a-f]{4}")


@dataclass(frozen=True)
class Job:
    """A capture in the queue.

    Attributes:
        id: its id; later ones are greater.
        name: of the scenario.
        created: when it was launched, UTC.
        state: `queued`, `running`, `done`, `failed` or `cancelled`.
        is_cancelled: whether its end was asked for.
        resume: whether it goes on with a dataset's capture.
        end: how it ended: `exit_code` (null where it was killed), `runs`, `begun`, `error`,
            `finished`; empty before.
    """

    id: str
    name: str
    created: str
    state: str
    is_cancelled: bool
    resume: bool
    end: dict[str, Any]

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("queued", "running")


class Jobs:
    """The captures of a warehouse.

    Args:
        lake: the lake that they fill.
    """

    def __init__(self, lake: Lake):
        self._lake = lake
        self.folder = lake.home / "jobs"
        self._ended: dict[str, Job] = {}
        self._logs: dict[str, JobLog] = {}
        self._children: list[subprocess.Popen] = []
        self._reading = threading.Lock()

    def all(self) -> list[Job]:
        """Every job, the oldest first."""
        ids = sorted(filter(_ID.fullmatch, _names(self.folder)))
        jobs = [self._ended.get(id_) or self._read(id_) for id_ in ids]
        there = [job for job in jobs if job is not None]
        self._ended = {job.id: job for job in there if not job.is_active}
        return there

    def get(self, id_: str) -> Job:
        """A job.

        Raises:
            NotThereError: there is none of this id.
        """
        job = self._read(id_) if _ID.fullmatch(id_) else None
        if job is None:
            raise NotThereError(f"there is no job {id_[:60]}", "Those there are: /jobs")
        return job

    def _read(self, id_: str) -> Job | None:
        folder = self.folder / id_
        request = _load(folder / "request.json")
        if request is None or not {"name", "created", "resume"} <= set(request):
            return None
        end = _load(folder / "end.json") or {}
        started = (folder / "started").exists()
        state = end.get("state") or ("running" if started else "queued")
        cancelled = (folder / "cancelled").exists()
        return Job(
            id_, request["name"], request["created"], state, cancelled, request["resume"], end
        )

    def path(self, job: Job, name: str) -> Path:
        """A file of a job."""
        return self.folder / job.id / name

    def log(self, job: Job) -> JobLog:
        """What a job said up to now."""
        with self._reading:
            log = self._logs.setdefault(job.id, JobLog(self.path(job, "log.jsonl")))
            return log.read_all()

    def kept(self, job: Job) -> list[str]:
        """Captures of datasets that a job that has ended left to be gone on with."""
        begun = set(job.end.get("begun", ())) if not job.is_active else set()
        return sorted(begun & set(self._lake.unfinished())) if begun else []

    def _left(self, job: Job) -> list[str]:
        """The same, where nobody goes on with it already.

        Raises:
            ConflictError: there is nothing, or another job goes on with captures of this name.
        """
        if not (kept := self.kept(job)):
            raise ConflictError(f"the capture of {job.name} left nothing to go on with")
        for other in self.all():
            if other.is_active and other.resume and other.name == job.name:
                raise ConflictError(
                    f"a capture that goes on with {job.name} waits or runs already",
                    f"See /jobs/{other.id}.",
                )
        return kept

    def add(self, text: str, name: str, *, online: bool = False) -> str:
        """Put a capture at the end of the queue.

        Args:
            text: its scenario, which was checked; a dataset's source in it does not depend on where
                the text lies.
            name: the scenario's name.
            online: whether it may use the network.

        Returns:
            The id of the job.
        """
        return self._add(text, name, resume=False, online=online)

    def go_on(self, job: Job, text: str, *, online: bool = False) -> str:
        """Put a capture at the end of the queue that goes on with what a job left; as `add`.

        Raises:
            ConflictError: it left nothing, a later one of its name did too, or it is gone on with
                already.
        """
        with self._transaction():
            kept, there = self._left(job), self._lake.unfinished()
            names = {k: run["scenario"]["name"] for k, run in there.items() if "shards" not in run}
            same = [run_id for run_id, name in names.items() if name == job.name]
            newest = max(same, key=lambda run_id: there[run_id]["began"])
            if newest not in kept:
                raise ConflictError(
                    f"{newest} was stopped later, and would be gone on with",
                    "Go on with that one, or discard it, first.",
                )
            return self._add(text, job.name, resume=True, online=online)

    def _add(self, text: str, name: str, *, resume: bool, online: bool) -> str:
        now = datetime.now(UTC)
        id_ = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(2)}"
        draft = self.folder / f".{id_}"
        draft.mkdir(parents=True)
        (draft / "scenario.yaml").write_text(text, encoding="utf-8")
        request = {"name": name, "created": _time(now), "resume": resume, "online": online}
        (draft / "request.json").write_text(json.dumps(request), encoding="utf-8")
        draft.rename(self.folder / id_)
        return id_

    def cancel(self, id_: str) -> None:
        """Ask for the end of a job that waits or runs.

        Raises:
            ConflictError: it has ended.
        """
        with self._transaction():
            job = self.get(id_)
            if not job.is_active:
                raise ConflictError(f"the capture of {job.name} has ended")
            if job.is_cancelled:
                return
            self.path(job, "cancelled").touch()
            if job.state == "queued":
                self._end(job, "cancelled", JobLog(Path(os.devnull)))
            else:
                self._signal(job, signal.SIGINT)

    def discard(self, id_: str) -> list[str]:
        """Delete what a job that was stopped left to be gone on with.

        Returns:
            The runs that are gone.

        Raises:
            ConflictError: there is nothing, or another process is at it.
        """
        with self._transaction():
            kept = self._left(self.get(id_))
            for run_id in kept:
                self._lake.resume(run_id).discard()
        return kept

    def step(self) -> None:
        """Conclude what has ended, end what was cancelled, and start the next."""
        self._children = [child for child in self._children if child.poll() is None]
        if not any(job.is_active for job in self.all()):
            return
        with suppress(Timeout), self._transaction(0):
            turn = _take(self.folder / "turn")
            if turn is None:
                self._press()
                return
            try:
                self._turn(turn)
            finally:
                os.close(turn)

    def _turn(self, turn: int) -> None:
        """What is to be done while no capture runs."""
        jobs = self.all()
        for job in jobs:
            if job.state == "running":
                self._conclude(job)
        waiting = [job for job in jobs if job.state == "queued"]
        if waiting:
            self._start(waiting[0], turn)
        for job in [job for job in jobs if not job.is_active][:-KEPT]:
            if not self.kept(job):
                shutil.rmtree(self.folder / job.id, ignore_errors=True)

    def _start(self, job: Job, turn: int) -> None:
        """Start the process of a job, which takes the lock over."""
        request = _load(self.path(job, "request.json")) or {}
        command = [sys.executable, "-P", "-m", "warehouse.cli", "-w", str(self._lake.warehouse)]
        command += ["capture", "--progress", "jsonl", *["--resume"][: job.resume]]
        network = {} if request.get("online") else {"HF_HUB_OFFLINE": "1"}
        _write(self.path(job, "started"), {})
        with self.path(job, "log.jsonl").open("wb") as log:
            child = subprocess.Popen(
                [*command, "--", str(self.path(job, "scenario.yaml"))],
                env=os.environ | network,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ids of runs are events too
                stderr=log,
                start_new_session=True,  # what ends the server does not end it
                pass_fds=[turn],
            )
        self._children.append(child)
        _write(self.path(job, "started"), {"pid": child.pid})

    def _conclude(self, job: Job) -> None:
        """Note how a job ended whose process is no more."""
        log = JobLog(self.path(job, "log.jsonl")).read_all()
        state = "done" if log.exit_code == 0 else "cancelled" if job.is_cancelled else "failed"
        if log.exit_code is None and state == "failed":
            log.error = log.error or "the process was ended from outside"
        if log.exit_code != 0 and self._lake.root.is_dir():
            self._lake.sweep()  # what a killed one left
        self._end(job, state, log)
        self._logs.pop(job.id, None)

    def _end(self, job: Job, state: str, log: JobLog) -> None:
        _write(
            self.path(job, "end.json"),
            {
                "state": state,
                "exit_code": log.exit_code,
                "error": log.error,
                "begun": log.begun,
                "runs": log.runs,
                "finished": _time(datetime.now(UTC)),
            },
        )

    def _press(self) -> None:
        """Kill what was cancelled and did not end by itself."""
        for job in self.all():
            mark = self.path(job, "cancelled")
            waited = job.state == "running" and job.is_cancelled
            if waited and time.time() - mark.stat().st_mtime > PATIENCE:
                self._signal(job, signal.SIGKILL)

    def _signal(self, job: Job, number: signal.Signals) -> None:
        """Send a signal to the process of a job while it holds the lock, and so lives."""
        # Where its server died as it started it, it has said its number itself.
        pid = (_load(self.path(job, "started")) or {}).get("pid") or self.log(job).pid
        if pid is not None and not self._is_free():
            with suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)

    def _is_free(self) -> bool:
        turn = _take(self.folder / "turn")
        if turn is not None:
            os.close(turn)
        return turn is not None

    @contextmanager
    def _transaction(self, wait: float = 30.0) -> Iterator[None]:
        """Keep other servers from changing the queue meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock", timeout=wait):
            yield


def _take(path: Path) -> int | None:
    """The lock on a file, as what keeps it: it goes over to processes that are given that."""
    try:
        import fcntl
    except ImportError as error:
        hint = "Capture on the command line: alab capture SCENARIO"
        raise AlabError("this system has no locks that go over to a process", hint) from error
    turn = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(turn)
        return None
    return turn


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  paths of hundreds cost more than names
    except FileNotFoundError:
        return []


def _load(path: Path) -> dict[str, Any] | None:
    """A file's object; None where it is not there or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write(path: Path, value: dict[str, Any]) -> None:
    """A file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)


def _time(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="seconds")
