"""The comparison report: SQL results through templates into one HTML file, with CSV files beside it."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from warehouse import catalog, comparison, page
from warehouse.lake import STATE_SITES, Lake
from warehouse.whole import writing

#: The sites of a state, the one that is shown first ahead.
SITE_ORDER = ("hidden_out", *(site for site in STATE_SITES if site != "hidden_out"))
#: The CSV files, each with the rows that it is made from.
CSV_FILES = {
    "intra_run_report": "intra_summary_rows", "intra_run_cosines": "intra_rows",
    "comparison_report": "pair_summary_rows", "comparison_cosines": "pair_rows",
}  # fmt: skip
ABOUT_HEAD = (
    "run", "model", "layers × width", "dtype", "stored as", "device", "seed", "captured", "took", "size", "with",
)  # fmt: skip


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
        tables = comparison.Tables(lake, db)
        context = collect(lake, tables, _chosen(db, runs))
        with writing(out, "--out") as draft:
            draft.write_text(page.render(context), encoding="utf-8")
        return [out, *(_write_csvs(tables, csv_dir) if csv_dir else ())]


def _chosen(db: duckdb.DuckDBPyConnection, names: Iterable[str]) -> list[str]:
    """Ids of the runs that are meant, without repetition."""
    if names := list(names):
        return list(dict.fromkeys(catalog.find_run(db, name) for name in names))
    catalog.find_run(db, "latest")  # tells what to do where there are none
    return [row[0] for row in db.execute("SELECT run_id FROM runs").fetchall()]


def _write_csvs(tables: comparison.Tables, folder: Path) -> list[Path]:
    """Write the CSV files of what is on the page; those about pairs only where there are any."""
    paths = {name: folder / f"{name}.csv" for name, source in CSV_FILES.items() if source in tables.stored}
    for name, path in paths.items():
        with writing(path, "--csv-dir") as draft:
            tables.relation(name).write_csv(str(draft))
    return list(paths.values())


def collect(lake: Lake, tables: comparison.Tables, run_ids: list[str]) -> dict:
    """Everything the templates show, and the tables for the script."""
    runs = comparison.runs_of(tables, run_ids)
    ids = [run["run_id"] for run in runs]
    prompts = tables.rows("prompts", runs=ids)
    shown = prompts[: comparison.MAX_CARDS]
    summary = comparison.fill_runs(tables, runs, shown)
    cards = comparison.cards(tables, runs, shown, summary)
    captured = tables.rows("sites", runs=ids)
    sites = [site for site in SITE_ORDER if any(row["site"] == site and row["layers"] for row in captured)]
    return {
        "title": runs[0]["scenario"] if len(runs) == 1 else f"{len(runs)} runs",
        "warehouse": lake.warehouse.name,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "facts": _facts(runs, cards),
        "warnings": _warnings(tables, runs),
        "contents": _contents(runs, cards),
        "runs": runs,
        "sites": sites,
        "cards": cards,
        "hidden_cards": len(prompts) - len(cards),
        "overview": bool(summary),
        "totals": tables.rows("intra_totals") if summary else [],
        "pairs": comparison.pairs(tables, runs),
        "about_head": ABOUT_HEAD,
        "about_rows": [_about(run) for run in runs],
        "registry": {
            "charts": page.charts(),
            "queries": tables.queries,
            "tables": dict(sorted(tables.origin.items())),  # runs are filled side by side
            "sites": sites,
            "names": {run["run_id"]: run["name"] for run in runs},
        },
        "packed": dict(sorted(tables.packed.items())),
    }


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


def _warnings(tables: comparison.Tables, runs: list[dict]) -> dict[str, list[str]]:
    """What there is to know about the runs: each message with the names of the runs it concerns."""
    found: dict[str, list[str]] = {}
    names = {run["run_id"]: run["name"] for run in runs}
    for row in tables.rows("warnings", runs=list(names)):
        where = found.setdefault(row["message"], [])
        if names[row["run_id"]] not in where:
            where.append(names[row["run_id"]])
    return found


def _contents(runs: list[dict], cards: list[dict]) -> list[tuple[str, str]]:
    """Anchors and titles for the table of contents."""
    if len(cards) == 1:
        has = cards[0]["has"]
        parts = [
            ("conversation", "Conversation", True), ("intra", "What replying changed", has["intra"]),
            ("references", "Messages against references", has["references"]),
            ("generation", "Generation", has["steps"]),
            ("residual", "Residual stream", has["residual"] or has["cross_layer"]),
            ("logit-lens", "Logit lens", has["logit_lens"]),
            ("about", "About this run", True),
        ]  # fmt: skip
    else:
        parts = [
            ("runs", "What replying changed", True), ("cards", "Run by run", True),
            ("inter", "Between runs", len(runs) > 1),
            ("about", "About these runs", True),
        ]  # fmt: skip
    return [(anchor, title) for anchor, title, there in parts if there]


def _about(run: dict) -> list[str]:
    """A row of the table about the runs."""
    env = json.loads(run["env_json"] or "{}")
    took = (run["finished_at"] - run["created_at"]).total_seconds()
    versions = ", ".join(
        f"{name} {env[name]}" for name in ("alab", "torch", "transformers", "python") if env.get(name)
    )
    return [
        run["run_id"], run["model_id"], f"{run['num_layers']} × {run['hidden_size']}", run["dtype"],
        run["store_dtype"], run["device"], str(run["seed"]), f"{run['created_at']:%Y-%m-%d %H:%M:%S}",
        f"{took:.1f} s", _size(run["bytes"] or 0), versions or "–",
    ]  # fmt: skip


def _size(count: int) -> str:
    """Bytes for a reader."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""
