"""The metadata of an imported run: what the directory says, else what its arrays tell."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import product

import pyarrow as pa

from warehouse.catalog import catalog
from warehouse.exchange.counts import Place
from warehouse.exchange.directory import Directory
from warehouse.exchange.import_states import ImportedStates
from warehouse.exchange.layout import OBJECTS, RUN_TABLES
from warehouse.lake.metadata import MetadataWriter
from warehouse.lake.staging import StagedRun
from warehouse.vocabulary import OUTPUTS, SITES


def metadata(
    source: Directory, staged: StagedRun, scenario: str, states: ImportedStates
) -> MetadataWriter:
    """The run's metadata tables: what the directory says, else what its arrays tell."""
    listed = {table: source.listed(table) for table in RUN_TABLES}
    rows: dict[str, Iterable[dict]] = listed | {
        "runs": [_run(source, scenario)],
        "prompts": listed["prompts"] or _prompts(source),
        "steps": (
            one.row | {"prompt_id": one.prompt_id, "seq_len": one.end, "kind": one.kind}
            for one in source.passes
        ),
        "top_tokens": (
            {"prompt_id": one.prompt_id, "step": one.step} | entry
            for one in source.passes
            for entry in one.row.get("top_tokens") or []
        ),
        "reference_states": map(_reference, states.references),
        "snapshots": ({"prompt_id": 0, "is_generated": False} | row for row in states.snapshots),
        "layers": listed["layers"] or [{"layer": layer} for layer in source.layers],
        "sites": source.counts.filled(listed["sites"] or _sites(source)),
        "warnings": listed["warnings"] + _warnings(source, listed["warnings"]),
    }
    schemas = catalog.metadata_schemas()
    writer = MetadataWriter(staged, schemas)
    for table, some in rows.items():
        writer.add(table, (_typed(row, schemas[table]) for row in some))
    return writer


def _reference(row: dict) -> dict:
    messages = row.get("messages")
    return row | {"messages": json.dumps(messages, ensure_ascii=False) if messages else None}


def _warnings(source: Directory, listed: list[dict]) -> list[dict]:
    """What was left out, and which values are not finite where the directory does not say so."""
    left = {item for one in source.passes for item in one.left_out.items()}
    return [
        {"code": "import", "message": f"the array {key} was left out: {why}"}
        for key, why in sorted(left)
    ] + source.counts.warnings(listed)


def _typed(row: dict, schema: pa.Schema) -> dict:
    """The values of a row that the table has columns for, times as times."""
    times = {field.name for field in schema if pa.types.is_timestamp(field.type)}
    return {
        key: datetime.fromisoformat(value) if key in times and isinstance(value, str) else value
        for key, value in row.items()
        if key in schema.names
    }


def _run(source: Directory, scenario: str) -> dict:
    record, now = source.record, datetime.now(UTC).replace(tzinfo=None)
    widths = (width for (_, site), width in source.widths.items() if site.startswith("hidden"))
    objects = {
        column: json.dumps(record.get(key) or {}, ensure_ascii=False)
        for column, key in OBJECTS.items()
    }
    defaults = objects | {
        "num_layers": max(source.layers, default=-1) + 1,
        "hidden_size": next(widths, None),
        "created_at": now,
        "finished_at": now,
        "vocab_size": source.widths.get((None, "logits")),
        "store_dtype": source.counts.store_dtype,
        "model_id": source.text("model_id", "model", "model_name"),
    }
    if not re.fullmatch(r"[0-9a-f]{32}|None", str(record.get("weights_hash"))):
        given = f"the weights_hash {record['weights_hash']!r}"
        raise source.refused(f"run.json has {given}, which is no fingerprint")
    for column, default in objects.items():
        if not isinstance(json.loads(record.get(column) or default), dict):
            raise source.refused(f"run.json has a {column} that is no object")
    known = {key: value for key, value in record.items() if value is not None}
    return defaults | known | {"scenario": scenario, "bytes": 0}


def _prompts(source: Directory) -> list[dict]:
    return [
        {"prompt_id": n, "n_prompt_tokens": passes[0].end, "n_generated": len(passes)}
        for n, passes in source.prompts().items()
    ]


def _sites(source: Directory) -> list[dict]:
    there = source.passes[0].keys
    others: list[Place] = [*product(source.layers, ["attention"]), *product([None], OUTPUTS)]
    return [
        {"layer": place[0], "site": place[1], "width": source.widths.get(place)}
        | {"reason": None if place in there else "not in the imported directory"}
        | {"n_out_of_range": 0, "n_nonfinite": 0}
        for place in [*product(source.layers, SITES), *filter(there.__contains__, others)]
    ]
