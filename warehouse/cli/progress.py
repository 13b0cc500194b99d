"""Tells on standard error how a capture goes: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

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
