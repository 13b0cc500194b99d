"""What a run is, in one page: `alab inspect`."""

import json
from io import StringIO

import duckdb

from warehouse.catalog import catalog, runs
from warehouse.lake.lake import Lake
from warehouse.query import formats

#: The tables of the page; each is an analysis of `sql/analyses/runs.sql` by the name `run_<title>`.
SECTIONS = ("prompts", "steps", "sites", "files", "warnings")

_RUN = "SELECT * FROM runs WHERE run_id = ?"
_WORST = "SELECT layer, residual_error FROM layers WHERE run_id = ? ORDER BY residual_error DESC NULLS LAST LIMIT 1"


def inspect(lake: Lake, name: str, fmt: str = "table") -> str:
    """Everything about a run but its tensors.

    Args:
        lake: the warehouse's lake.
        name: a run id, a unique prefix of one, or `latest`.
        fmt: `table`, or `json` for one object with the run's columns and a list per section.

    Raises:
        AlabError: there is no such run.
    """
    with catalog.connect(lake) as db:
        run_id = runs.find_run(db, name)
        cursor = db.execute(_RUN, [run_id])
        run = dict(
            zip((column[0] for column in cursor.description), cursor.fetchone(), strict=True)
        )
        if fmt == "json":
            return json.dumps(_record(db, run), indent=2, ensure_ascii=False)
        parts = ["\n".join(f"{key:<12} {value}" for key, value in _head(db, run).items())]
        for section in SECTIONS[:-1]:
            names, rows = _section(db, section, run_id)
            stream = StringIO()
            formats.FORMATS["table"](names, rows, stream)
            if rows:
                parts.append(
                    f"{section.upper()}  (alab sql \"from run_{section}('{run_id}')\")\n{stream.getvalue()}"
                )
        if warnings := _section(db, "warnings", run_id)[1]:
            parts.append(
                "\n".join(["WARNINGS", *(f"{code}: {message}" for _, _, code, message in warnings)])
            )
    return "\n\n".join(part.rstrip() for part in parts)


def _section(
    db: duckdb.DuckDBPyConnection, section: str, run_id: str
) -> tuple[list[str], list[tuple]]:
    cursor = db.execute(f"FROM run_{section}(?)", [run_id])
    return [column[0] for column in cursor.description], cursor.fetchall()


def _record(db: duckdb.DuckDBPyConnection, run: dict) -> dict:
    record = {key: formats.plain(value) for key, value in run.items()}
    for key in ("scenario_json", "env_json", "tokenizer_json"):
        record[key.removesuffix("_json")] = json.loads(record.pop(key))
    for section in SECTIONS:
        names, rows = _section(db, section, run["run_id"])
        record[section] = [dict(zip(names, map(formats.plain, row), strict=True)) for row in rows]
    return record


def _head(db: duckdb.DuckDBPyConnection, run: dict) -> dict[str, str]:
    tokenizer = json.loads(run["tokenizer_json"] or "{}")
    tokenizer.pop("chat_template", None)
    environment = json.loads(run["env_json"] or "{}")
    head = {
        "run": run["run_id"],
        "scenario": run["scenario"],
        "model": f"{run['model_id']} ({run['arch']})",
        "shape": f"{run['num_layers']} layers × {run['hidden_size']}, {run['num_heads']} heads "
        f"({run['num_kv_heads']} key-value) × {run['head_dim']}, vocabulary {run['vocab_size']}",
        "precision": f"computed in {run['dtype']} on {run['device']}, stored as {run['store_dtype']}",
        "seed": run["seed"],
        "tokenizer": ", ".join(
            f"{key} {formats.cell(value)}" for key, value in tokenizer.items() if value
        ),
        "environment": ", ".join(f"{key} {value}" for key, value in environment.items()),
        "created": f"{run['created_at']:%Y-%m-%d %H:%M:%S} UTC, took "
        f"{(run['finished_at'] - run['created_at']).total_seconds():.1f} s",
    }
    layer, error = db.execute(_WORST, [run["run_id"]]).fetchone() or (None, None)
    if error is not None:
        head["residual"] = (
            f"adds up within {error:.1e} of a token's largest value; worst in layer {layer}"
        )
    return {key: value for key, value in head.items() if value is not None and value != ""}
