"""The comparison report: SQL results through templates into one HTML file, with CSV files beside it."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from warehouse.atomic import writing
from warehouse.catalog import catalog, runs
from warehouse.catalog.removal import readable
from warehouse.lake.lake import Lake
from warehouse.report import findings, page
from warehouse.report import tables as comparison
from warehouse.vocabulary import STATE_SITES

#: The sites of a state, the one that is shown first ahead.
SITE_ORDER = ("hidden_out", *(site for site in STATE_SITES if site != "hidden_out"))
#: The CSV files, each with the rows that it is made from.
CSV_FILES = {
    "intra_run_report": "intra_summary_rows",
    "intra_run_cosines": "intra_rows",
    "comparison_report": "pair_summary_rows",
    "comparison_cosines": "pair_rows",
}
#: Sites, roles in the order of their colours; a role has the hue of its messages on the page.
SITE_COLOURS = ("hidden_in", "hidden_out", "attn_out", "mlp_down_out")
ROLES = ("user", "tool", "assistant", "developer", "system")
#: Warnings of what is usual, which are a line below the facts.
NOTES = ("dtype",)
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
        return list(dict.fromkeys(runs.find_run(db, name) for name in names))
    runs.find_run(db, "latest")  # tells what to do where there are none
    return [row[0] for row in db.execute("SELECT run_id FROM runs").fetchall()]


def _write_csvs(tables: comparison.Tables, folder: Path) -> list[Path]:
    """Write the CSV files of what is on the page; those about pairs only where there are any."""
    paths = {
        name: folder / f"{name}.csv"
        for name, source in CSV_FILES.items()
        if source in tables.stored
    }
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
    captured = tables.rows("sites", runs=ids)
    sites = [
        site
        for site in SITE_ORDER
        if any(row["site"] == site and row["layers"] for row in captured)
    ]
    site = sites[0] if sites else SITE_ORDER[0]
    found = comparison.fill_runs(tables, runs, shown, site)
    cards = comparison.cards(tables, runs, shown, found)
    pairs = comparison.pairs(tables, runs, site)
    there = {row["compared"] for row in found["intra_summary"]}
    compared = [name for name in comparison.COMPARED if name in there]
    return {
        "title": runs[0]["scenario"] if len(runs) == 1 else f"{len(runs)} runs",
        "warehouse": lake.warehouse.name,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "facts": _facts(runs, prompts),
        "notes": _warnings(tables, runs, True),
        "warnings": _warnings(tables, runs, False),
        "contents": _contents(runs, cards, found),
        "runs": runs,
        "sites": sites,
        "cards": cards,
        "conversations": len(prompts),
        "compared": compared,
        "overview": _overview(prompts, runs, found),
        "totals": tables.rows("intra_totals") if found["intra_summary"] else [],
        "overall": findings.overall(tables, runs, prompts, found, pairs, site)
        if len(prompts) > 1
        else None,
        "site": site,
        "pairs": pairs,
        "about_head": ABOUT_HEAD,
        "about_rows": [_about(run) for run in runs],
        "registry": {
            "charts": page.charts(),
            "measures": page.measures(),
            "scales": _scales(cards),
            "queries": tables.queries,
            "tables": dict(sorted(tables.origin.items())),  # runs are filled side by side
            "sites": sites,
            "compared": next(iter(compared), None),
            "names": {run["run_id"]: run["name"] for run in runs} if len(runs) > 1 else {},
        },
        "packed": dict(sorted(tables.packed.items())),
    }


def _scales(cards: list[dict]) -> dict[str, list[str]]:
    """What has a colour of its own, the same in every chart: by field, its values in the order of the colours."""
    labels = {label for card in cards for label in card["references"]}
    return {
        "label": sorted(labels),
        "site": list(SITE_COLOURS),
        "role": list(ROLES),
        "state": ["initial", "final"],
        "how": ["clearly", "narrowly"],
    }


def _overview(prompts: list[dict], runs: list[dict], found: dict[str, list[dict]]) -> list[dict]:
    """A row for each conversation that was answered, with a card or without one: how far the reply moved it."""
    names = {run["run_id"]: run["name"] for run in runs}
    several = {row["run_id"] for row in prompts if row["prompt_id"]}
    by_key = comparison.by_conversation(found["intra_summary"])
    rows = []
    for index, prompt in enumerate(prompts):
        own = by_key[prompt["run_id"], prompt["prompt_id"]]
        like = [row for row in own if row["compared"] == comparison.COMPARED[0]] or own
        if own:
            name = names[prompt["run_id"]]
            rows.append(
                {
                    "index": index,
                    "title": _title(name, prompt["prompt_id"], len(runs))
                    if prompt["run_id"] in several
                    else name,
                    "reply": prompt["generated_text"],
                    "cut": prompt["stop_reason"] == "length",
                    "cosines": {row["site"]: row["cosine_mean"] for row in like},
                }
            )
    return rows


def _title(run: str, prompt_id: int, runs: int) -> str:
    """Name of a conversation of a run that has several."""
    return f"{run} · {prompt_id}" if runs > 1 else f"conversation {prompt_id}"


def _facts(runs: list[dict], prompts: list[dict]) -> list[tuple]:
    """The header's facts, about everything, whether it has a card or not: name, value and detail."""
    models = list(dict.fromkeys(run["model_id"] for run in runs))
    read = sum(prompt["n_prompt_tokens"] for prompt in prompts)
    written = sum(prompt["n_generated"] for prompt in prompts)
    messages = sum(prompt["n_messages"] or 0 for prompt in prompts)
    cut = sum(prompt["stop_reason"] == "length" and prompt["n_generated"] > 0 for prompt in prompts)
    first, last = runs[0], runs[-1]
    shapes = {(run["num_layers"], run["hidden_size"]) for run in runs}
    when = f"{first['created_at']:%Y-%m-%d %H:%M} UTC"
    several = [
        ("Conversations", f"{len(prompts):,}", f"in {len(runs):,} runs" if len(runs) > 1 else "")
    ]
    return [
        (
            "Model" if len(models) == 1 else "Models",
            models[0] if len(models) == 1 else str(len(models)),
            first["arch"] if len(models) == 1 else ", ".join(models[:4]),
        ),
        (
            "Layers × width",
            f"{first['num_layers']} × {first['hidden_size']}" if len(shapes) == 1 else "differ",
            "",
        ),
        *(several if len(prompts) > 1 else ()),
        ("Tokens read", f"{read:,}", f"{messages:,} messages"),
        (
            "Tokens written",
            f"{written:,}",
            ""
            if not cut
            else "reply cut at its limit"
            if len(prompts) == 1
            else f"{cut:,} of {len(prompts):,} replies cut",
        ),
        (
            "Captured",
            f"{when}",
            f"to {last['created_at']:%Y-%m-%d %H:%M}"
            if len(runs) > 1
            else f"in {(first['finished_at'] - first['created_at']).total_seconds():.1f} s",
        ),
        ("In the lake", readable(sum(run["bytes"] or 0 for run in runs)), ""),
    ]


