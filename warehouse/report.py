"""The comparison report: SQL results through templates into one HTML file, with CSV files beside it.

No metric is computed here. Each table is one query of `reports/queries`; a part of the page whose table has no
rows is left out.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from warehouse import catalog, page
from warehouse.assets import asset_dir
from warehouse.errors import AlabError
from warehouse.lake import STATE_SITES, Lake


class Tables:
    """The tables that a page draws, each with the query that made it.

    Args:
        db: an open catalog.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection):
        self.db = db
        self.packed: dict[str, str] = {}
        self.origin: dict[str, dict] = {}
        self.queries: dict[str, str] = {}

    def query(self, name: str, **values: object) -> pa.Table:
        """Run `reports/queries/<name>.sql` with bound values."""
        if name not in self.queries:
            path = asset_dir("reports") / "queries" / f"{name}.sql"
            self.queries[name] = path.read_text(encoding="utf-8").strip()
        return self.db.sql(self.queries[name], params=values).to_arrow_table()

    def rows(self, name: str, **values: object) -> list[dict]:
        """The rows of a query, for a template."""
        return self.query(name, **values).to_pylist()

    def add(self, name: str, query: str, **values: object) -> pa.Table:
        """Put the result of a query on the page as the table `name`; a table without rows is left out."""
        return self._put(name, self.query(query, **values), {"query": query, "values": values})

    def add_each(self, name: str, query: str, each: Sequence[dict]) -> pa.Table:
        """Put the results of a query for several values on the page as one table."""
        results = [self.query(query, **values) for values in each]
        return self._put(name, pa.concat_tables(results), {"query": query, "each": list(each)})

    def _put(self, name: str, table: pa.Table, origin: dict) -> pa.Table:
        if table.num_rows:
            self.packed[name] = page.pack(table)
            self.origin[name] = origin
        return table


def write_report(
    lake: Lake, runs: Iterable[str] = (), *, out: Path | None = None, csv_dir: Path | None = None
) -> list[Path]:
    """Write the report of some runs, or of all.

    Args:
        lake: the warehouse's lake.
        runs: ids, unique prefixes or `latest`; none means every run.
        out: the HTML file; `report.html` in the warehouse by default.
        csv_dir: a folder for the tables as CSV files; none are written without one.

    Returns:
        Paths of the files: the HTML file first.

    Raises:
        AlabError: there are no runs, a name means none, or a file cannot be written.
    """
    out = out or lake.warehouse / "report.html"
    with catalog.connect(lake) as db:
        tables = Tables(db)
        html = page.render(collect(lake, tables, _chosen(db, runs)))
    _write(out, html)
    return [out]


def _chosen(db: duckdb.DuckDBPyConnection, names: Iterable[str]) -> list[str]:
    """Ids of the runs that are meant, without repetition."""
    if names := list(names):
        return list(dict.fromkeys(catalog.find_run(db, name) for name in names))
    catalog.find_run(db, "latest")  # tells what to do where there are none
    return [row[0] for row in db.execute("SELECT run_id FROM runs").fetchall()]


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise AlabError(
            f"cannot write the report {path}: {error.strerror}", "Name another file with --out."
        ) from error


def collect(lake: Lake, tables: Tables, run_ids: list[str]) -> dict:
    """Everything the templates show, and the tables for the script."""
    runs = tables.rows("runs", runs=run_ids)
    ids = [run["run_id"] for run in runs]
    for index, run in enumerate(runs):
        run["index"] = index
    cards = _cards(tables, runs)
    tables.add_each("intra", "intra", [{"run": run_id} for run_id in ids])
    summary = [row for run_id in ids for row in tables.rows("intra_summary", run=run_id)]
    for run in runs:
        run["tables"] = _run_tables(tables, run)
        run["reference_table"] = tables.rows("reference_table", run=run["run_id"])
    for card in cards:
        _fill(tables, card, summary)
    captured = tables.rows("sites", runs=ids)
    sites = [site for site in SITE_ORDER if any(row["site"] == site and row["layers"] for row in captured)]
    title = runs[0]["scenario"] if len(runs) == 1 else f"{len(runs)} runs"
    return {
        "title": title, "warehouse": lake.warehouse.name, "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "runs": runs, "cards": cards, "sites": sites, "facts": _facts(runs, cards),
        "warnings": tables.rows("warnings", runs=ids), "contents": _contents(cards),
        "about_head": ABOUT_HEAD, "about_rows": [_about(run) for run in runs],
        "registry": {
            "charts": page.charts(), "queries": tables.queries, "tables": tables.origin, "sites": sites,
        },
        "packed": tables.packed,
    }  # fmt: skip


#: The sites of a state, the one that is shown first ahead.
SITE_ORDER = ("hidden_out", *(site for site in STATE_SITES if site != "hidden_out"))
ABOUT_HEAD = (
    "run",
    "model",
    "layers × width",
    "dtype",
    "stored as",
    "device",
    "seed",
    "captured",
    "took",
    "size",
    "with",
)
#: Tables of each run, and the queries that make them.
RUN_TABLES = ("references", "message_means", "roles", "steps", "top_tokens", "residual", "residual_error")


