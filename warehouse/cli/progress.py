"""Tells on standard error how a capture goes: a bar on a terminal, else a line now and then.

For programs each line is a JSON object: `Lines`.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from warehouse.errors import explain

#: Seconds after which a stage that goes on says how far it is, where there is no terminal.
QUIET = 10.0
_WIDTH = 28


class Bar:
    """Called with (what is happening, how many are done, of how many); of 0 it is a message."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        # What stands on the terminal's line; elsewhere, what was told last, and when.
        self._shown = ""
        self._told = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        if not self._terminal:
            self._line(what, done, total)
        elif total:
            filled = _WIDTH * done // total
            line = f"{'█' * filled}{'░' * (_WIDTH - filled)} {done}/{total}  {what}"
            if line != self._shown:
                click.echo(f"\r\033[K{line}", err=True, nl=False)
                self._shown = line
        else:
            self.message(what)

    def message(self, what: str) -> None:
        """Show a message of one line or more."""
        self.clear()
        click.echo(what, err=True)

    def watch(self, event: str, **about: Any) -> None:
        """Show nothing: what programs follow is too much for people."""

    def clear(self) -> None:
        """Make room for a line of output."""
        if self._terminal and self._shown:
            click.echo("\r\033[K", err=True, nl=False)
            self._shown = ""

    def _line(self, what: str, done: int, total: int) -> None:
        """A line for each stage, and for one that takes long how far it is."""
        now = time.monotonic()
        if what != self._shown or not total:
            click.echo(what, err=True)
        elif now - self._told >= QUIET:
            click.echo(f"{what}: {done} of {total}", err=True)
        else:
            return
        self._shown, self._told = what, now


@contextmanager
def bar() -> Iterator[Bar]:
    """A bar that is gone afterwards."""
    shown = Bar()
    try:
        yield shown
    finally:
        shown.clear()


class Lines:
    """As `Bar`, for programs: a JSON object a line, whose `event` says what the others are about.

    `alab capture --help` names the events.
    """

    def __init__(self) -> None:
        self._shown: tuple[str, int, int] | None = None
        self._began = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Tell how far it is, once each."""
        if not total:
            self.message(what)
        elif self._shown != (what, done, total):
            self._shown = (what, done, total)
            self.watch("stage", what=what, done=done, total=total)

    def message(self, what: str) -> None:
        """Tell something of one line or more."""
        self.watch("message", text=what)

    def watch(self, event: str, **about: Any) -> None:
        """Tell anything else."""
        # In one write: what libraries print comes between lines, not into them.
        seconds = round(time.monotonic() - self._began, 3)
        sys.stderr.write(json.dumps({"event": event, **about, "seconds": seconds}) + "\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Do nothing: lines are not taken back."""


@contextmanager
def lines() -> Iterator[Lines]:
    """Lines that say how it ended, too: errors, interrupts and the exit status are events."""
    told = Lines()
    # Who starts a program in the background may have it ignore the signal that stops it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told.watch("start", pid=os.getpid())
    status = 1
    try:
        yield told
        status = 0
    except KeyboardInterrupt as error:
        kept = getattr(error, "__notes__", ["nothing unfinished was kept"])
        told.watch("interrupted", text=kept[0])
        status = 130
    except Exception as error:
        if (known := explain(error)) is None:
            raise
        told.watch("error", message=known.message, hint=known.hint)
        status = known.exit_code
    finally:
        told.watch("end", exit_code=status)
    if status:
        raise click.exceptions.Exit(status)