def _warnings(tables: comparison.Tables, runs: list[dict], notes: bool) -> dict[str, list[str]]:
    """What there is to know about the runs: each message with the names of the runs it concerns.

    Args:
        tables: the page's tables.
        runs: the runs.
        notes: true for what is usual and only to be noted, false for what a reader has to be warned
            of.
    """
    found: dict[str, list[str]] = {}
    names = {run["run_id"]: run["name"] for run in runs}
    for row in tables.rows("warnings", runs=list(names)):
        if (row["code"] in NOTES) == notes:
            where = found.setdefault(row["message"], [])
            if names[row["run_id"]] not in where:
                where.append(names[row["run_id"]])
    return found


def _contents(
    runs: list[dict], cards: list[dict], found: dict[str, list[dict]]
) -> list[tuple[str, str]]:
    """Anchors and titles for the table of contents."""
    if len(cards) == 1:
        has = cards[0]["has"]
        parts = [
            ("findings", "What was found", True),
            ("conversation", "Conversation", True),
            ("intra", "What replying changed", has["intra"]),
            ("references", "Messages against references", has["references"]),
            ("generation", "Generation", has["steps"]),
            ("residual", "Residual stream", has["residual"] or has["cross_layer"]),
            ("logit-lens", "Logit lens", has["logit_lens"]),
            ("about", "About this run", True),
        ]
    else:
        parts = [
            ("differences", "What was asked", len(runs) > 1),
            ("findings", "What was found", True),
            ("runs", "What replying changed", bool(found["intra_summary"])),
            ("inter", "Between runs", len(runs) > 1),
            ("cards", "Run by run" if len(runs) > 1 else "Conversation by conversation", True),
            ("about", "About these runs" if len(runs) > 1 else "About this run", True),
        ]
    return [(anchor, title) for anchor, title, there in parts if there]


def _about(run: dict) -> list[str]:
    """A row of the table about the runs."""
    env = json.loads(run["env_json"] or "{}")
    took = (run["finished_at"] - run["created_at"]).total_seconds()
    versions = ", ".join(
        f"{name} {env[name]}"
        for name in ("alab", "torch", "transformers", "python")
        if env.get(name)
    )
    return [
        run["run_id"],
        run["model_id"],
        f"{run['num_layers']} × {run['hidden_size']}",
        run["dtype"],
        run["store_dtype"],
        run["device"],
        str(run["seed"]),
        f"{run['created_at']:%Y-%m-%d %H:%M:%S}",
        f"{took:.1f} s",
        readable(run["bytes"] or 0),
        versions or "–",
    ]
