"""Metadata tables are written as their rows come."""

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.catalog import catalog
from warehouse.lake import metadata
from warehouse.lake.metadata import MetadataWriter


def test_rows_go_to_the_file_as_they_come(lake, monkeypatch):
    monkeypatch.setattr(metadata, "GROUP_ROWS", 4)
    schemas = catalog.metadata_schemas()
    staged = lake.stage("some")
    writer = MetadataWriter(staged, schemas, {"runs": [{"scenario": "some", "bytes": 0}]})
    rows = [{"prompt_id": 0, "step": n, "rank": 0} for n in range(11)]
    for row in rows:
        writer.add("top_tokens", [row])
        assert len(writer._rows["top_tokens"]) < 4
    staged.publish(writer)
    file = pq.ParquetFile(lake.dataset("metadata", staged.run_id) / "top_tokens.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4, 4, 3]
    expected = [{"run_id": staged.run_id} | row for row in rows]
    assert file.read().equals(pa.Table.from_pylist(expected, schemas["top_tokens"]))
    assert lake.metadata(staged.run_id, "tokens").schema.equals(schemas["tokens"])
    assert lake.sound_files(staged.run_id).column("n_rows").to_pylist().count(0) == len(schemas) - 3
