"""The report: queries → tables → templates → one HTML file, with CSV files beside it."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from warehouse.assets import query
from warehouse.atomic import writing
from warehouse.catalog import catalog
from warehouse.catalog.runs import find_runs
from warehouse.lake.lake import Lake
from warehouse.report import datasets, findings, frame, page
from warehouse.report.cards import COMPARED, MAX_CARDS, cards
from warehouse.report.pairs import pairs
from warehouse.report.tables import Row, Tables, fill_runs
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
#: What `_conversations` gives, where all runs are datasets.
NO_CONVERSATIONS: Row = {
    **dict.fromkeys(("prompts", "facts", "contents", "runs", "sites", "cards", "compared"), ()),
    "conversations": 0,
}


def write_report(
    lake: Lake,
    runs: Iterable[str] = (),
    *,
    out: Path | None = None,
    csv_dir: Path | None = None,
    each: Callable | None = None,
) -> list[Path]:
    """Write the report of some runs, or of all, as `Warehouse.report` and `alab report` do.

    Runs are compared with one another by `each`, an `Each` of `warehouse.cluster.workers`.

    Returns:
        Paths of the files: the HTML file first.

    Raises:
        AlabError: there are no runs, a name means none, or a file cannot be written.
    """
    here = Path() if isinstance(lake.warehouse, str) else lake.warehouse
    out = out or here / "report.html"
    with catalog.connect(lake) as db:
        tables = Tables(lake, db)
        context = collect(lake, tables, find_runs(db, runs), each)
        with writing(out, "--out") as draft:
            draft.write_text(page.render(context), encoding="utf-8")
        return [out, *(_write_csvs(tables, csv_dir) if csv_dir else ())]


def _write_csvs(tables: Tables, folder: Path) -> list[Path]:
    """Write the CSV files of what is on the page; those about pairs only where there are any."""
    names = [name for name, source in CSV_FILES.items() if source in tables.stored]
    paths = [folder / f"{name}.csv" for name in names]
    for name, path in zip(names, paths, strict=True):
        with writing(path, "--csv-dir") as draft:
            tables.relation(name).write_csv(str(draft))
    return paths


def collect(lake: Lake, tables: Tables, run_ids: list[str], each: Callable | None = None) -> Row:
    """Everything the templates show, and the tables for the script."""
    rows = frame.runs_of(tables, run_ids)
    labelled = tables.db.execute(query("datasets"), {"runs": run_ids}).fetchall()
    sets = [run for run in rows if (run["run_id"],) in labelled]
    talks = [run for run in rows if run not in sets]
    shown = _conversations(tables, talks, each) if talks else dict(NO_CONVERSATIONS)
    sections = datasets.datasets(tables, sets) if sets else []
    prompts = shown.pop("prompts")
    origins = [frame.about(run) for run in rows]
    said = frame.warnings(tables, rows, datasets.LEFT_OUT if sets else ())
    if sections:
        shown["facts"] = datasets.facts(rows, sections, prompts)
        anchors = datasets.contents(sections, len(rows) == 1)
        shown["contents"] = [*shown["contents"][:-1], *anchors]
        shown["contents"] += [("about", "About these runs")] if len(rows) > 1 else []
    return {
        "title": rows[0]["scenario"] if len(rows) == 1 else f"{len(rows)} runs",
        "warehouse": Path(lake.warehouse).name,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        **said,
        **shown,
        "datasets": sections,
        "about_head": list(origins[0]),
        "about_rows": [list(row.values()) for row in origins],
        "registry": _registry(tables, talks, shown, bool(sections)),
        "packed": dict(sorted(tables.packed.items())),
    }


def _conversations(tables: Tables, rows: list[Row], each: Callable | None) -> Row:
    """What the templates show of the runs whose prompts are conversations."""
    ids = [run["run_id"] for run in rows]
    prompts = tables.rows("prompts", runs=ids)
    present = {row["site"] for row in tables.rows("sites", runs=ids) if row["layers"]}
    sites = [site for site in SITE_ORDER if site in present]
    site = next(iter(sites), SITE_ORDER[0])
    results = fill_runs(tables, rows, prompts[:MAX_CARDS], site)
    conversations = cards(tables, rows, prompts[:MAX_CARDS], results)
    comparison = pairs(tables, rows, site, each)
    summary = results["intra_summary"]
    overall = None
    if len(prompts) > 1:
        overall = findings.overall(tables, rows, prompts, results, comparison, site)
    return {
        "prompts": prompts,
        "facts": frame.facts(rows, prompts),
        "contents": frame.contents(rows, conversations, results),
        "runs": rows,
        "sites": sites,
        "cards": conversations,
        "conversations": len(prompts),
        "compared": [name for name in COMPARED if any(row["compared"] == name for row in summary)],
        "overview": frame.overview(prompts, rows, summary),
        "totals": tables.rows("intra_totals") if summary else [],
        "overall": overall,
        "site": site,
        "pairs": comparison,
    }


def _registry(tables: Tables, rows: list[Row], shown: Row, has_datasets: bool) -> Row:
    """What the page's script reads beside the tables."""
    return {
        "charts": page.charts(has_datasets),
        "measures": page.measures(has_datasets),
        "scales": page.scales({label for card in shown["cards"] for label in card["references"]}),
        "queries": tables.queries,
        "tables": dict(sorted(tables.origin.items())),  # runs are filled side by side
        "sites": shown["sites"],
        "compared": next(iter(shown["compared"]), None),
        "names": {run["run_id"]: run["name"] for run in rows} if len(rows) > 1 else {},
    }
