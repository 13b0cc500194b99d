"""What a worker does.

Each task takes a desk, where the lake and the catalog's copy lie open, and arguments that JSON can
say, and gives bytes.
"""

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.arrow import UNWRITTEN, for_arrow
from warehouse.assets import asset_dir
from warehouse.catalog.runs import find_run, find_runs
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.query import formats, hints, readonly
from warehouse.query.formats import cell, plain
from warehouse.query.run import NoRowsError, rows_of
from warehouse.report import page
from warehouse.report.tables import Tables
from warehouse.report.write import collect
from warehouse.serve.computed import COMPUTED
from warehouse.serve.refs import whole

#: Rows of a figure's table, at the most: more cannot be drawn.
ROWS = 200_000
#: Characters of a value that a table shows, and bytes of an answer to a user's query.
CELL, LARGEST = 10_000, 64 << 20
#: Folders of queries that a page may name, the first that has it.
_QUERIES = ("serve/queries", "queries")
#: What a report's script reads beside the tables; a server's page has the charts and their words.
_OF_A_RUN = ("scales", "queries", "tables", "sites", "compared", "names")


@dataclass(frozen=True)
class Desk:
    """The lake, and a connection to a copy of its catalog that nobody else uses."""

    lake: Lake
    db: duckdb.DuckDBPyConnection

    def ask(self, sql: str, values: dict[str, Any], limit: int = ROWS) -> pa.Table:
        """The first rows of a query of ours; as `answer`."""
        with self.answer(sql, values) as relation:
            return relation.limit(limit).to_arrow_table()

    @contextmanager
    def answer(self, sql: str, values: dict[str, Any]) -> Iterator[duckdb.DuckDBPyRelation]:
        """What a query gives, as long as it is open.

        Raises:
            AlabError: the query fails, or gives no rows; one or two lines say why.
        """
        with hints.explained(self.lake, self.db):
            relation: duckdb.DuckDBPyRelation | None = self.db.sql(sql, params=values or None)
            if relation is None:
                raise NoRowsError
            yield relation


def query_text(name: str) -> str:
    """The text of a page's query.

    Raises:
        AlabError: there is none of this name.
    """
    if re.fullmatch(r"[a-z][a-z0-9_]*", name):
        for folder in _QUERIES:
            path = asset_dir("reports") / folder / f"{name}.sql"
            if path.is_file():
                return path.read_text(encoding="utf-8").strip()
    raise AlabError(f"there are no data called {name!r}")


def data(desk: Desk, name: str, values: dict[str, Any], form: str) -> bytes:
    """The rows of `reports/serve/queries/<name>.sql` or of a query of the report.

    Args:
        desk: where the lake lies open.
        name: the query.
        values: values of its parameters; `run` and `runs` by any name that runs have.
        form: `columns` as the page's script takes them, with the query; `json`, `csv` or `parquet`.

    Raises:
        AlabError: there is no such query, a value is missing, or there are more than `ROWS` rows.
    """
    text = query_text(name)
    names = set(re.findall(r"\$(\w+)", text))
    if missing := sorted(names - set(values)):
        raise AlabError(f"{name} needs {missing[0]}", f"Parameters: {', '.join(sorted(names))}")
    values = {key: values[key] for key in sorted(names)}
    if "run" in values:
        values["run"] = find_run(desk.db, values["run"])
    if "runs" in values:
        values["runs"] = [find_run(desk.db, run) for run in values["runs"]]
    if "refs" in values:
        values["refs"] = [whole(desk.db, ref) for ref in values["refs"]]
    table = desk.ask(text, values, ROWS + 1)
    if table.num_rows > ROWS:
        hint = "Ask for fewer, or for all of them on the command line: alab sql -o FILE"
        raise AlabError(f"{name} has more than {ROWS:,} rows", hint)
    table = COMPUTED[name](table) if name in COMPUTED else table
    return FORMS[form](table, {"query": text, "values": values})


