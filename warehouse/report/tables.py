"""What the report shows, as rows for its templates and tables for its charts.

No metric is computed here: each table is one query of `reports/queries`, and a part of the page
    whose table has no
rows is left out.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.assets import asset_dir
from warehouse.catalog.catalog import Catalog
from warehouse.lake.lake import Lake
from warehouse.report import findings, page

#: Tables of each run that are drawn, and the queries that make them: about its states, and about
#: its passes.
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
#: Tables that say what was found, of all conversations, whether they have a card or not.
FOUND = (
    "intra",
    "intra_summary",
    "reply_summary",
    "leaning",
    "separating",
    "caveats",
    "state_tokens",
    "before_reply",
)
#: A run's id as `Lake.stage` makes it.
_ID = re.compile(
    r"(?P<name>.+)_\d{4}(?P<month>\d\d)(?P<day>\d\d)T(?P<h>\d\d)(?P<m>\d\d)(?P<s>\d\d)Z"
)
#: The intervals of the leanings, of runs whose labels have several examples.
MARGINS = "leaning_margins"
#: Conversations that get a card of their own; the overview has all of them.
MAX_CARDS = 120
#: Runs are asked about together, up to so many numbers in their states (64 MB as DuckDB has them).
TOGETHER = 16_000_000
#: Groups of runs that are asked about at once: small queries leave a core idle.
SIDE_BY_SIDE = 2
#: Pairs that get a card: all of them up to twice this, else so many of the least and of the most
#: alike.
MAX_PAIRS = 8
#: Runs that are compared message by message.
MAX_SIDE_BY_SIDE = 5
#: The two comparisons that say what replying changed: like with like, and whatever was last.
COMPARED = ("generation prompt", "last token")


class Tables:
    """The tables that a page draws, each with the query that made it.

    Args:
        lake: the warehouse's lake.
        db: an open catalog.

    Attributes:
        packed: the tables, packed for the page, by name.
        origin: the query of each table and the values bound in it.
        queries: text of the queries, by name.
        stored: names of the rows that are kept in the connection.
    """

    def __init__(self, lake: Lake, db: duckdb.DuckDBPyConnection):
        self.lake = lake
        self.db = db
        self.packed: dict[str, str] = {}
        self.origin: dict[str, dict] = {}
        self.queries: dict[str, str] = {}
        self.stored: set[str] = set()

    def beside(self) -> "Tables":
        """The same tables with a connection of its own, for another thread and for temporary objects."""
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
        own = {
            key: value
            for key, value in values.items()
            if re.search(rf"\${key}\b", self.queries[name])
        }
        return self.db.sql(self.queries[name], params=own or None)

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

    def rows(self, name: str, **values: object) -> list[dict]:
        """The rows of a query, for a template."""
        return self.query(name, **values).to_pylist()

    def add(self, name: str, query: str, **values: object) -> pa.Table:
        """Put the result of a query on the page as the table `name`; a table without rows is left out."""
        return self.put(name, self.query(query, **values), {"query": query, "values": values})

    def add_each(self, name: str, query: str, each: Sequence[dict]) -> pa.Table:
        """Put the results of a query for several values on the page as one table."""
        results = [self.query(query, **values) for values in each]
        return self.put(name, pa.concat_tables(results), {"query": query, "each": list(each)})

    def put(self, name: str, table: pa.Table, origin: dict) -> pa.Table:
        """Put a table on the page; a table without rows is left out."""
        if table.num_rows:
            self.packed[name] = page.pack(table)
            self.origin[name] = origin
        return table


def by_conversation(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows grouped by run and prompt."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["run_id"], row["prompt_id"]].append(row)
    return groups


def runs_of(tables: Tables, run_ids: list[str]) -> list[dict]:
    """The runs, oldest first, each with its place and a short name."""
    runs = tables.rows("runs", runs=run_ids)
    names = short_names([run["run_id"] for run in runs])
    for index, run in enumerate(runs):
        run |= {"index": index, "name": names[run["run_id"]], "tables": {}, "cross_layer": {}}
    return runs


def short_names(run_ids: list[str]) -> dict[str, str]:
    """Names that tell runs apart and leave room for a chart: the id without its time, where that is enough.

    >>> ids = ["joy_20260102T101500Z", "fear_20260102T101500Z", "fear_20260102T101601Z", "imported"]
    >>> list(short_names(ids).values())
    ['joy', 'fear 10:15:00', 'fear 10:16:01', 'imported']
    >>> list(short_names(["joy_20260102T101500Z", "joy_20260103T101500Z", "joy_20260103T101500Z-2"]).values())
    ['joy 01-02 10:15:00', 'joy 01-03 10:15:00', 'joy_20260103T101500Z-2']
    """
    parts = {run_id: _ID.fullmatch(run_id) for run_id in run_ids}
    levels = [
        lambda m: m["name"],
        lambda m: "{name} {h}:{m}:{s}".format_map(m.groupdict()),
        lambda m: "{name} {month}-{day} {h}:{m}:{s}".format_map(m.groupdict()),
    ]
    names = {}
    for level in levels:
        shorter = {run_id: level(match) if match else run_id for run_id, match in parts.items()}
        uses = Counter(shorter.values())
        for run_id, name in shorter.items():
            if uses[name] == 1:
                names.setdefault(run_id, name)
    return {run_id: names.get(run_id, run_id) for run_id in run_ids}


def fill_runs(
    tables: Tables, runs: list[dict], prompts: list[dict], site: str
) -> dict[str, list[dict]]:
    """Put the tables of every run on the page; those of single conversations for `prompts` only.

    What several queries about all runs together read stays in the connection: `intra_rows`,
        `intra_summary_rows`,
    `reply_summary_rows` and `before_reply_rows`.

    Args:
        tables: the page's tables.
        runs: the runs, oldest first.
        prompts: conversations that have a card.
        site: site that the findings are about.

    Returns:
        Rows of every conversation, by the name of the query: most of `FOUND`.
    """
    shown = defaultdict(dict)
    for index, prompt in enumerate(prompts):
        shown[prompt["run_id"]][prompt["prompt_id"]] = index
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        groups = _groups(runs)
        passes = pool.map(lambda group: _fill_passes(tables, group, shown), groups)
        filled = list(pool.map(lambda group: _fill_states(tables, group, shown, site), groups))
        list(passes)
    names = dict.fromkeys(name for group in filled for name in group)
    found = {
        name: pa.concat_tables(group[name] for group in filled if name in group) for name in names
    }
    origin = {"query": "intra", "values": {"runs": [run["run_id"] for run in runs]}}
    tables.store("intra_rows", tables.put("intra", found.pop("intra"), origin))
    tables.store("intra_summary_rows", found["intra_summary"])
    tables.store("reply_summary_rows", found["reply_summary"])
    tables.store("before_reply_rows", found.pop("before_reply"))
    return {name: table.to_pylist() for name, table in found.items()}


def _groups(runs: list[dict]) -> list[list[dict]]:
    """The runs in groups that are asked about together."""
    groups, room = [], 0
    for run in runs:
        room -= run["numbers"]
        if room < 0 or not groups:
            groups.append([])
            room = TOGETHER - run["numbers"]
        groups[-1].append(run)
    return groups


def _fill_states(
    tables: Tables, runs: list[dict], shown: dict[str, dict[int, int]], site: str
) -> dict[str, pa.Table]:
    """Put what the states of some runs say on the page, over a connection of its own.

    Args:
        tables: the page's tables.
        runs: the runs.
        shown: by run and prompt_id, index of the card of each conversation that has one.
        site: site that the findings are about.

    Returns:
        The tables of `FOUND` about every conversation, and that of `MARGINS` where labels have
        several examples.
    """
    values = {"runs": [run["run_id"] for run in runs]}
    own = tables.beside()
    with own.db:
        own.share("states", **values)
        _fill(own, runs, shown, (*RUN_ROWS, *STATE_TABLES))
        several = own.rows("several", **values)[0]["runs"]
        found = {name: own.query(name, **values, site=site) for name in FOUND}
        return found | ({MARGINS: own.query(MARGINS, runs=several, site=site)} if several else {})


def _fill_passes(tables: Tables, runs: list[dict], shown: dict[str, dict[int, int]]) -> None:
    """Put what the passes of some runs say on the page, over a connection of its own."""
    own = tables.beside()
    with own.db:
        _fill(own, runs, shown, PASS_TABLES)
        _cross_layers(own, [run for run in runs if run["run_id"] in shown], shown)


def _fill(
    tables: Tables, runs: list[dict], shown: dict[str, dict[int, int]], names: Sequence[str]
) -> None:
    """Put tables of the runs that have cards on the page, about the conversations with cards; runs know theirs."""
    with_cards = [run for run in runs if run["run_id"] in shown]
    for name in names if with_cards else ():
        for run, table in _by_run(
            tables.query(name, runs=[run["run_id"] for run in with_cards]), with_cards
        ):
            if "prompt_id" in table.column_names:
                table = table.filter(pc.field("prompt_id").isin(list(shown[run["run_id"]])))
            if name not in RUN_ROWS:
                tables.put(
                    f"{name}-{run['index']}",
                    table,
                    {"query": name, "values": {"runs": [run["run_id"]]}},
                )
            run["tables"][name] = table


def _cross_layers(tables: Tables, runs: list[dict], shown: dict[str, dict[int, int]]) -> None:
    """Put each conversation's layers against layers on the page; those of all conversations are asked for at once."""
    if not runs:
        return
    alone = all(list(shown[run["run_id"]]) == [0] for run in runs)
    table = tables.query(
        "cross_layer", runs=[run["run_id"] for run in runs], prompt=0 if alone else None
    )
    for run, rows in _by_run(table, runs):
        for prompt_id, index in shown[run["run_id"]].items():
            origin = {
                "query": "cross_layer",
                "values": {"runs": [run["run_id"]], "prompt": prompt_id},
            }
            own = _conversation(rows, prompt_id)
            run["cross_layer"][prompt_id] = tables.put(f"cross_layer-{index}", own, origin)


