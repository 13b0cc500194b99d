"""Rectangles of tensors against whole tensors, and against blocks that numpy cuts by hand."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Shape, make_run, vectors, write

from warehouse.api.warehouse import Warehouse
from warehouse.lake import schemas
from warehouse.lake.lake import Lake
from warehouse.lake.pages import PageWriter
from warehouse.lake.windows import STATISTICS, Window, limits, smaller

SHAPE = Shape(layers=2, prompt_tokens=21, steps=3)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("windows") / "lab")
    run = make_run(lake, shape=SHAPE)
    return lake, run, Warehouse(lake.warehouse)


def window(lab, dataset: str, column: str, step: int) -> Window:
    lake, run, _ = lab
    layer = "" if dataset == "outputs" else "layer=01/"
    paths = sorted(lake.root.glob(f"{dataset}/run={run}/*/{layer}*.parquet"))
    return Window(paths, column, (0, step))


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("column", ["hidden_out", "mlp_gate", "logits", "weights"])
def test_rows_are_those_of_the_whole_tensor(lab, column, step):
    dataset = {"logits": "outputs", "weights": "attention"}.get(column, "activations")
    own = window(lab, dataset, column, step)
    site = "attention" if column == "weights" else column
    layer = None if column == "logits" else 1
    whole = lab[2].tensor(lab[1], site, layer=layer, step=step)
    whole = whole if column == "weights" else whole[None]
    assert (own.heads, len(own), own.width) == whole.shape
    for head, values in enumerate(whole):
        assert np.array_equal(own.rows(0, len(own), head), values)
        assert np.array_equal(own.rows(5, 17, head), values[5:17])
        assert np.array_equal(own.rows(5, 17, head, slice(2, 9)), values[5:17, 2:9])
    assert sum(map(len, own.parts())) == (
        whole.size if column != "weights" else SHAPE.heads * sum(p + 1 for p in own.positions)
    )


def causal(tokens: int, heads: int) -> np.ndarray:
    """(tokens, heads, tokens) weights, 0 for later keys."""
    weights = np.random.default_rng(1).random((tokens, heads, tokens)).astype("f4")
    return weights * np.tri(tokens, dtype="f4")[:, None]


@pytest.mark.parametrize("is_ours", [True, False])
def test_attention_in_the_order_of_a_capture_and_in_any_writers_file(tmp_path, is_ours):
    tokens, heads, cut = 30, 3, 11
    weights, path = causal(tokens, heads), tmp_path / "part-0.parquet"
    schema = schemas.tensor_schema("attention", {})
    position, head = (x.reshape(-1) for x in np.mgrid[:tokens, :heads].astype("i4"))
    lists = [weights[p, h, : p + 1] for p, h in zip(position, head, strict=True)]
    zeros = np.zeros(tokens * heads, "i4")
    columns = {"prompt_id": zeros, "step": zeros, "head": head, "position": position}
    if is_ours:
        writer = PageWriter(path, schema)
        for a, b in ((0, cut * heads), (cut * heads, tokens * heads)):
            flat, lengths = np.concatenate(lists[a:b]), np.array([len(x) for x in lists[a:b]])
            writer.write(
                b - a, {n: x[a:b] for n, x in columns.items()} | {"weights": (flat, lengths)}
            )
        writer.close()
    else:
        write(
            path, schema, columns | {"weights": pa.array(lists, schema.field("weights").type)}, 20
        )
    own = Window([path], "weights", (0, 0))
    for h in range(heads):
        assert np.array_equal(own.rows(4, 25, h), weights[4:25, h])


def test_vectors_that_a_model_did_not_compute_are_nan(tmp_path):
    path, schema = tmp_path / "part-0.parquet", schemas.tensor_schema("outputs", {"logits": 4})
    values = vectors(np.arange(12, dtype="f4").reshape(3, 4)).to_pylist()
    values[1] = None
    at = np.arange(3, dtype="i4")
    columns = {"prompt_id": 0 * at, "step": 0 * at, "position": at}
    write(path, schema, columns | {"logits": pa.array(values, schemas.vector(4))})
    rows = Window([path], "logits", (0, 0)).rows(0, 3)
    assert np.isnan(rows).all(1).tolist() == [False, True, False]
    assert limits(iter([rows.reshape(-1)]))["nonfinite"] == 4


def test_a_pass_that_is_not_there(lab):
    with pytest.raises(KeyError):
        window(lab, "activations", "hidden_out", 9)
    with pytest.raises(KeyError):
        Window([], "hidden_out", (0, 0))


BY_HAND = {
    "extreme": lambda block: block.reshape(-1)[np.abs(block).argmax()],
    "mean": lambda block: block.mean(dtype="f8"),
    "first": lambda block: block[0, 0],
}


@pytest.mark.parametrize("statistic", sorted(STATISTICS))
@given(shape=st.tuples(*4 * [st.integers(1, 9)]), seed=st.integers(0, 99))
def test_a_smaller_matrix_says_of_each_block_what_it_promises(statistic, shape, seed):
    rows, columns, down, across = shape
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype("f4")
    small = smaller(values, down, across, statistic)
    for i in range(small.shape[0]):
        for j in range(small.shape[1]):
            block = values[i * down : (i + 1) * down, j * across : (j + 1) * across]
            if statistic == "mean":  # of each row's means where blocks are whole
                expected = block.mean(axis=1, dtype="f8").mean()
            else:
                expected = BY_HAND[statistic](block)
            assert small[i, j] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert small.shape == (-(-rows // down), -(-columns // across))


def test_a_block_with_nan_is_nan():
    values = np.array([[1, np.nan, 3, 4]], "f4")
    for statistic in ("extreme", "mean"):
        assert np.isnan(smaller(values, 1, 2, statistic)).tolist() == [[True, False]]


def test_the_ends_of_values():
    values = np.r_[np.linspace(-2, 1, 3000), np.inf, np.nan].astype("f4")
    ends = limits(iter([values, np.array([7.0], "f4")]))
    assert (ends["low"], ends["high"], ends["nonfinite"]) == (-2, 7, 2)
    assert ends["inner"] == pytest.approx(2, abs=0.01)
    assert limits(iter([np.array([np.nan], "f4")]))["low"] is None