def _of(card: dict, rows: list[dict]) -> list[dict]:
    """The rows of one conversation."""
    key = (card["run_id"], card["prompt_id"])
    return [row for row in rows if (row.get("run_id", key[0]), row["prompt_id"]) == key]


def _cards(tables: Tables, runs: list[dict]) -> list[dict]:
    """One card per conversation, with its messages."""
    ids = [run["run_id"] for run in runs]
    by_id = {run["run_id"]: run for run in runs}
    cards = [prompt | {"run": by_id[prompt["run_id"]]} for prompt in tables.rows("prompts", runs=ids)]
    cards.sort(key=lambda card: (ids.index(card["run_id"]), card["prompt_id"]))
    messages = tables.rows("messages", runs=ids)
    snapshots = tables.rows("snapshots", runs=ids)
    labels = tables.rows("labels", runs=ids)
    for index, card in enumerate(cards):
        card |= {
            "index": index, "run_index": ids.index(card["run_id"]), "alone": len(cards) == 1,
            "messages": _of(card, messages), "snapshots": _of(card, snapshots),
            "references": [row["label"] for row in labels if row["run_id"] == card["run_id"]],
        }  # fmt: skip
    return cards


def _run_tables(tables: Tables, run: dict) -> dict[str, pa.Table]:
    """Put the tables of one run on the page, and give them by name."""
    return {name: tables.add(f"{name}-{run['index']}", name, run=run["run_id"]) for name in RUN_TABLES}


def _fill(tables: Tables, card: dict, intra: list[dict]) -> None:
    """Give a conversation its table rows, what its controls offer, and which of its parts there are."""
    values = {"run": card["run_id"], "prompt": card["prompt_id"]}
    own = card["run"]["tables"] | {"cross_layer": tables.add(f"cross_layer-{card['index']}", "cross_layer", **values)}
    card["intra_summary"] = _of(card, intra)
    card["reference_table"] = _of(card, card["run"]["reference_table"])
    card["has"] = {name: table.num_rows > 0 for name, table in own.items()} | {"intra": bool(card["intra_summary"])}
    card["last_step"] = max((row["step"] for row in _of(card, own["steps"].to_pylist())), default=0)
    card["residual_steps"] = sorted({row["step"] for row in _of(card, own["residual"].to_pylist())})
    card["choices"] = {"step": 0, "residual_step": next(iter(card["residual_steps"]), 0)}


def _facts(runs: list[dict], cards: list[dict]) -> list[tuple]:
    """The header's facts: name, value and detail."""
    models = list(dict.fromkeys(run["model_id"] for run in runs))
    read = sum(card["n_prompt_tokens"] for card in cards)
    written = sum(card["n_generated"] for card in cards)
    first, last = runs[0], runs[-1]
    shapes = {(run["num_layers"], run["hidden_size"]) for run in runs}
    when = f"{first['created_at']:%Y-%m-%d %H:%M} UTC"
    return [
        ("Model" if len(models) == 1 else "Models", models[0] if len(models) == 1 else str(len(models)),
         first["arch"] if len(models) == 1 else ", ".join(models[:4])),
        ("Layers × width", f"{first['num_layers']} × {first['hidden_size']}" if len(shapes) == 1 else "differ", ""),
        ("Tokens read", f"{read:,}", f"{sum(len(card['messages']) for card in cards):,} messages"),
        ("Tokens written", f"{written:,}", ""),
        ("Captured", f"{when}", f"to {last['created_at']:%Y-%m-%d %H:%M}" if len(runs) > 1 else
         f"in {(first['finished_at'] - first['created_at']).total_seconds():.1f} s"),
        ("In the lake", _size(sum(run["bytes"] or 0 for run in runs)), ""),
    ]  # fmt: skip


def _contents(cards: list[dict]) -> list[tuple[str, str]]:
    """Anchors and titles for the table of contents."""
    if len(cards) == 1:
        has = cards[0]["has"]
        parts = [
            ("conversation", "Conversation", True), ("intra", "What replying changed", has["intra"]),
            ("references", "Messages against references", has["references"]),
            ("generation", "Generation", has["steps"]),
            ("residual", "Residual stream", has["residual"] or has["cross_layer"]),
            ("about", "About this run", True),
        ]  # fmt: skip
    else:
        parts = [("about", "About these runs", True)]
    return [(anchor, title) for anchor, title, there in parts if there]


def _about(run: dict) -> list[str]:
    """A row of the table about the runs."""
    env = json.loads(run["env_json"] or "{}")
    versions = ", ".join(
        f"{name} {env[name]}" for name in ("alab", "torch", "transformers", "python") if env.get(name)
    )
    return [
        run["run_id"], run["model_id"], f"{run['num_layers']} × {run['hidden_size']}", run["dtype"],
        run["store_dtype"], run["device"], str(run["seed"]), f"{run['created_at']:%Y-%m-%d %H:%M:%S}",
        f"{(run['finished_at'] - run['created_at']).total_seconds():.1f} s", _size(run["bytes"] or 0), versions or "–",
    ]  # fmt: skip


def _size(count: int) -> str:
    """Bytes for a reader."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