def _by_run(table: pa.Table, runs: list[dict]) -> Iterator[tuple[dict, pa.Table]]:
    """Each run with its rows of a table in which the rows of a run stand together."""
    at, places = 0, {}
    for count in pc.value_counts(table["run_id"]).to_pylist():
        places[count["values"]] = at, count["counts"]
        at += count["counts"]
    for run in runs:
        yield run, table.slice(*places.get(run["run_id"], (0, 0)))


def cards(
    tables: Tables, runs: list[dict], prompts: list[dict], found: dict[str, list[dict]]
) -> list[dict]:
    """One card per conversation, with everything that is shown of it."""
    ids = [run["run_id"] for run in runs]
    by_id = {run["run_id"]: run for run in runs}
    summaries, leanings = by_conversation(found["intra_summary"]), by_conversation(found["leaning"])
    replies, places = (
        by_conversation(found["reply_summary"]),
        by_conversation(found["state_tokens"]),
    )
    messages = by_conversation(tables.rows("messages", runs=ids))
    snapshots = by_conversation(tables.rows("snapshots", runs=ids))
    labels = defaultdict(list)
    for row in tables.rows("labels", runs=ids):
        labels[row["run_id"]].append(row["label"])
    margins = {
        (row["run_id"], row["prompt_id"], row["message_index"]): row
        for row in found.get(MARGINS, ())
    }
    for row in found["leaning"]:
        row["sure"] = margins.get((row["run_id"], row["prompt_id"], row["message_index"]))
    separating = {row["run_id"]: row for row in found["separating"]}
    several = {row["run_id"] for row in prompts if row["prompt_id"]}
    for index, card in enumerate(prompts):
        run, key = by_id[card["run_id"]], (card["run_id"], card["prompt_id"])
        roles = {row["role"] for row in snapshots[key] if not row["is_generated"]}
        card |= {
            "index": index,
            "run_index": run["index"],
            "run": run,
            "alone": len(prompts) == 1,
            "title": run["name"]
            + (f" · conversation {card['prompt_id']}" if card["run_id"] in several else ""),
            "messages": messages[key],
            "snapshots": snapshots[key],
            "references": labels[card["run_id"]],
            "has_both_roles": roles >= {"user", "assistant"},
            "intra_summary": {
                name: [row for row in summaries[key] if row["compared"] == name]
                for name in COMPARED
            },
            "leaning": leanings[key],
            "reply": next(iter(replies[key]), None),
            "separating": separating.get(card["run_id"]),
            "caveats": [row for row in found["caveats"] if row["run_id"] == card["run_id"]],
            "states": {
                (row["state"], row["state_index"] if row["state"] == "snapshot" else 0): row
                for row in places[key]
            },
        }
        card["found"] = findings.conversation(card)
        _describe(card)
    return prompts


