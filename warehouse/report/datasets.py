"""Dataset runs in a report: what the rows are, and how their labels lie in the layers.

Nothing here grows with the rows but what SQL reads: points are those of a sample, norms and
similarities are per label, and examples are a few.
"""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from warehouse.catalog.removal import readable
from warehouse.report import frame, page, projection
from warehouse.report.tables import Row, Tables

#: A column with so many values is a label, each with a colour; a numeric one with more is a scale.
LABELS = range(2, 21)
#: Columns that the charts offer, and those that the page lists.
MAX_OFFERED, MAX_LISTED = 12, 60
#: Rows whose vectors are drawn, chosen with `SEED`, and layers that can be chosen.
POINTS, SEED, MAX_LAYERS = 2000, 0, 32
#: Numbers that all comparisons of labels may read (some 7 s), and layers that they have at least.
NUMBERS, LEAST_LAYERS = 60_000_000, 5
#: Rows shown with their text, letters of it, letters of a value, and messages about rows left out.
EXAMPLES, LETTERS, VALUE, MESSAGES = 6, 600, 80, 12
#: Letters beyond which a value that stands in the prompt is not shown a second time.
REPEATED = 16
#: Codes of warnings that the section of a dataset tells, of thousands of rows perhaps.
LEFT_OUT = ("skipped", "batch")


def datasets(tables: Tables, runs: list[Row]) -> list[Row]:
    """Put the tables of dataset runs on the page, and give what their sections say.

    Args:
        tables: tables of the page.
        runs: rows of `frame.runs_of`, of dataset runs only.
    """
    overviews = {row["run_id"]: row for row in tables.rows("dataset_overview", runs=_ids(runs))}
    return [_section(tables, run, overviews[run["run_id"]]) for run in runs]


def _ids(runs: list[Row]) -> list[str]:
    return [run["run_id"] for run in runs]


