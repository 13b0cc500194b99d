"""Reads a directory of arrays, laid out as in `warehouse.exchange.layout`, into a run: `alab import`.

Only `tensors/` has to be there. What `run.json` and `steps.json` do not say is told from the arrays
or left NULL, and snapshots may hold every token: their last one is the state. Nothing in the
    directory is executed, and nothing outside
it is read.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.exchange import lens_json
from warehouse.exchange.counts import Counts
from warehouse.exchange.directory import Directory, Pass
from warehouse.exchange.layout import RUN_TABLES
from warehouse.lake import schemas as parquet
from warehouse.lake.lake import Lake, StagedRun
from warehouse.lake.pages import PageWriter, plain
from warehouse.vocabulary import SITES, STATE_SITES

#: Rows, and values of attention and outputs, that are compressed together.
GROUP_ROWS, GROUP_VALUES = 128, 1 << 20
#: Values of a layer in one part file.
PART_VALUES = 1 << 27

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}")

#: What tells a state: prompt, kind, index and label.
State = tuple[int | None, str, int, str | None]


def import_run(lake: Lake, folder: Path | str, *, name: str | None = None) -> str:
    """Bring a directory into a warehouse.

    Args:
        lake: the warehouse's lake.
        folder: the directory.
        name: give the run a new id that begins with this; None keeps the id that the directory
            names.

    Returns:
        Id of the run.

    Raises:
        AlabError: the directory is damaged, hostile or of another layout, or the run is there
            already. Nothing is written then.
    """
    folder = Path(folder)
    try:
        source = Directory(folder)
        run_id = source.record.get("run_id") if name is None else None
        if run_id is not None and not (isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)):
            raise source.refused(f"run.json has the run_id {run_id!r}, which is no id")
        scenario = name or _text(source.record, "scenario", "name") or folder.resolve().name
        staged = lake.stage(re.sub(r"[^A-Za-z0-9_-]+", "-", scenario), run_id=run_id)
        try:
            _write(staged, source, scenario)
        except BaseException:
            staged.discard()
            raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError) as error:
        raise AlabError(
            f"cannot import {folder}: not of the layout: {error!r}", "Nothing was written."
        ) from error
    except OSError as error:
        raise AlabError(
            f"cannot write to the warehouse {lake.warehouse}: {error.strerror or error}",
            "Nothing of the run was kept. Free some space, or name another warehouse with --warehouse.",
        ) from error
    catalog.register(lake)
    return staged.run_id


def _write(staged: StagedRun, source: Directory, scenario: str) -> None:
    source.counts = Counts(_text(source.record, "store_dtype") or _store_dtype(source))
    for layer in [None, *source.layers]:
        _write_layer(staged, source, layer)
    states = _States(source)
    states.write(staged)
    if "logit_lens" in source.folders:
        _write_lens(staged, source)
    staged.publish(_metadata(source, staged.run_id, scenario, states))


def _write_lens(staged: StagedRun, source: Directory) -> None:
    """Write the rows of the logit lens, a file for each site that there is."""
    lenses = {site: source.json(f"logit_lens/{site}.json") for site in lens_json.SITES}
    if not any(lenses.values()):
        raise source.refused("the folder logit_lens is missing or has no lens")
    for site, lens in lenses.items():
        if lens is not None:
            rows = pa.Table.from_pylist(list(lens_json.read(lens)), parquet.lens_schema())
            _write_part(staged.path("logit_lens", f"{site}.parquet"), rows.schema, iter([rows]), 0)


def _text(record: dict, *keys: str) -> str | None:
    return next((record[key] for key in keys if isinstance(record.get(key), str)), None)


def _write_layer(staged: StagedRun, source: Directory, layer: int | None) -> None:
    """Write the part files of one layer, or those of embeddings and logits."""
    widths = {column: width for (n, column), width in source.widths.items() if n == layer}
    tail = [] if layer is None else [f"layer={layer:02d}"]
    dataset = "outputs" if layer is None else "activations"
    schema = parquet.output_schema(widths) if layer is None else parquet.activation_schema(widths)
    values = sum(widths.values())
    rows = (
        min(GROUP_ROWS, max(1, GROUP_VALUES // values)) if layer is None and values else GROUP_ROWS
    )
    if widths:
        for number, passes in enumerate(_parts(source.passes, lambda one: one.tokens * values)):
            path = staged.path(dataset, _steps(passes), *tail, f"part-{number}.parquet")
            tables = (t for one in passes for t in _vectors(source, one, layer, schema, rows))
            _write_bulk(path, schema, tables, 4 * rows * values)
    if (layer, "attn_weights") in source.passes[0].keys:
        schema = parquet.attention_schema()
        for number, passes in enumerate(
            _parts(source.passes, lambda one: one.tokens * one.end * 8)
        ):
            path = staged.path("attention", _steps(passes), *tail, f"part-{number}.parquet")
            tables = (t for one in passes for t in _attention(source, one, layer, schema))
            _write_bulk(path, schema, tables, 4 * GROUP_VALUES)


def _steps(passes: list[Pass]) -> str:
    steps = [one.step for one in passes]
    return f"steps={min(steps)}-{max(steps)}"


def _parts(passes: list[Pass], size: Callable[[Pass], int]) -> Iterator[list[Pass]]:
    """Passes that go into a part file together."""
    part, total = [], 0
    for one in passes:
        if part and total + size(one) > PART_VALUES:
            yield part
            part, total = [], 0
        part.append(one)
        total += size(one)
    yield part


def _write_part(path: Path, schema: pa.Schema, tables: Iterator[pa.Table], limit: int) -> None:
    """Write tables to a file, small ones together in row groups of about `limit` bytes."""
    with parquet.open_parquet(path, schema) as writer:
        for table in _grouped(tables, limit):
            writer.write_table(table)


def _write_bulk(path: Path, schema: pa.Schema, tables: Iterator[pa.Table], limit: int) -> None:
    """Do as `_write_part` does for tensors of every token, as a capture writes them: with checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = PageWriter(path, schema)
    try:
        for table in _grouped(tables, limit):
            for part in _all_or_none(table):
                writer.write(
                    part.num_rows,
                    {name: plain(part.column(name).combine_chunks()) for name in schema.names},
                )
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def _grouped(tables: Iterator[pa.Table], limit: int) -> Iterator[pa.Table]:
    pending, size = [], 0
    for table in tables:
        pending.append(table)
        size += table.nbytes
        if size >= limit:
            yield pa.concat_tables(pending)
            pending, size = [], 0
    if pending:
        yield pa.concat_tables(pending)


