"""Writes rows as a table, CSV, JSON, JSON lines or Markdown, as they come."""

import csv
import datetime
import html
import json
import math
from collections.abc import Iterable
from itertools import chain, count, islice
from typing import Any, TextIO

#: Rows that a table shows; the other formats have all of them.
TABLE_ROWS = 100
#: Values of a list that a table shows, and characters of a text.
LIST_VALUES, CELL_WIDTH = 4, 60


def _csv(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([json.dumps(plain(v)) if isinstance(v, list | dict) else v for v in row])


def _json(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    names, separator = _distinct(names), "[\n"
    for row in rows:
        stream.write(separator + _record(names, row))
        separator = ",\n"
    stream.write("[]\n" if separator == "[\n" else "\n]\n")


def _jsonl(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    names = _distinct(names)
    for row in rows:
        stream.write(_record(names, row) + "\n")


def _distinct(names: list[str]) -> list[str]:
    """Column names as keys of an object.

    >>> _distinct(["a", "b", "a"])
    ['a', 'b', 'a_1']
    """
    keys: list[str] = []
    for name in names:
        tries = chain([name], (f"{name}_{number}" for number in count(1)))
        keys.append(next(key for key in tries if key not in keys))
    return keys


def _record(names: list[str], row: tuple) -> str:
    return json.dumps(dict(zip(names, map(plain, row), strict=True)), ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value as JSON has it: NaN and infinity null, dates ISO 8601, anything unknown text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def _markdown(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    stream.write(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n")
    for row in rows:
        cells = [cell(value, width=None).replace("|", "\\|") for value in row]
        stream.write(f"| {' | '.join(cells)} |\n")


def _table(names: list[str], rows: Iterable[tuple], stream: TextIO) -> None:
    first = list(islice(rows, TABLE_ROWS + 1))
    shown = [[cell(value) for value in row] for row in first[:TABLE_ROWS]]
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
    puts = [
        str.rjust if all(isinstance(value, int | float | None) for value in values) else str.ljust
        for _, *values in zip(names, *first, strict=True)
    ]
    for cells in chain([names, ["─" * width for width in widths]], shown):
        padded = [put(cell, width) for put, cell, width in zip(puts, cells, widths, strict=True)]
        stream.write("  ".join(padded).rstrip() + "\n")
    if len(first) > TABLE_ROWS:
        stream.write(f"… the first {TABLE_ROWS} rows; all of them: --format csv\n")


def cell(value: Any, width: int | None = CELL_WIDTH) -> str:
    """A value on one short line; of a long list the first values and how many there are."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        cut = len(value) > LIST_VALUES + 2
        items = [cell(item) for item in (value[:LIST_VALUES] if cut else value)]
        return f"[{', '.join([*items, *[f'… {len(value)} values'] * cut])}]"
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def html_table(names: list[str], rows: Iterable[tuple]) -> str:
    """Rows as an HTML table, for notebooks."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell(value))}</td>' for value in row)}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


#: What writes each format: column names, rows, and the stream that they go to.
FORMATS = {"table": _table, "csv": _csv, "json": _json, "jsonl": _jsonl, "md": _markdown}
