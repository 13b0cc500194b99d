"""What a run is, in one page: `alab inspect`."""

import json
from io import StringIO

from warehouse.assets import query
from warehouse.catalog.runs import Run, open_run
from warehouse.lake.lake import Lake
from warehouse.query import formats

#: The tables of the page, each an analysis of `sql/analyses/runs.sql`.
SECTIONS = {
    "prompts": "FROM run_prompts($run)",
    "steps": "FROM run_steps($run)",
    "sites": "FROM run_sites($run)",
    "files": "FROM run_files($run)",
    "warnings": "FROM run_warnings($run)",
}
#: Names of columns, and rows.
Rows = tuple[list[str], list[tuple]]


def inspect(lake: Lake, name: str, fmt: str = "table") -> str:
    """Everything about a run but its tensors.

    The format `json` is one object with the run's columns and a list per section.

    Raises:
        AlabError: there is no such run.
    """
    with open_run(lake, name) as run:
        facts = {"run_id": run.run_id} | run.rows("runs")[0]
        sections = {section: _section(run, section) for section in SECTIONS}
        worst = run.db.execute(query("worst_layer"), {"run": run.run_id}).fetchone()
    if fmt == "json":
        return json.dumps(_record(facts, sections), indent=2, ensure_ascii=False)
    parts = ["\n".join(f"{key:<12} {value}" for key, value in _head(facts, worst).items())]
    _, warnings = sections.pop("warnings")
    for section, (columns, rows) in sections.items():
        if rows:
            stream = StringIO()
            formats.FORMATS["table"](columns, rows, stream)
            title = f"{section.upper()}  (alab sql \"from run_{section}('{facts['run_id']}')\")"
            parts.append(f"{title}\n{stream.getvalue()}")
    if warnings:
        parts.append("\n".join(["WARNINGS", *(f"{code}: {text}" for _, _, code, text in warnings)]))
    return "\n\n".join(part.rstrip() for part in parts)


def _section(run: Run, section: str) -> Rows:
    cursor = run.db.execute(SECTIONS[section], {"run": run.run_id})
    return [column[0] for column in cursor.description], cursor.fetchall()


def _record(facts: dict, sections: dict[str, Rows]) -> dict:
    record = {key: formats.plain(value) for key, value in facts.items()}
    for key in ("scenario_json", "env_json", "tokenizer_json"):
        record[key.removesuffix("_json")] = json.loads(record.pop(key))
    for section, (columns, rows) in sections.items():
        record[section] = [dict(zip(columns, map(formats.plain, row), strict=True)) for row in rows]
    return record


def _head(run: dict, worst: tuple[int, float] | None) -> dict[str, str]:
    tokenizer = json.loads(run["tokenizer_json"] or "{}")
    tokenizer.pop("chat_template", None)
    environment = json.loads(run["env_json"] or "{}")
    head = {
        "run": run["run_id"],
        "scenario": run["scenario"],
        "model": f"{run['model_id']} ({run['arch']})",
        "shape": f"{run['num_layers']} layers × {run['hidden_size']}, {run['num_heads']} heads "
        f"({run['num_kv_heads']} key-value) × {run['head_dim']}, vocabulary {run['vocab_size']}",
        "precision": f"computed in {run['dtype']} on {run['device']}, "
        f"stored as {run['store_dtype']}",
        "seed": run["seed"],
        "tokenizer": ", ".join(
            f"{key} {formats.cell(value)}" for key, value in tokenizer.items() if value
        ),
        "environment": ", ".join(f"{key} {value}" for key, value in environment.items()),
        "created": f"{run['created_at']:%Y-%m-%d %H:%M:%S} UTC, took "
        f"{(run['finished_at'] - run['created_at']).total_seconds():.1f} s",
    }
    if worst and worst[1] is not None:
        layer, error = worst
        most = f"{error:.1e} of a token's largest value"
        head["residual"] = f"adds up within {most}; worst in layer {layer}"
    return {key: value for key, value in head.items() if value is not None and value != ""}
