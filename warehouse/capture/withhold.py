"""Takes back what turned out wrong: contributions that do not add up are not in the lake."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.lake import store
from warehouse.lake.pages import PageWriter, plain
from warehouse.lake.parquet import open_parquet
from warehouse.lake.schemas import vector
from warehouse.lake.staging import StagedRun


def withhold(staged: StagedRun, layers: Iterable[int], sites: Iterable[str]) -> None:
    """Take some sites of some layers out of a run that is not published yet, states included.

    Args:
        staged: the run; its files are finished.
        layers: layers to rewrite.
        sites: sites that they lose.
    """
    layers, sites = set(layers), set(sites)
    for layer in layers:
        for path in staged.path("activations").glob(f"steps=*/layer={layer:02d}/*.parquet"):
            _without_columns(path, sites)
    for path in staged.path("states").glob("*.parquet") if layers else ():
        _without_rows(path, layers, sites)


def _without_columns(path: Path, sites: set[str]) -> None:
    file = pq.ParquetFile(path)
    schema = pa.schema(
        [_nowhere(field) if field.name in sites else field for field in file.schema_arrow]
    )
    draft = path.with_name(f".{path.name}")
    writer = PageWriter(draft, schema)
    try:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            columns = {
                name: None if name in sites else plain(table.column(name).combine_chunks())
                for name in schema.names
            }
            writer.write(table.num_rows, columns)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    store.move(draft, path)


def _nowhere(field: pa.Field) -> pa.Field:
    """A column of vectors that has none, as it is in a file of a layer that never had the site."""
    return field.with_type(vector(None))


def _without_rows(path: Path, layers: set[int], sites: set[str]) -> None:
    file = pq.ParquetFile(path)
    draft = path.with_name(f".{path.name}")
    with open_parquet(draft, file.schema_arrow) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            there = pc.and_(
                pc.is_in(
                    table["layer"], pa.array(sorted(layers), table.schema.field("layer").type)
                ),
                pc.is_in(table["site"], pa.array(sorted(sites))),
            )
            if (rest := table.filter(pc.invert(there))).num_rows:
                writer.write_table(rest)
    store.move(draft, path)