def _all_or_none(table: pa.Table) -> Iterator[pa.Table]:
    """Parts of a table in which each vector column has a value in every row or in none."""
    missing = [
        table.column(f.name).is_null().to_numpy()
        for f in table.schema
        if pa.types.is_nested(f.type)
    ]
    edges = {
        0,
        table.num_rows,
        *(int(edge) + 1 for mask in missing for edge in np.flatnonzero(np.diff(mask))),
    }
    ends = sorted(edges)
    yield from (table.slice(start, end - start) for start, end in pairwise(ends))


def _vectors(
    source: Directory, one: Pass, layer: int | None, schema: pa.Schema, rows: int
) -> Iterator[pa.Table]:
    """Rows of activations or outputs of one pass, a block at a time."""
    reader = source.reader(one.path)
    columns = [column for n, column in one.widths if n == layer]
    blocks = zip(
        *(
            reader.blocks(one.keys[layer, column], rows * one.widths[layer, column])
            for column in columns
        ),
        strict=True,
    )
    position = one.first
    for some in blocks:
        count = len(some[0]) // one.widths[layer, columns[0]]
        given = {
            "prompt_id": np.full(count, one.prompt_id, np.int32),
            "step": np.full(count, one.step, np.int32),
            "kind": [one.kind] * count,
            "position": np.arange(position, position + count, dtype=np.int32),
        } | dict(zip(columns, some, strict=True))
        position += count
        for column, values in zip(columns, some, strict=True):
            source.counts.add(layer, column, values.reshape(count, -1))
        yield pa.table(
            [_array(given.get(field.name), field, count) for field in schema], schema=schema
        )


def _array(values: Any, field: pa.Field, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, field.type)
    if pa.types.is_fixed_size_list(field.type):
        mask = None
        if field.name == "logits":  # a row of NaN was not computed
            mask = pa.array(np.isnan(values.reshape(count, -1)).all(1))
        return pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type, mask=mask)
    return pa.array(values, field.type)


