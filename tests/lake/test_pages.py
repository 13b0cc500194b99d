"""Our Parquet pages, read back by pyarrow and by both DuckDBs."""

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.lake import schemas as parquet
from warehouse.lake.pages import PageWriter

RNG = np.random.default_rng(0)
WIDTHS = {"hidden_in": 5, "hidden_out": 5, "mlp_up": 300}


def write_activations(path: Path, groups: list[int]) -> dict[str, np.ndarray]:
    blocks = {
        site: RNG.standard_normal((sum(groups), width)).astype("f4")
        for site, width in WIDTHS.items()
    }
    blocks["hidden_in"][0, :4] = [np.nan, np.inf, -np.inf, -0.0]
    writer = PageWriter(path, parquet.tensor_schema("activations", WIDTHS))
    at = 0
    for step, count in enumerate(groups):
        part = slice(at, at + count)
        numbers = np.arange(at, at + count, dtype=np.int32)
        writer.write(count, {
            "prompt_id": np.zeros(count, np.int32), "step": np.full(count, step, np.int32),
            "kind": ["prefill" if step == 0 else "décode"] * count, "position": numbers - 3,
            **{site: block[part] for site, block in blocks.items()},
        })  # fmt: skip
        at += count
    writer.close()
    assert writer.size == path.stat().st_size
    return blocks


@pytest.mark.parametrize("groups", [[1], [7], [128, 128, 3], [1] * 20])
def test_pyarrow_reads_what_was_written(tmp_path, groups):
    path = tmp_path / "a.parquet"
    blocks = write_activations(path, groups)
    table = pq.read_table(path)
    assert table.schema.equals(parquet.tensor_schema("activations", WIDTHS))
    table.validate(full=True)
    for site, block in blocks.items():
        flat = table.column(site).combine_chunks().flatten().to_numpy()
        assert flat.tobytes() == block.tobytes()
    assert table.column("q").null_count == sum(groups)
    assert table.column("position").to_pylist() == list(range(-3, sum(groups) - 3))
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_row_groups == len(groups)
    statistics = metadata.row_group(0).column(3).statistics
    assert (statistics.min, statistics.max, statistics.null_count) == (-3, groups[0] - 4, 0)


def test_a_changed_byte_never_gives_other_values(tmp_path):
    path, changed = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_activations(path, [40, 40])
    data, whole = path.read_bytes(), pq.read_table(path)
    expected = duckdb.sql(f"SELECT * FROM '{path}'").fetchall()
    noticed = 0
    for at in range(4, len(data) - 4, 97):
        changed.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            assert repr(pq.read_table(changed).to_pydict()) == repr(whole.to_pydict())
            assert repr(duckdb.sql(f"SELECT * FROM '{changed}'").fetchall()) == repr(expected)
        except (pa.ArrowException, OSError, duckdb.Error):
            noticed += 1
    assert noticed > 0.9 * len(range(4, len(data) - 4, 97))


def test_both_duckdbs_read_what_was_written(tmp_path):
    path = tmp_path / "a.parquet"
    blocks = write_activations(path, [64, 5])
    query = (
        f"select count(*), sum(position), count(q), min(kind), max(kind), sum(list_sum(mlp_up))::float "
        f"from '{path}' where step = 1"
    )
    expected = blocks["mlp_up"][64:].sum(dtype="f8")
    row = duckdb.sql(query).fetchall()[0]
    assert row[:5] == (5, sum(range(61, 66)), 0, "décode", "décode")
    assert row[5] == pytest.approx(expected, rel=1e-4)
    shell = Path(sys.executable).with_name("duckdb")
    done = subprocess.run(
        [shell, "-csv", "-noheader", "-c", query], capture_output=True, text=True, check=True
    )
    assert done.stdout.replace('"', "").split(",")[:5] == ["5", "315", "0", "décode", "décode"]
    rows = duckdb.sql(f"select hidden_in from '{path}'").fetchall()
    assert np.array_equal(np.array([r[0] for r in rows], "f4"), blocks["hidden_in"], equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_lists_of_any_lengths(tmp_path_factory, lengths):
    path = tmp_path_factory.mktemp("lists") / "a.parquet"
    lengths = np.array(lengths, np.int32)
    values = RNG.standard_normal(int(lengths.sum())).astype("f4")
    numbers = np.arange(len(lengths), dtype=np.int32)
    writer = PageWriter(path, parquet.tensor_schema("attention", {}))
    for _ in range(2):
        writer.write(len(lengths), {
            "prompt_id": numbers, "step": numbers, "head": numbers, "position": lengths - 1,
            "weights": (values, lengths),
        })  # fmt: skip
    writer.close()
    expected = pa.array(
        np.split(values, np.cumsum(lengths)[:-1]), pa.list_(pa.float32())
    ).to_pylist()
    assert pq.read_table(path).column("weights").to_pylist() == expected * 2
    assert [r[0] for r in duckdb.sql(f"select weights from '{path}'").fetchall()] == expected * 2


def test_a_column_that_must_be_there(tmp_path):
    writer = PageWriter(tmp_path / "a.parquet", parquet.tensor_schema("attention", {}))
    with pytest.raises(ValueError, match="step must not be NULL"):
        writer.write(1, {"prompt_id": np.zeros(1, np.int32)})
    writer.abandon()
