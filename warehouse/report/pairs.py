"""Runs against one another: every pair is in the charts, some have a card of their own."""

from warehouse.report.tables import Row, Tables, grouped

#: Pairs that get a card: all up to twice this, else so many of the least and of the most alike.
MAX_PAIRS = 8
#: Runs that are compared message by message.
MAX_SIDE_BY_SIDE = 5


def pairs(tables: Tables, runs: list[Row], site: str) -> Row | None:
    """Put the comparison between runs on the page; None for a single run.

    The rows of all pairs stay in the connection as `pair_rows`, and their summary as
    `pair_summary_rows`.
    """
    ids = [run["run_id"] for run in runs]
    if len(ids) < 2:
        return None
    tables.share("pairs", runs=ids)
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
