"""Commands that alab advises to type: as they work in the shell that reads the advice, and the directory it is in."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def alab(warehouse: Path | None = None) -> str:
    """How to call `alab` here: its name where the shell finds this one under it, else its path.

    Args:
        warehouse: the warehouse to name with `-w`, unless it is the one that is taken without.
    """
    script = Path(sys.argv[0])
    script = script if script.name == "alab" else Path(sys.executable).with_name("alab")
    there = shutil.which("alab")
    if there and _same(Path(there), script):
        called = "alab"
    elif script.is_file():
        called = program(script)
    else:
        called = f"{program(Path(sys.executable))} -m warehouse.cli"
    if warehouse is None or warehouse == Path(os.environ.get("ALAB_WAREHOUSE") or "lab").absolute():
        return called
    return f"{called} -w {quoted(warehouse)}"


def quoted(path: Path) -> str:
    """A path for a shell, from the directory we are in where it is below."""
    shown = short(path)
    return shlex.quote(f"./{shown}" if shown.startswith("-") else shown)


def short(path: Path) -> str:
    """A path as one reads it: from the directory we are in where it is below."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def program(path: Path) -> str:
    """A path for a shell to run; with a slash, without which it is looked for elsewhere."""
    shown = short(path)
    return shlex.quote(shown if "/" in shown else f"./{shown}")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
