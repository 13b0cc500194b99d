"""One query for each of many runs, as one table."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from warehouse import assets
from warehouse.catalog.catalog import connect
from warehouse.catalog.runs import find_runs
from warehouse.cluster.workers import Each, in_order
from warehouse.errors import AlabError, explain
from warehouse.lake.lake import Lake
from warehouse.query import run as query

#: Runs of a task, at the most: opening the catalog takes as long as some small queries.
BLOCK = 32
#: What decides between tokens that are equally near.
_TIES = ("run_id", "prompt_id", "position")


class _Block(NamedTuple):
    """Some runs, and what is asked of each."""

    lake: Lake
    sql: str
    runs: list[str]


def ask_each(
    lake: Lake,
    sql: str,
    runs: Sequence[str],
    each: Each,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> pa.Table:
    """Run a query for each of some runs, in which `$run` is the run's id.

    Args:
        lake: the warehouse's lake.
        sql: a query that only reads.
        runs: ids, unique prefixes, patterns with `*`, `latest`; all runs where there are none.
        each: the workers.
        progress: told of runs.

    Returns:
        All rows, run by run, with a first column `run_id` unless the query gives one.

    Raises:
        AlabError: there are no runs, the query does not name `$run`, does not run, or writes.
    """
    if not re.search(r"\$run\b", sql):
        raise AlabError("the query does not say $run", "Write for example: FROM intra_run($run)", 2)
    with connect(lake) as db:
        ids = find_runs(db, runs)
    blocks = [_Block(lake, sql, some) for some in _cut(ids)]
    tables = []
    for table in in_order(each(_ask, blocks)):
        tables.append(table)
        progress("runs", min(len(ids), BLOCK * len(tables)), len(ids))
    return pa.concat_tables(tables, promote_options="permissive")


def _ask(block: _Block) -> pa.Table:
    """What a worker does: the rows of a block of runs."""
    with query.asking(block.lake) as ask:
        return pa.concat_tables(
            [_rows(ask, block.sql, run) for run in block.runs], promote_options="permissive"
        )


def _rows(ask: Callable, sql: str, run: str) -> pa.Table:
    try:
        rows: pa.Table = ask(sql, {"run": run})
    except Exception as error:
        told = explain(error) or error
        raise AlabError(f"of the run {run}: {told}") from error
    if "run_id" in map(str.lower, rows.column_names):
        return rows
    return rows.add_column(0, "run_id", pa.repeat(run, len(rows)))


class _Near(NamedTuple):
    """What is looked for in some runs."""

    lake: Lake
    values: dict[str, object]


def nearest(
    lake: Lake, vector: list[float], site: str, layer: int, k: int, runs: Sequence[str], each: Each
) -> pa.Table:
    """The k tokens nearest to a vector; see `Warehouse.nearest_tokens`."""
    with connect(lake) as db:
        ids = find_runs(db, runs)
    asked = {"vector": vector, "site": site, "layer": layer, "k": k}
    blocks = [_Near(lake, asked | {"runs": some}) for some in _cut(ids)]
    found = pa.concat_tables(in_order(each(_nearest, blocks)))
    order = [("cosine", "descending"), *((name, "ascending") for name in _TIES)]
    return found.take(pc.sort_indices(found, order))[:k]


def _nearest(near: _Near) -> pa.Table:
    with connect(near.lake) as db:
        return db.sql(assets.query("nearest"), params=near.values).to_arrow_table()


def _cut(ids: list[str]) -> list[list[str]]:
    """Runs in blocks, one for each task."""
    return [ids[at : at + BLOCK] for at in range(0, len(ids), BLOCK)]
