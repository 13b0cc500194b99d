"""Tells on standard error how a capture is going: a bar on a terminal, one line per stage elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A function to be told (what is happening, passes done, passes in all); a message where there are none."""
    terminal = sys.stderr.isatty()
    shown = ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal shown
        if not terminal:
            if what != shown:
                click.echo(what, err=True)
        elif total:
            filled = 28 * done // total
            line = f"\r\033[K{'█' * filled}{'░' * (28 - filled)} {done}/{total}  {what}"
            click.echo(line, err=True, nl=False)
        else:
            click.echo(f"\r\033[K{what}", err=True)
        shown = what

    try:
        yield report
    finally:
        if terminal and shown:
            click.echo("\r\033[K", err=True, nl=False)
