"""The queries of a report and the tables they fill: rows for templates, columns for charts.

No metric is computed here: each table is one query of `reports/queries`, and a part of the page
whose table has no rows is left out.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.assets import asset_dir
from warehouse.catalog.catalog import Catalog
from warehouse.lake.lake import Lake
from warehouse.report import page

#: A row of a query, and what is added to it for the templates.
Row = dict[str, Any]
#: By run and prompt_id, the index of the card of each conversation that has one.
Cards = dict[str, dict[int, int]]

#: Tables of each run that are drawn, by the names of their queries: about states, about passes.
STATE_TABLES = (
    "turns",
    "references",
    "message_means",
    "roles",
    "discriminative",
    "damping",
    "fade",
)
PASS_TABLES = ("steps", "top_tokens", "residual", "residual_error", "logit_lens")
#: Tables of each run that templates print.
RUN_ROWS = ("reference_table",)
#: Tables of what replies and references say, of all conversations, with a card or without one.
REPLIES = ("intra", "intra_summary", "reply_summary", "before_reply")
RESULTS = (*REPLIES, "leaning", "separating", "caveats", "state_tokens")
#: The intervals of the leanings, of runs whose labels have several examples.
MARGINS = "leaning_margins"
#: Runs are asked about together, up to so many numbers in their states (64 MB as DuckDB has them).
TOGETHER = 16_000_000
#: Groups of runs that are asked about at once: small queries leave a core idle.
SIDE_BY_SIDE = 2


@dataclass
class Tables:
    """The tables that a page draws, each with the query that made it.

    Attributes:
        lake: the warehouse's lake.
        db: an open catalog.
        packed: the tables, packed for the page, by name.
        origin: the query of each table and the values bound in it.
        queries: text of the queries, by name.
        stored: names of the rows that are kept in the connection.
    """

    lake: Lake
    db: duckdb.DuckDBPyConnection
    packed: dict[str, str] = field(default_factory=dict)
    origin: dict[str, Row] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)

    def beside(self) -> "Tables":
        """The same tables with a connection of its own, for another thread."""
        other = copy(self)
        other.db = Catalog(self.lake).prepare(self.db.cursor())
        return other

    def query(self, name: str, **values: object) -> pa.Table:
        """Run `reports/queries/<name>.sql` with those of the values that it names."""
        return self.relation(name, **values).to_arrow_table()

    def relation(self, name: str, **values: object) -> duckdb.DuckDBPyRelation:
        """The query `reports/queries/<name>.sql` with bound values, not yet run."""
        if name not in self.queries:
            path = asset_dir("reports") / "queries" / f"{name}.sql"
            self.queries[name] = path.read_text(encoding="utf-8").strip()
        text = self.queries[name]
        own = {key: values[key] for key in values if re.search(rf"\${key}\b", text)}
        return self.db.sql(text, params=own or None)

    def store(self, name: str, table: pa.Table) -> None:
        """Keep rows in the connection, for queries about all of them together."""
        self.db.register(name, table)
        self.stored.add(name)

    def share(self, name: str, **values: object) -> None:
        """Compute what several queries read, as `reports/shared/<name>.sql` says."""
        path = asset_dir("reports") / "shared" / f"{name}.sql"
        for statement in self.db.extract_statements(path.read_text(encoding="utf-8")):
            own = {key: values[key] for key in statement.named_parameters}
            self.db.execute(statement, own or None)

    def rows(self, name: str, **values: object) -> list[Row]:
        """The rows of a query, for a template."""
        return self.query(name, **values).to_pylist()

    def add(self, name: str, query: str, **values: object) -> pa.Table:
        """Put the result of a query on the page as the table `name`."""
        return self.put(name, self.query(query, **values), query=query, values=values)

    def add_each(self, name: str, query: str, each: Sequence[Row]) -> pa.Table:
        """Put the results of a query for several values on the page as one table."""
        table = pa.concat_tables([self.query(query, **values) for values in each])
        return self.put(name, table, query=query, each=list(each))

    def put(self, name: str, table: pa.Table, **origin: object) -> pa.Table:
        """Put a table and where it is from on the page; one without rows is left out."""
        if table.num_rows:
            self.packed[name] = page.pack(table)
            self.origin[name] = origin
        return table


def fill_runs(
    tables: Tables, runs: list[Row], prompts: list[Row], site: str
) -> dict[str, list[Row]]:
    """Put the tables of every run on the page; those of single conversations for `prompts` only.

    What several queries about all runs together read stays in the connection: `intra_rows`,
    `intra_summary_rows`, `reply_summary_rows` and `before_reply_rows`.

    Returns:
        Rows of every conversation, by the name of the query: most of `RESULTS`.
    """
    cards: Cards = defaultdict(dict)
    for index, prompt in enumerate(prompts):
        cards[prompt["run_id"]][prompt["prompt_id"]] = index
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        groups = _groups(runs)
        passes = pool.map(lambda group: _fill_passes(tables, group, cards), groups)
        parts = list(pool.map(lambda group: _fill_states(tables, group, cards, site), groups))
        list(passes)
    names = {name for part in parts for name in part}
    results = {name: pa.concat_tables(p[name] for p in parts if name in p) for name in names}
    values = {"runs": [run["run_id"] for run in runs]}
    tables.put("intra", results["intra"], query="intra", values=values)
    for name in REPLIES:
        tables.store(f"{name}_rows", results[name])
    return {name: results[name].to_pylist() for name in names - {"intra", "before_reply"}}


def _groups(runs: list[Row]) -> list[list[Row]]:
    """The runs in groups that are asked about together."""
    groups: list[list[Row]] = []
    room = 0
    for run in runs:
        room -= run["numbers"]
        if room < 0 or not groups:
            groups.append([])
            room = TOGETHER - run["numbers"]
        groups[-1].append(run)
    return groups


def _fill_states(tables: Tables, runs: list[Row], cards: Cards, site: str) -> dict[str, pa.Table]:
    """Put what the states of some runs say on the page, over a connection of its own.

    Returns:
        The tables of `RESULTS` about every conversation, and that of `MARGINS` where labels have
        several examples.
    """
    values = {"runs": [run["run_id"] for run in runs]}
    own = tables.beside()
    with own.db:
        own.share("states", **values)
        _fill(own, runs, cards, (*RUN_ROWS, *STATE_TABLES))
        results = {name: own.query(name, **values, site=site) for name in RESULTS}
        several = own.rows("several", **values)[0]["runs"]
        if several:
            results[MARGINS] = own.query(MARGINS, runs=several, site=site)
        return results


def _fill_passes(tables: Tables, runs: list[Row], cards: Cards) -> None:
    """Put what the passes of some runs say on the page, over a connection of its own."""
    own = tables.beside()
    with own.db:
        _fill(own, runs, cards, PASS_TABLES)
        _cross_layers(own, [run for run in runs if run["run_id"] in cards], cards)


def _fill(tables: Tables, runs: list[Row], cards: Cards, names: Sequence[str]) -> None:
    """Put tables about the conversations with cards on the page; their runs know them too."""
    runs = [run for run in runs if run["run_id"] in cards]
    ids = [run["run_id"] for run in runs]
    for name in names if runs else ():
        for run, table in _by_run(tables.query(name, runs=ids), runs):
            if "prompt_id" in table.column_names:
                table = table.filter(pc.field("prompt_id").isin(list(cards[run["run_id"]])))
            if name not in RUN_ROWS:
                values = {"runs": [run["run_id"]]}
                tables.put(f"{name}-{run['index']}", table, query=name, values=values)
            run["tables"][name] = table


def _cross_layers(tables: Tables, runs: list[Row], cards: Cards) -> None:
    """Put each conversation's layers against layers on the page; one query asks for all of them."""
    if not runs:
        return
    ids = [run["run_id"] for run in runs]
    alone = all(list(cards[run_id]) == [0] for run_id in ids)
    table = tables.query("cross_layer", runs=ids, prompt=0 if alone else None)
    for run, rows in _by_run(table, runs):
        for prompt_id, index in cards[run["run_id"]].items():
            own = of_conversation(rows, prompt_id)
            values = {"runs": [run["run_id"]], "prompt": prompt_id}
            put = tables.put(f"cross_layer-{index}", own, query="cross_layer", values=values)
            run["cross_layer"][prompt_id] = put


def _by_run(table: pa.Table, runs: list[Row]) -> Iterator[tuple[Row, pa.Table]]:
    """Each run with its rows of a table in which the rows of a run stand together."""
    at, places = 0, {}
    for count in pc.value_counts(table["run_id"]).to_pylist():
        places[count["values"]] = at, count["counts"]
        at += count["counts"]
    for run in runs:
        yield run, table.slice(*places.get(run["run_id"], (0, 0)))


def of_conversation(table: pa.Table, prompt_id: int) -> pa.Table:
    """A conversation's rows of a run's table; all of them where that is about the whole run."""
    if "prompt_id" not in table.column_names:
        return table
    return table.filter(pc.field("prompt_id") == prompt_id)


def grouped(rows: list[Row], *columns: str) -> dict[tuple, list[Row]]:
    """Rows by their values of some columns; a group that there is not is empty."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in columns)].append(row)
    return groups
