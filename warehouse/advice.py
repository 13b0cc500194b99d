"""Commands that alab advises to type, as they work in the reader's shell and directory."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def alab(warehouse: Path | str | None = None) -> str:
    """How to call `alab` here: its name where the shell finds this one under it, else its path.

    Args:
        warehouse: the warehouse to name with `-w`, unless it is the one that is taken without.
    """
    script = Path(sys.argv[0])
    script = script if script.name == "alab" else Path(sys.executable).with_name("alab")
    on_path = shutil.which("alab")
    if on_path and _same(Path(on_path), script):
        command = "alab"
    elif script.is_file():
        command = program(script)
    else:
        command = f"{program(Path(sys.executable))} -m warehouse.cli"
    usual = os.environ.get("ALAB_WAREHOUSE") or "lab"
    if warehouse is None or warehouse in (usual, Path(usual).absolute()):
        return command
    return f"{command} -w {quoted(warehouse)}"


def quoted(path: Path | str) -> str:
    """A path for a shell, from the directory we are in where it is below."""
    name = short(path)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def short(path: Path | str) -> str:
    """A path as one reads it: from the directory we are in where it is below."""
    if "://" in str(path):
        return str(path)
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def program(path: Path) -> str:
    """A path for a shell to run; with a slash, without which it is looked for elsewhere."""
    name = short(path)
    return shlex.quote(name if "/" in name else f"./{name}")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
