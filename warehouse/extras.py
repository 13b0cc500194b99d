"""Packages that are installed only where they are wanted, and what brings a missing one."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from warehouse import advice
from warehouse.errors import AlabError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Tell a missing import inside as the extra that brings it.

    Args:
        extra: name of one of alab's extras.
        what: what cannot be done without, such as `alab heatmap`.

    Raises:
        AlabError: something that the extra brings is not installed.
    """
    try:
        yield
    except ImportError as error:
        names = " ".join(f"'{name}'" for name in packages(extra))
        raise AlabError(
            f"{what} needs {error.name or error}, which is not installed; "
            f"the extra {extra!r} of alab brings it",
            f"{pip()} install {names}",
        ) from error


def packages(extra: str) -> list[str]:
    """What an extra asks for.

    >>> packages("heatmap")
    ['matplotlib>=3.8', 'pillow>=10']
    """
    try:
        everything = requires("alab") or []
    except PackageNotFoundError:  # run from its sources, without being installed
        return [f"alab[{extra}]"]
    form = re.compile(r"(.+?)\s*;\s*extra\s*==\s*['\"](.+)['\"]")
    matches = map(form.fullmatch, everything)
    return sorted(match[1] for match in matches if match and match[2] == extra)


def pip() -> str:
    """How to call the pip that installs beside this alab."""
    return f"{advice.program(Path(sys.executable))} -m pip"


def of_model(error: ImportError) -> str:
    """What installs the package that a model's own code lacks, where the error names it."""
    advised = re.search(r"pip install (?:-U |--upgrade )?([\w.\[\]-]+)", str(error))
    name = error.name or (advised and advised[1])
    return f"{pip()} install {name}" if name else ""
