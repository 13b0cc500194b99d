"""Finds the SQL, report templates and scenarios that travel with the package."""

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


def asset_dir(name: str) -> Path:
    """Folder `sql`, `reports` or `scenarios`: the wheel's own copy, else the checkout's."""
    bundled = _PACKAGE / "_assets" / name
    return bundled if bundled.is_dir() else _PACKAGE.parent / name


@cache
def query(name: str) -> str:
    """Text of `sql/queries/NAME.sql`: a query that Python asks; `$name` is a bound value."""
    return (asset_dir("sql") / "queries" / f"{name}.sql").read_text(encoding="utf-8")