def query(desk: Desk, sql: str, params: dict[str, Any], limit: int, form: str) -> bytes:
    """The first rows of a user's query, and what may explain that some are missing.

    Args:
        desk: where the lake lies open.
        sql: one or more statements; the rows are those of the last one.
        params: values of `$name` in the query.
        limit: how many rows, at the most.
        form: as of `data`, or `cells`: names, types and rows, whether there are more, and hints.
    """
    readonly.refuse(sql)
    elsewhere = "All of it, on the command line: alab sql -o FILE"
    with desk.answer(sql, params) as relation:
        names, types = relation.columns, [str(one) for one in relation.types]
        if form == "parquet":
            table = for_arrow(relation, UNWRITTEN).limit(limit + 1).to_arrow_table()
            count, body = table.num_rows, _as_parquet(table, {})
        else:
            rows = relation.limit(limit + 1).fetchall()
            count = len(rows)
            if form == "cells":
                notes = hints.about(desk.db, sql, empty=not rows)
                about = {"cut": count > limit, "limit": limit, "hints": notes}
                body = _as_cells(names, types, rows[:limit], about)
            else:
                body = _as_text(form, names, rows)
    if form != "cells" and count > limit:
        what = f"a file from here has at most {limit:,} rows, and these are more"
        raise AlabError(what, elsewhere)
    if len(body) > LARGEST:
        what = f"these rows take {len(body) >> 20} MB; from here at most {LARGEST >> 20}"
        raise AlabError(what, elsewhere)
    return body


def card(desk: Desk, run: str) -> bytes:
    """What the report says of a run, as JSON: HTML, packed tables, the script's registry."""
    context = collect(desk.lake, Tables(desk.lake, desk.db), [find_run(desk.db, run)])
    registry = {key: value for key, value in context["registry"].items() if key in _OF_A_RUN}
    html = page.fragment("serve/card.html.j2", context)
    return orjson.dumps({"html": html, "packed": context["packed"], "registry": registry})


def report(desk: Desk, runs: list[str]) -> bytes:
    """The one-file report of some runs, or of all."""
    context = collect(desk.lake, Tables(desk.lake, desk.db), find_runs(desk.db, runs))
    return page.render(context).encode()


def _as_columns(table: pa.Table, about: dict[str, Any]) -> bytes:
    """As the script draws it: text as a dictionary and codes, floats of five digits."""
    columns = {name: page.column(table[name]) for name in table.column_names}
    body = {"rows": table.num_rows, "columns": columns, **about}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _as_cells(
    names: list[str], types: list[str], rows: list[tuple], about: dict[str, Any]
) -> bytes:
    """Names, types and rows as lists, for a table."""
    cells = [list(map(_shown, row)) for row in rows]
    return json.dumps({"names": names, "types": types, "cells": cells, **about}).encode()


def _shown(value: Any) -> Any:
    """A value as a cell shows it: text where JavaScript has no such number, or where it is long."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) > 1 << 53:
        return str(value)
    shown = cell(value, None) if isinstance(value, list | dict) else plain(value)
    if isinstance(shown, str) and len(shown) > CELL:
        return f"{shown[:CELL]}… ({len(shown):,} characters)"
    return shown


def _as_json(table: pa.Table, _: dict[str, Any]) -> bytes:
    return _as_text("json", table.column_names, rows_of(table))


def _as_csv(table: pa.Table, _: dict[str, Any]) -> bytes:
    return _as_text("csv", table.column_names, rows_of(table))


def _as_text(form: str, names: list[str], rows: Iterable[tuple]) -> bytes:
    """As `alab sql` writes it."""
    stream = io.StringIO()
    formats.FORMATS[form](names, rows, stream)
    return stream.getvalue().encode()


def _as_parquet(table: pa.Table, _: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def dataset_preview(desk: Desk, dataset: dict[str, Any], count: int) -> bytes:
    """The first rows of a dataset as the prompts they become, and what all of them are like.

    Args:
        desk: where the lake lies open.
        dataset: the scenario's `prompt.dataset`.
        count: rows to show.
    """
    from warehouse.capture.dataset import Dataset
    from warehouse.scenario import Dataset as Request

    there = Dataset(Request.model_validate(dataset))
    some = list(there.prompts(range(min(len(there), 200))))
    lengths = [sum(map(len, prompt.texts)) for prompt in some if prompt.texts]
    shown = [
        {"id": one.id, "texts": [text[:2000] for text in one.texts], "error": one.error}
        for one in some[:count]
    ]
    about = {
        "rows": len(there),
        "columns": there.labels.column_names,
        "characters": sum(lengths) / max(1, len(lengths)),
        "messages": len(some[0].texts) if there.request.messages else 0,
        "roles": [message.role for message in there.request.messages or ()],
        "shown": shown,
    }
    return json.dumps(about).encode()


#: How rows are written, by the suffix of the address.
FORMS: dict[str, Callable[[pa.Table, dict[str, Any]], bytes]] = {
    "columns": _as_columns,
    "json": _as_json,
    "csv": _as_csv,
    "parquet": _as_parquet,
}
#: What a request may ask for, by the name that it says.
TASKS: dict[str, Callable[..., bytes]] = {
    "data": data,
    "query": query,
    "card": card,
    "report": report,
    "dataset_preview": dataset_preview,
}