def _section(tables: Tables, run: Row, overview: Row) -> Row:
    """All that is said of one dataset run; its charts are in tables named after its index."""
    values = {"run": run["run_id"]}
    columns = tables.rows("dataset_columns", **values)
    offered, others = offer(columns, overview["group_column"])
    sites = tables.rows("dataset_sites", **values)
    site = next((row["site"] for row in sites if row["site"] == "hidden_out" and row["kept"]), None)
    site = site or next((row["site"] for row in sites if row["first"] is not None), "hidden_out")
    selector = _selector(overview["selectors"])
    at = values | {"site": site, "selector": selector}
    layers = [row["layer"] for row in tables.rows("dataset_layers", **values, site=site)]
    tables.add(f"dataset_lengths-{run['index']}", "dataset_lengths", **values)
    width = max((row["width"] or 0 for row in sites if row["site"] == site), default=0)
    compared = _compare(tables, run, at, offered, layers, overview["prompts"] * width)
    points = _project(tables, run, at, offered, layers)
    return {
        "run": run,
        "overview": overview,
        "columns": columns[:MAX_LISTED],
        "columns_more": max(0, len(columns) - MAX_LISTED),
        "offered": offered,
        "others": others,
        "examples": _examples(tables, values),
        "ways": tables.rows("dataset_ways", **values),
        "site": site,
        "selector": selector,
        "layers": layers,
        "lost": tables.rows("dataset_skipped", **values, messages=MESSAGES),
        "sites": _reasons(sites),
        "compared": compared,
        "points": points,
        "choices": {
            "site": site,
            "scale": "centred",
            "label": offered[0]["key"] if offered else None,
            "layer": points["layers"][len(points["layers"]) // 2] if points["layers"] else None,
            "explained": points["explained"],
        },
    }


def offer(columns: list[Row], group: str | None) -> tuple[list[Row], int]:
    """The columns by which points are coloured, and how many more there would be.

    Each has `kind`, text or number, and `key`, its name as the page writes it: HTML keeps white
    space and control characters of an attribute only nearly. The group comes after what is asked
    about, and numbers after labels.
    """
    offered: list[Row] = []
    for column in columns:
        if column["labels"] in LABELS:
            kind = "text"
        elif column["kind"] == "number" and column["labels"] > 1:
            kind = "number"
        else:
            continue
        key = " ".join(page.visible(column["label_column"]).split()) or "∅"
        if any(key == other["key"] for other in offered):
            key = f"{key} ({len(offered)})"
        offered.append({"name": column["label_column"], "key": key, "kind": kind})
    offered.sort(key=lambda one: (one["kind"] == "number", one["name"] == group))
    return offered[:MAX_OFFERED], max(0, len(offered) - MAX_OFFERED)


def _selector(selectors: list[str]) -> str:
    """The selector whose vectors are shown: one position a prompt, where there is such a one."""
    several = ("message_ends", "all", "mean")
    first = sorted(selectors, key=lambda one: (one in several, one != "last"))
    return first[0] if first else "last"


def _spread(layers: list[int], count: int) -> list[int]:
    """So many of the layers, the first and the last among them, evenly."""
    if len(layers) <= count:
        return layers
    return [layers[at] for at in np.linspace(0, len(layers) - 1, count).round().astype(int)]


def _compare(
    tables: Tables, run: Row, at: Row, offered: list[Row], layers: list[int], numbers: int
) -> Row:
    """Put norms and similarities by label on the page; says of which columns and layers."""
    labels = [one for one in offered if one["kind"] == "text"]
    own = labels[: max(1, NUMBERS // max(1, numbers * LEAST_LAYERS))]
    each = max(1, numbers * len(own))
    shown = _spread(layers, max(LEAST_LAYERS, NUMBERS // each))
    values = [at | {"layers": shown, "label": one["name"]} for one in own] if shown else []
    for name in ("dataset_norms", "dataset_similarity") if values else ():
        parts = [_named(tables.query(name, **v), one) for one, v in zip(own, values, strict=True)]
        table = pa.concat_tables(parts)
        tables.put(f"{name}-{run['index']}", table, query=name, each=values)
    return {
        "columns": [one["key"] for one in own],
        "left": [one["name"] for one in labels[len(own) :]],
        "layers": shown,
        "some": len(shown) < len(layers),
        "there": f"dataset_norms-{run['index']}" in tables.packed,
    }


def _named(table: pa.Table, column: Row) -> pa.Table:
    """The rows of one column under the name by which the page knows it."""
    names = pa.array([column["key"]] * table.num_rows, pa.string())
    return table.set_column(table.column_names.index("label_column"), "label_column", names)


def _project(tables: Tables, run: Row, at: Row, offered: list[Row], layers: list[int]) -> Row:
    """Put the points of a sample on the page, a row for each and layer, with all labels offered."""
    prompts = tables.query("dataset_prompts", run=run["run_id"])
    rows = prompts.take(projection.sample(prompts.num_rows, POINTS, SEED))
    tables.store("dataset_sample", rows)
    shown = _spread(layers, MAX_LAYERS)
    planes = list(projection.planes(_vectors(tables, at, shown)))
    explained = {str(plane.layer): _explained(plane) for plane in planes}
    if planes:
        tables.relation("dataset_points", **at)  # its text is what the figure's button shows
        labels = [_values(tables, run, one) for one in offered]
        parts = [_points(plane, offered, labels) for plane in planes]
        name = f"dataset_points-{run['index']}"
        tables.put(name, pa.concat_tables(parts), query="dataset_points", values=at)
        shares = [{"layer": plane.layer, "share": sum(plane.shares)} for plane in planes]
        table = pa.Table.from_pylist(shares)
        tables.put(f"dataset_share-{run['index']}", table, query="dataset_points", values=at)
    return {
        "count": max((len(plane.prompts) for plane in planes), default=0),
        "sampled": rows.num_rows < prompts.num_rows,
        "layers": [plane.layer for plane in planes],
        "some": len(shown) < len(layers),
        "seed": SEED,
        "explained": explained,
    }


def _vectors(
    tables: Tables, at: Row, layers: list[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Prompts and vectors of the sample in each layer that has some, one layer at a time."""
    for layer in layers:
        table = tables.query("dataset_vectors", **at, layer=layer)
        if table.num_rows:
            vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            yield layer, table["prompt_id"].to_numpy(), vectors.reshape(table.num_rows, -1)


def _explained(plane: projection.Plane) -> str:
    across, up = (f"{100 * share:.0f}%" for share in plane.shares)
    return f"{across} of the variance runs across, {up} up"


def _values(tables: Tables, run: Row, column: Row) -> dict[int, str | float | None]:
    """A column of the sample by prompt: texts, or numbers where it is a scale."""
    rows = tables.rows("dataset_values", run=run["run_id"], label=column["name"])
    if column["kind"] == "text":
        return {row["prompt_id"]: row["label"] for row in rows}
    return {row["prompt_id"]: None if row["label"] is None else float(row["label"]) for row in rows}


def _points(plane: projection.Plane, offered: list[Row], labels: list[dict]) -> pa.Table:
    """The points of one layer, and each column that is offered as `label NAME`."""
    prompts = plane.prompts.tolist()
    layer = np.full(len(prompts), plane.layer, np.int32)
    columns = {"layer": pa.array(layer), "prompt_id": pa.array(plane.prompts)}
    columns |= {f"pc{axis + 1}": pa.array(plane.points[:, axis]) for axis in (0, 1)}
    for column, own in zip(offered, labels, strict=True):
        kind = pa.string() if column["kind"] == "text" else pa.float64()
        columns[f"label {column['key']}"] = pa.array([own.get(prompt) for prompt in prompts], kind)
    return pa.table(columns)


def _examples(tables: Tables, values: Row) -> list[Row]:
    """A few rows with their text, and their labels as (column, value)."""
    rows = tables.rows("dataset_examples", **values, examples=EXAMPLES, letters=LETTERS)
    for row in rows:
        fields = list(json.loads(row["fields"] or "{}").items())[2:]
        fields = [(name, value) for name, value in fields if not _repeats(row, value)]
        row["labels"] = [(name, _short(value)) for name, value in fields[:MAX_OFFERED]]
        row["labels_more"] = max(0, len(fields) - MAX_OFFERED)
    return rows


def _repeats(row: Row, value: object) -> bool:
    """Whether a value is a text that a reader has just read in the prompt."""
    return isinstance(value, str) and len(value) > REPEATED and value in (row["prompt_text"] or "")


def _short(value: object) -> str | None:
    """A value of the dataset as it stands in a list, cut where it is long."""
    if value is None or value != value:
        return None
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= VALUE else f"{text[:VALUE]}…"


def _reasons(sites: list[Row]) -> list[tuple[str, list[str]]]:
    """Why sites were not captured: each reason with the sites."""
    reasons: dict[str, list[str]] = {}
    for row in sites:
        if not row["kept"]:
            reasons.setdefault(row["reason"] or "", []).append(row["site"])
    return list(reasons.items())


def facts(runs: list[Row], sections: list[Row], prompts: list[Row]) -> list[tuple[str, str, str]]:
    """The header's facts of a page with datasets: name, value and detail.

    `prompts` are the conversations beside them.
    """
    overviews = [section["overview"] for section in sections]
    models = list(dict.fromkeys(run["model_id"] for run in runs))
    first, shapes = runs[0], {frame.shape(run) for run in runs}
    skipped = sum(row["skipped"] for row in overviews)
    where = [f"in {len(overviews)} datasets"] if len(overviews) > 1 else []
    where += [f"{skipped:,} row{'s' * (skipped > 1)} left out"] if skipped else []
    tokens = sum(row["tokens"] or 0 for row in overviews)
    tokens += sum(prompt["n_prompt_tokens"] or 0 for prompt in prompts)
    name, detail = (models[0], first["arch"]), (str(len(models)), ", ".join(models[:4]))
    return [
        ("Model", *name) if len(models) == 1 else ("Models", *detail),
        ("Layers × width", shapes.pop() if len(shapes) == 1 else "differ", ""),
        ("Prompts", f"{sum(row['prompts'] for row in overviews):,}", ", ".join(where)),
        *([("Conversations", f"{len(prompts):,}", "")] if prompts else []),
        ("Tokens read", f"{tokens:,}", ""),
        ("Captured", f"{first['created_at']:%Y-%m-%d %H:%M} UTC", frame.until(runs)),
        ("In the lake", readable(sum(run["bytes"] or 0 for run in runs)), ""),
    ]


def contents(sections: list[Row], alone: bool) -> list[tuple[str, str]]:
    """Anchors and titles for the table of contents: parts of the only run, or each dataset."""
    if not alone:
        return [(f"dataset-{one['run']['index']}", one["run"]["name"]) for one in sections]
    (one,) = sections
    parts = [
        ("dataset", "What was read", True),
        ("examples", "Examples", bool(one["examples"])),
        (
            "layers",
            "Where the labels lie",
            bool(one["points"]["layers"]) or one["compared"]["there"],
        ),
        ("left-out", "What was left out", True),
        ("about", "About this run", True),
    ]
    return [(anchor, title) for anchor, title, there in parts if there]