def _attention(
    source: Directory, one: Pass, layer: int | None, schema: pa.Schema
) -> Iterator[pa.Table]:
    """Rows of attention of one pass, the causal half of the weights, a block at a time."""
    key, at, keys = one.keys[layer, "attn_weights"], 0, np.arange(one.end)
    for flat in source.reader(one.path).blocks(key, max(1, GROUP_VALUES // one.end) * one.end):
        block = flat.reshape(-1, one.end)
        number = np.arange(at, at + len(block))
        position = one.first + number % one.tokens
        causal = keys <= position[:, None]
        if block[~causal].any():
            raise source.refused(
                f"{key} of step {one.step} looks at later tokens, which alab has no place for"
            )
        offsets = np.concatenate([[0], np.cumsum(position + 1)]).astype(np.int32)
        source.counts.add(layer, "attention", block[causal])
        weights = pa.ListArray.from_arrays(
            offsets, pa.array(block[causal]), type=schema.field("weights").type
        )
        columns = [
            np.full(len(block), one.prompt_id),
            np.full(len(block), one.step),
            number // one.tokens,
            position,
        ]
        yield pa.table(
            [*(pa.array(column, pa.int32()) for column in columns), weights], schema=schema
        )
        at += len(block)


class _States:
    """The states of the directory.

    Attributes:
        snapshots: rows of the table `snapshots`.
        references: rows of the table `reference_states`.
    """

    def __init__(self, source: Directory):
        self._source = source
        self._vectors: dict[State, tuple[Path, list[str]]] = {}
        self.snapshots = source.index(
            "conversation_snapshots", r"snapshot_(?P<message_index>\d+)_(?P<role>\w+)"
        )
        self.references = source.index("references", r"ref_(?P<label>.+)")
        for number, row in enumerate(self.snapshots):
            row["message_index"] = int(row.get("message_index", number))
            self._add((row.get("prompt_id") or 0, "snapshot", row["message_index"], None), row)
        for number, row in enumerate(self.references):
            row["ref_index"] = int(row.get("ref_index", number))
            self._add((None, "reference", row["ref_index"], str(row["label"])), row)
        for row in source.index("examples", r"example_(?P<state_index>\d+)_(?P<label>.+)"):
            self._add((None, "example", int(row["state_index"]), str(row["label"])), row)
        for row in source.index("states", "(?P<state>initial|final)"):
            self._add(
                (row.get("prompt_id") or 0, row["state"], int(row.get("state_index", 0)), None), row
            )
        if not any(state in ("initial", "final") for _, state, *_ in self._vectors):
            self._add_passes()

    def _add(self, state: State, row: dict) -> None:
        self._vectors[state] = row["path"], list(self._source.reader(row["path"]).specs)

    def _add_passes(self) -> None:
        """The last tokens of the first and the last pass of each prompt."""
        for prompt_id, group in groupby(self._source.passes, key=lambda one: one.prompt_id):
            passes = list(group)
            ends = [("initial", one) for one in passes if one.step == 0]
            ends += [("final", one) for one in passes[-1:] if one.step > 0]
            for state, one in ends:
                self._vectors[prompt_id, state, one.step, None] = one.path, list(one.keys.values())

    def write(self, staged: StagedRun) -> None:
        """Write the run's file of states; none where the directory has no site that states keep."""
        tables = []
        for state, (path, keys) in self._vectors.items():
            found = sorted(
                (int(m[1]), STATE_SITES.index(m[2]), m[0])
                for m in map(_STATE_KEY.fullmatch, keys)
                if m
            )
            if not found:
                continue
            vectors = np.stack([self._source.reader(path).vector(key) for *_, key in found])
            schema = parquet.state_schema(vectors.shape[1])
            scalars = [[value] * len(found) for value in state]
            scalars += [[layer for layer, *_ in found], [STATE_SITES[site] for _, site, _ in found]]
            arrays = [pa.array(v, f.type) for v, f in zip(scalars, schema, strict=False)]
            tables.append(
                pa.table(
                    [*arrays, _array(vectors.reshape(-1), schema.field("vector"), 0)], schema=schema
                )
            )
        if tables:
            _write_part(
                staged.path("states", "part-0.parquet"),
                tables[0].schema,
                iter(tables),
                4 * GROUP_VALUES // 8,
            )


_STATE_KEY = re.compile(rf"layer_(\d{{1,4}})/({'|'.join(STATE_SITES)})")


def _metadata(
    source: Directory, run_id: str, scenario: str, states: _States
) -> dict[str, pa.Table]:
    """The run's metadata tables: what the directory says, else what its arrays tell."""
    told = {table: source.listed(table) for table in RUN_TABLES}
    rows: dict[str, list[dict]] = {
        "runs": [_run(source, scenario)],
        "prompts": told["prompts"] or _prompts(source),
        "messages": told["messages"],
        "steps": [
            one.row | {"prompt_id": one.prompt_id, "seq_len": one.end, "kind": one.kind}
            for one in source.passes
        ],
        "tokens": told["tokens"],
        "state_tokens": told["state_tokens"],
        "top_tokens": [
            {"prompt_id": one.prompt_id, "step": one.step} | entry
            for one in source.passes
            for entry in one.row.get("top_tokens") or []
        ],
        "reference_states": [
            row
            | {
                "messages": json.dumps(row["messages"], ensure_ascii=False)
                if row.get("messages")
                else None
            }
            for row in states.references
        ],
        "snapshots": [{"prompt_id": 0, "is_generated": False} | row for row in states.snapshots],
        "layers": told["layers"] or [{"layer": layer} for layer in source.layers],
        "sites": source.counts.filled(told["sites"] or _sites(source)),
        "warnings": told["warnings"]
        + [
            {"code": "import", "message": f"the array {key} was left out: {why}"}
            for key, why in sorted({item for one in source.passes for item in one.left_out.items()})
        ]
        + source.counts.warnings(told["warnings"]),
        "files": [],
    }
    return {
        name: pa.Table.from_pylist(
            [_typed(row, schema) | {"run_id": run_id} for row in rows.get(name, [])], schema
        )
        for name, schema in catalog.metadata_schemas().items()
    }


def _typed(row: dict, schema: pa.Schema) -> dict:
    """The values of a row that the table has columns for, times as times."""
    times = {field.name for field in schema if pa.types.is_timestamp(field.type)}
    return {
        key: datetime.fromisoformat(value) if key in times and isinstance(value, str) else value
        for key, value in row.items()
        if key in schema.names
    }


def _store_dtype(source: Directory) -> str:
    """The precision that all arrays are in; float32 where they differ."""
    specs = source.reader(source.passes[0].path).specs.values()
    kinds = {"bfloat16" if spec.is_bfloat16 else spec.dtype.name for spec in specs}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"float16", "bfloat16"} else "float32"


def _run(source: Directory, scenario: str) -> dict:
    record, now = source.record, datetime.now(UTC).replace(tzinfo=None)
    hidden = next(
        (width for (layer, site), width in source.widths.items() if site.startswith("hidden")), None
    )
    told = {
        "num_layers": max(source.layers, default=-1) + 1,
        "hidden_size": hidden,
        "created_at": now,
        "finished_at": now,
        "vocab_size": source.widths.get((None, "logits")),
        "store_dtype": source.counts.store_dtype,
        "scenario_json": json.dumps(record.get("config") or {}, ensure_ascii=False),
        "env_json": json.dumps(record.get("environment") or {}, ensure_ascii=False),
        "tokenizer_json": json.dumps(record.get("tokenizer") or {}, ensure_ascii=False),
    }
    told["model_id"] = _text(record, "model_id", "model", "model_name")
    if not re.fullmatch(r"[0-9a-f]{32}|None", str(record.get("weights_hash"))):
        raise source.refused(
            f"run.json has the weights_hash {record['weights_hash']!r}, which is no fingerprint"
        )
    for key in ("scenario_json", "env_json", "tokenizer_json"):
        if not isinstance(json.loads(record.get(key) or told[key]), dict):
            raise source.refused(f"run.json has a {key} that is no object")
    return (
        told
        | {key: value for key, value in record.items() if value is not None}
        | {"scenario": scenario, "bytes": 0}
    )


def _prompts(source: Directory) -> list[dict]:
    rows = []
    for prompt_id, group in groupby(source.passes, key=lambda one: one.prompt_id):
        passes = list(group)
        rows.append(
            {"prompt_id": prompt_id, "n_prompt_tokens": passes[0].end, "n_generated": len(passes)}
        )
    return rows


def _sites(source: Directory) -> list[dict]:
    keys = [(layer, site) for layer in source.layers for site in SITES]
    attention = {layer for layer, column in source.passes[0].keys if column == "attn_weights"}
    keys += [(layer, "attention") for layer in sorted(attention)]
    keys += [(None, site) for site in ("embeddings", "logits") if (None, site) in source.widths]
    there = source.widths.keys() | {(layer, "attention") for layer in attention}
    return [
        {
            "layer": layer,
            "site": site,
            "module": None,
            "width": source.widths.get((layer, site)),
            "reason": None if (layer, site) in there else "not in the imported directory",
            "n_out_of_range": 0,
            "n_nonfinite": 0,
        }
        for layer, site in keys
    ]
