"""Runs against one another: every pair is in the charts, some have a card of their own."""

from collections.abc import Callable
from itertools import count
from math import isqrt
from typing import TypeVar

import pyarrow as pa

from warehouse.assets import query
from warehouse.catalog.catalog import connect
from warehouse.lake.lake import Lake
from warehouse.report.tables import Row, Tables, grouped

#: Pairs that get a card: all up to twice this, else so many of the least and of the most alike.
MAX_PAIRS = 8
#: Runs that are compared message by message.
MAX_SIDE_BY_SIDE = 5
#: Runs from which on they are compared in blocks, so that memory does not grow with their square.
MANY = 128
Item = TypeVar("Item")


def pairs(tables: Tables, runs: list[Row], site: str, each: Callable | None = None) -> Row | None:
    """Put the comparison between runs on the page; None for a single run.

    Many runs are compared block by block, with `each` on other machines: it is an `Each` of
    `warehouse.cluster.workers`.

    The rows of all pairs stay in the connection as `pair_rows`, and their summary as
    `pair_summary_rows`.
    """
    ids = [run["run_id"] for run in runs]
    if len(ids) < 2:
        return None
    if each or len(ids) >= MANY:
        _compare_in_blocks(tables, ids, each or _alone)
    else:
        tables.share("pair_rows", runs=ids)
    tables.share("pairs")
    tables.stored.add("pair_rows")
    summary = tables.query("pair_summary", runs=ids)
    skipped = tables.rows("pairs_skipped", runs=ids)
    if not summary.num_rows:
        return {"count": 0, "skipped": skipped}
    tables.store("pair_summary_rows", summary)
    extremes = tables.rows("pairs_shown", each=MAX_PAIRS)
    tables.add("pair_matrix", "pair_matrix", runs=ids)
    keys = [{key: row[key] for key in ("run_a", "run_b")} for row in extremes]
    tables.add_each("pair_layers", "pair_layers", keys)
    return {
        "count": extremes[0]["pairs"],
        "limited": extremes[0]["pairs"] > len(extremes),
        "each": MAX_PAIRS,
        "by_message": _by_message(tables, ids),
        "cards": _cards(extremes, runs, summary.to_pylist()),
        "totals": tables.rows("pair_totals"),
        "skipped": skipped,
        "findings": tables.rows("pair_findings", site=site),
    }


def _compare_in_blocks(tables: Tables, ids: list[str], each: Callable) -> None:
    """Compare runs block by block."""
    tables.share("pair_rows", runs=ids[:1])  # a table without rows yet
    for _, rows in each(_compare, [(tables.lake, block) for block in blocks(ids)]):
        tables.db.from_arrow(rows).insert_into("pair_rows")


def _alone(function: Callable, items: list) -> "enumerate":
    return enumerate(map(function, items))


def _compare(block: tuple[Lake, list[str]]) -> pa.Table:
    lake, runs = block
    with connect(lake) as db:
        return db.sql(query("compare_runs"), params={"runs": runs}).to_arrow_table()


def blocks(items: list[Item]) -> list[list[Item]]:
    """Blocks of about √n items such that any two of the n items are together in just one.

    They are the lines of an affine plane: of points (x, y) modulo a prime, two share one line.

    >>> blocks(["a", "b", "c", "d"])
    [['a', 'c'], ['b', 'd'], ['a', 'd'], ['b', 'c'], ['a', 'b'], ['c', 'd']]
    """
    least = max(2, isqrt(len(items) - 1) + 1)
    p = next(n for n in count(least) if all(n % k for k in range(2, isqrt(n) + 1)))
    lines = [[(x, (slope * x + at) % p) for x in range(p)] for slope in range(p) for at in range(p)]
    lines += [[(x, y) for y in range(p)] for x in range(p)]
    found = [[x * p + y for x, y in line if x * p + y < len(items)] for line in lines]
    return [[items[place] for place in line] for line in found if len(line) > 1]


def _by_message(tables: Tables, ids: list[str]) -> bool:
    """Put the comparison message by message on the page; whether there is one."""
    if len(ids) > MAX_SIDE_BY_SIDE:
        return False
    messages = tables.add("pair_messages", "pair_messages", runs=ids)
    tables.store("pair_messages_rows", messages)
    return messages.num_rows > 0


def _cards(pairs: list[Row], runs: list[Row], summary: list[Row]) -> list[Row]:
    """The pairs that have a card, each with its runs and its rows of the summary."""
    by_id = {run["run_id"]: run for run in runs}
    rows = grouped(summary, "run_a", "run_b")
    cards = []
    for row in pairs:
        a, b = row["run_a"], row["run_b"]
        own = {"pair": f"{a} × {b}", "runs": (by_id[a], by_id[b]), "rows": rows[a, b]}
        cards.append(row | own)
    return cards