def _describe(card: dict) -> None:
    """Say which parts a conversation has, and what its controls offer."""
    own = {
        name: _conversation(table, card["prompt_id"])
        for name, table in card["run"]["tables"].items()
    }
    own["cross_layer"] = card["run"]["cross_layer"][card["prompt_id"]]
    card["has"] = {name: table.num_rows > 0 for name, table in own.items()}
    card["compared"] = [name for name in COMPARED if card["intra_summary"][name]]
    card["has"]["intra"] = bool(card["compared"])
    card |= {name: own[name].to_pylist() for name in RUN_ROWS}
    card["steps_of"] = pc.unique(own["steps"]["step"]).to_pylist()
    card["residual_of"] = pc.unique(own["residual"]["step"]).to_pylist()
    card["lens_sites"] = sorted(pc.unique(own["logit_lens"]["site"]).to_pylist(), reverse=True)
    card["choices"] = {"step": 0, "residual_step": next(iter(card["residual_of"]), 0)}
    if card["compared"]:
        card["choices"]["compared"] = card["compared"][0]


def _conversation(table: pa.Table, prompt_id: int) -> pa.Table:
    """The rows of one conversation of a run's table; all of them where the table is about the whole run."""
    return (
        table.filter(pc.field("prompt_id") == prompt_id)
        if "prompt_id" in table.column_names
        else table
    )


