"""The physical layout of Parquet files that pyarrow writes; the bulky ones are those of `pages`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file in the lake's layout.

    Floats are split into byte streams and packed with zstd 1; strings are dictionaries; scalars
    have statistics. The batch size covers a whole column chunk: pyarrow's default of 1,024 values
    made writing 30% slower.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = [field.name for field in schema if pa.types.is_nested(field.type)]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[field.name for field in schema if pa.types.is_string(field.type)],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in vectors},
        write_statistics=[field.name for field in schema if field.name not in vectors],
        write_batch_size=1 << 20,
    )
