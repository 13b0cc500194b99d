"""Arrow schemas of the lake's datasets and the physical layout of its Parquet files.

Apart from `lake`, so that commands that only read the catalog start without importing pyarrow.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.lake.lake import DIGEST, digest, sha256
from warehouse.vocabulary import BULK, SITES


def vector(width: int | None) -> pa.DataType:
    """Type of a vector column: a fixed-size list of float32; a plain list where every value is NULL."""
    element = pa.field("element", pa.float32(), nullable=False)
    return pa.list_(element, width) if width else pa.list_(element)


def _scalars(*names: str) -> list[pa.Field]:
    types = {"kind": pa.string(), "state": pa.string(), "label": pa.string(), "site": pa.string()}
    optional = {"prompt_id", "label"}
    return [pa.field(name, types.get(name, pa.int32()), name in optional) for name in names]


def activation_schema(widths: dict[str, int]) -> pa.Schema:
    """Schema of `activations` for a model whose sites have these widths; absent sites are NULL columns."""
    return pa.schema(
        [
            *_scalars("prompt_id", "step", "kind", "position"),
            *(pa.field(site, vector(widths.get(site))) for site in SITES),
        ]
    )


def attention_schema() -> pa.Schema:
    """Schema of `attention`: `weights` covers the key positions 0 … position."""
    return pa.schema(
        [
            *_scalars("prompt_id", "step", "head", "position"),
            pa.field("weights", vector(None), False),
        ]
    )


def output_schema(widths: dict[str, int]) -> pa.Schema:
    """Schema of `outputs`: `embeddings` is as wide as the embedding, `logits` as the vocabulary."""
    return pa.schema(
        [
            *_scalars("prompt_id", "step", "position"),
            *(pa.field(site, vector(widths.get(site))) for site in ("embeddings", "logits")),
        ]
    )


def state_schema(width: int | None) -> pa.Schema:
    """Schema of `states`: one vector per state, layer and site."""
    return pa.schema(
        [
            *_scalars("prompt_id", "state", "state_index", "label", "layer", "site"),
            pa.field("vector", vector(width), False),
        ]
    )


def lens_schema() -> pa.Schema:
    """Schema of `logit_lens`: one row per token, layer and rank."""
    return pa.schema(
        [
            *_scalars("prompt_id", "step", "position", "layer", "rank", "token_id"),
            pa.field("token", pa.string()),
            pa.field("logprob", pa.float32(), False),
            pa.field("kl", pa.float32()),
            pa.field("site", pa.string(), False),
            pa.field("next_token_id", pa.int32()),
            pa.field("next_rank", pa.int32()),
            pa.field("next_logprob", pa.float32()),
        ]
    )


def label_schema(columns: pa.Schema | None = None) -> pa.Schema:
    """Schema of `labels`: the rows of a dataset, whose own columns keep their types."""
    own = [pa.field("run_id", pa.string(), False), pa.field("prompt_id", pa.int32(), False)]
    return pa.schema([*own, *(columns or ())])


def norm_schema(width: int | None) -> pa.Schema:
    """Schema of a model's `norm.parquet`."""
    return pa.schema(
        [
            ("model", pa.string()),
            ("centred", pa.bool_()),
            ("eps", pa.float64()),
            ("scale", pa.float64()),
            ("softcap", pa.float64()),
            ("error", pa.float64()),
            ("weight", vector(width)),
            ("shift", vector(width)),
        ]
    )


def unembedding_schema(width: int | None) -> pa.Schema:
    """Schema of a model's `unembedding.parquet`: one row per token of the vocabulary."""
    return pa.schema(
        [
            ("token_id", pa.int32()),
            ("token", pa.string()),
            ("bias", pa.float32()),
            ("vector", vector(width)),
        ]
    )


def open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file in the lake's one physical layout.

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


def empty_schema(dataset: str) -> pa.Schema:
    """Schema of a dataset in a lake without runs."""
    return {
        "activations": activation_schema({}),
        "attention": attention_schema(),
        "outputs": output_schema({}),
        "states": state_schema(None),
        "logit_lens": lens_schema(),
        "labels": label_schema(),
        "norm": norm_schema(None),
        "unembedding": unembedding_schema(None),
    }[dataset]


def write_metadata(folder: Path, metadata: dict[str, pa.Table], files: list[dict]) -> None:
    """Write metadata tables of a run into its folder `metadata/run=<run_id>`.

    Args:
        folder: the folder; tables that it has already and that `metadata` has not stay.
        metadata: the tables, `runs` and `files` among them; the size of the run and the rows of
            `files` are filled in here.
        files: rows of `files` for everything but metadata.
    """
    runs = metadata["runs"]
    at = runs.schema.get_field_index("bytes")
    size = pa.array([sum(row["n_bytes"] for row in files)], pa.int64())
    metadata = metadata | {"runs": runs.set_column(at, runs.schema.field(at), size)}
    folder.mkdir(parents=True, exist_ok=True)
    for name in metadata.keys() - {"files"}:
        pq.write_table(metadata[name], folder / f"{name}.parquet", compression="zstd")
    run_id = folder.name.removeprefix("run=")
    paths = [path for path in sorted(folder.glob("*.parquet")) if path.stem != "files"]
    rows = files + [file_row(run_id, path, folder.parents[1]) for path in paths]
    table = pa.Table.from_pylist(rows, metadata["files"].schema)
    table = table.replace_schema_metadata({DIGEST: digest(table.to_pylist())})
    pq.write_table(table, folder / "files.parquet", compression="zstd")


def file_row(run_id: str, path: Path, root: Path) -> dict:
    """One row of the table `files` for a Parquet file below `root`; bulky files get no checksum."""
    relative = path.relative_to(root)
    steps = re.search(r"/steps=(\d+)-(\d+)/", f"/{relative}")
    layer = re.search(r"/layer=(\d+)/", f"/{relative}")
    return {
        "run_id": run_id,
        "dataset": relative.parts[0],
        "path": relative.as_posix(),
        "first_step": int(steps[1]) if steps else None,
        "last_step": int(steps[2]) if steps else None,
        "layer": int(layer[1]) if layer else None,
        "n_rows": pq.read_metadata(path).num_rows,
        "n_bytes": path.stat().st_size,
        "sha256": None if relative.parts[0] in BULK else sha256(path),
    }
