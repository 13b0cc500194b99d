"""What tests of the report share: changing a run behind alab's back, and reading a page."""

import base64
import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.catalog import catalog
from warehouse.lake.lake import Lake
from warehouse.lake.manifest import sha256
from warehouse.report.write import write_report


def edit(lake: Lake, run_id: str, table: str, **columns) -> None:
    """Change text columns of a run's metadata table; each takes the rows, one by one, in turn."""
    path = lake.dataset("metadata", run_id) / f"{table}.parquet"
    rows = pq.read_table(path, partitioning=None)
    for name, values in columns.items():
        new = pa.array(
            [values[i % len(values)] for i in range(rows.num_rows)], rows.schema.field(name).type
        )
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), new)
    pq.write_table(rows, path)
    home = path.parent
    files = pq.read_table(home / "files.parquet", partitioning=None).to_pylist()
    for row in files:
        if row["path"].endswith(f"/{table}.parquet"):
            row["sha256"] = sha256(path)
    schema = catalog.metadata_schemas()["files"]
    pq.write_table(pa.Table.from_pylist(files, schema), home / "files.parquet")


def edit_states(lake: Lake, run_id: str, change) -> None:
    """Replace a run's states by what `change` makes of them."""
    path = lake.dataset("states", run_id) / "part-0.parquet"
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def multiply(lake: Lake, run_id: str, count: int) -> None:
    """Make a run of one conversation one of many, each with states of its own."""
    rng = np.random.default_rng(7)

    def copies(table: pa.Table) -> pa.Table:
        own = table.filter(pa.compute.field("prompt_id").is_valid())
        rest = table.filter(pa.compute.field("prompt_id").is_null())
        place = table.schema.get_field_index("prompt_id")
        field = table.schema.field("prompt_id")
        parts = [
            own.set_column(place, field, pa.array([i] * own.num_rows, field.type))
            for i in range(count)
        ]
        return pa.concat_tables([*parts, rest])

    def changed(table: pa.Table) -> pa.Table:
        many = copies(table)
        vectors = np.array(many["vector"].to_pylist(), "f4")
        vectors += rng.standard_normal(vectors.shape).astype("f4") * 0.3
        column = pa.array(list(vectors), table.schema.field("vector").type)
        return many.set_column(
            table.schema.get_field_index("vector"), table.schema.field("vector"), column
        )

    edit_states(lake, run_id, changed)
    for name in (
        "prompts",
        "messages",
        "steps",
        "tokens",
        "top_tokens",
        "snapshots",
        "state_tokens",
    ):
        path = lake.dataset("metadata", run_id) / f"{name}.parquet"
        pq.write_table(copies(pq.read_table(path, partitioning=None)), path)
        edit(lake, run_id, name)


def unpack(html: str) -> dict[str, dict]:
    """The tables that are packed into a page, by name."""
    blocks = re.findall(r'<script type="text/plain" id="data-([\w-]+)">([^<]*)</script>', html)
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in blocks}


def written(lake: Lake, *runs: str) -> str:
    """The report of some runs, or of all; no figure of it is without its table."""
    html = write_report(lake, runs)[0].read_text(encoding="utf-8")
    assert set(re.findall(r'data-table="([^"]+)"', html)) <= set(unpack(html))
    return html