def pairs(tables: Tables, runs: list[dict], site: str) -> dict | None:
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
    found = tables.rows("pairs_shown", each=MAX_PAIRS)
    tables.add("pair_matrix", "pair_matrix", runs=ids)
    tables.add_each(
        "pair_layers",
        "pair_layers",
        [{"run_a": row["run_a"], "run_b": row["run_b"]} for row in found],
    )
    by_message = len(ids) <= MAX_SIDE_BY_SIDE
    if by_message:
        messages = tables.add("pair_messages", "pair_messages", runs=ids)
        tables.store("pair_messages_rows", messages)
        by_message = messages.num_rows > 0
    by_id = {run["run_id"]: run for run in runs}
    wanted = {(row["run_a"], row["run_b"]) for row in found}
    own = defaultdict(list)
    for row in summary.to_pylist():
        if (row["run_a"], row["run_b"]) in wanted:
            own[row["run_a"], row["run_b"]].append(row)
    shown = [
        row
        | {
            "pair": f"{row['run_a']} × {row['run_b']}",
            "runs": (by_id[row["run_a"]], by_id[row["run_b"]]),
            "rows": own[row["run_a"], row["run_b"]],
        }
        for row in found
    ]
    return {
        "count": found[0]["pairs"],
        "limited": found[0]["pairs"] > len(found),
        "each": MAX_PAIRS,
        "shown": shown,
        "totals": tables.rows("pair_totals"),
        "skipped": skipped,
        "by_message": by_message,
        "found": tables.rows("pair_findings", site=site),
    }
