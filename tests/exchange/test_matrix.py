"""`lab.matrix` and `lab.batches`: every vector beside its own labels, whatever order the files have."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic_dataset import make_dataset

import warehouse
from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.exchange import matrix
from warehouse.lake.lake import Lake
from warehouse.lake.vectors import VectorFile

SELECTORS = ("last", "name", "message_ends")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    lake = Lake(tmp_path_factory.mktemp("matrix") / "lab")
    made = make_dataset(lake)
    catalog.sync(lake)
    return warehouse.open(lake.warehouse), made


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("site", ["hidden_out", "q", "mlp_down_in"])
def test_vectors_stand_beside_their_labels(made, site, selector):
    lab, truth = made
    for layer in range(3):
        found, labels = lab.matrix("latest", site, layer, selector)
        np.testing.assert_array_equal(found, truth.matrix(site, layer, selector))
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
    places = zip(labels["prompt_id"].to_pylist(), labels["token_position"].to_pylist(), strict=True)
    assert list(places) == truth.selectors[selector]
    for column in truth.labels.column_names:
        assert labels[column].to_pylist() == truth.label(column, selector)
        assert labels.schema.field(column).type == truth.labels.schema.field(column).type


def test_prompts_without_the_field_are_in_neither(made):
    lab, truth = made
    found, labels = lab.matrix(truth.run_id, "hidden_out", 0, "name")
    prompts = labels["prompt_id"].to_pylist()
    assert len(found) == len(prompts) < len(truth.prompts)
    assert not [prompt for prompt in prompts if prompt % 5 == 0 or prompt in truth.skipped]


def test_means_come_from_the_states(made):
    lab, truth = made
    for site, layer in truth.means:
        found, labels = lab.matrix("latest", site, layer, "mean")
        np.testing.assert_array_equal(found, truth.means[site, layer])
        assert labels["prompt_id"].to_pylist() == truth.prompts
        assert labels.column_names == ["prompt_id", *truth.labels.column_names]
        assert labels["mood"].to_pylist() == truth.label("mood", "mean")


def test_a_name_that_arrays_use(made):
    lab, truth = made
    found, _ = lab.matrix("latest", "mlp_act", 2)
    np.testing.assert_array_equal(found, truth.matrix("mlp_down_in", 2))


@pytest.mark.parametrize("window", [1, 4 * 12 * 20, 1 << 28])
@pytest.mark.parametrize("size", [1, 7, 16, 1000])
def test_batches_are_the_matrix_in_order(made, monkeypatch, size, window):
    lab, truth = made
    monkeypatch.setattr(matrix, "WINDOW", window)
    pieces = list(lab.batches("latest", "hidden_out", 1, size, "message_ends"))
    sizes = [len(vectors) for vectors, _ in pieces]
    assert sizes[:-1] == [size] * (len(sizes) - 1)
    assert [labels.num_rows for _, labels in pieces] == sizes
    whole = np.concatenate([vectors for vectors, _ in pieces])
    np.testing.assert_array_equal(whole, truth.matrix("hidden_out", 1, "message_ends"))
    moods = [mood for _, labels in pieces for mood in labels["mood"].to_pylist()]
    assert moods == truth.label("mood", "message_ends")


def test_only_the_layer_is_opened_and_only_the_column_is_read(made, monkeypatch):
    lab, _ = made
    opened = []

    class Watched(VectorFile):
        def __init__(self, path, column):
            opened.append((path.parent.name, column))
            super().__init__(path, column)

    monkeypatch.setattr(matrix, "VectorFile", Watched)
    lab.matrix("latest", "q", 2)
    assert set(opened) == {("layer=02", "q")}
    opened.clear()
    lab.matrix("latest", "hidden_out", 2, "mean")
    assert {column for _, column in opened} == {"vector"}


def test_several_threads_give_the_same(made, monkeypatch):
    lab, truth = made
    monkeypatch.setattr(matrix, "SEVERAL", 0)
    monkeypatch.setattr(matrix.os, "cpu_count", lambda: 4)
    found, _ = lab.matrix("latest", "q", 1, "message_ends")
    np.testing.assert_array_equal(found, truth.matrix("q", 1, "message_ends"))


@pytest.mark.parametrize("low", [0, 8, 13, 16, 24])
def test_rounded_values_and_files_of_other_writers(made, tmp_path, low):
    """Pages are unpacked as pyarrow does, whichever of their bytes are 0."""
    from warehouse.lake import schemas
    from warehouse.lake.pages import PageWriter

    bits = np.random.default_rng(low).standard_normal((30, 9)).astype("f4").view("u4")
    values = (bits >> low << low).view("f4")
    values[3:5] = 0
    zeros = np.zeros(10, "i4")
    scalars = {"prompt_id": zeros, "step": zeros, "kind": ["prefill"] * 10, "position": zeros}
    writer = PageWriter(
        tmp_path / "ours.parquet", schemas.tensor_schema("activations", {"q": 9, "k": 9})
    )
    for start in (0, 10, 20):
        writer.write(10, scalars | {"q": values[start : start + 10], "k": values[:10] * 0})
    writer.close()
    pq.write_table(pq.read_table(tmp_path / "ours.parquet"), tmp_path / "other.parquet")
    for name in ("ours", "other"):
        file = VectorFile(tmp_path / f"{name}.parquet", "q")
        found = np.concatenate([file.read(group) for group in file.groups])
        np.testing.assert_array_equal(found.view("u4"), values.view("u4"))
    assert not VectorFile(tmp_path / "ours.parquet", "k").read(1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope", "q", 1), "there is no run 'nope'"),
        (("latest", "mood", 1), "no site 'mood' in this run\nThere are: hidden_out, q, mlp_down_in, mlp_act"),
        (("latest", "logits", 1), "no site 'logits' in this run\nThere are: hidden_out"),
        (("latest", "k", 1), "no site 'k' in this run"),
        (("latest", "q", 7), "no layer 7 in this run\nThere are: 0-2"),
        (("latest", "q", 1, "nome"), "no selector 'nome' in this run\nThere are: last, mean, message_ends, name"),
        (("latest", "q", 1, "mean"), "no site 'q' in this run\nThere are: hidden_in, hidden_out, attn_out"),
        (("latest", "hidden_in", 1, "mean"), "'mean' keeps nothing of hidden_in in layer 1"),
    ],
)  # fmt: skip
def test_what_is_not_there(made, arguments, message):
    with pytest.raises(AlabError, match=message):
        made[0].matrix(*arguments)
    with pytest.raises(AlabError, match=message):
        made[0].batches(*arguments[:3], 8, *arguments[3:])


def test_a_batch_has_rows(made):
    with pytest.raises(AlabError, match="a batch of 0 rows has none"):
        made[0].batches("latest", "q", 1, 0)


def test_conversations_have_a_matrix_too(two_runs):
    lab = warehouse.open(two_runs[0].warehouse)
    every = lab.tensor("beta", "hidden_out", layer=1)
    last, labels = lab.matrix("beta", "hidden_out", 1)
    np.testing.assert_array_equal(last, every[-1:])
    assert labels.to_pydict() == {"prompt_id": [0], "position": [11]}
    np.testing.assert_array_equal(lab.matrix("beta", "hidden_out", 1, "all")[0], every)
    with pytest.raises(AlabError, match="no selector 'mean' in this run\nThere are: all, last"):
        lab.matrix("beta", "hidden_out", 1, "mean")


def test_what_is_lost_is_no_row_of_noise(tmp_path):
    lake = Lake(tmp_path / "lab")
    run_id = make_dataset(lake).run_id
    lab = warehouse.open(lake.warehouse)
    lab.runs()
    parts = sorted(lake.dataset("activations", run_id).glob("*/layer=01/*.parquet"))
    parts[0].write_bytes(parts[-1].read_bytes())
    with pytest.raises(AlabError, match=r"vectors of .* are not in its files\nWhat is wrong"):
        lab.matrix("latest", "hidden_out", 1)
    parts[0].write_bytes(parts[1].read_bytes()[:-100])
    with pytest.raises(AlabError, match="cannot be read"):
        lab.matrix("latest", "hidden_out", 1)
    parts[0].unlink()
    with pytest.raises(AlabError, match="cannot be read"):
        lab.matrix("latest", "hidden_out", 1)
    assert lab.matrix("latest", "hidden_out", 0)[0].shape == (59, 12)


def test_a_changed_byte_is_noticed(tmp_path):
    lake = Lake(tmp_path / "lab")
    run_id = make_dataset(lake).run_id
    lab = warehouse.open(lake.warehouse)
    path = min(lake.dataset("activations", run_id).glob("*/layer=01/*.parquet"))
    column = next(
        column
        for n in range(14)
        if (column := pq.read_metadata(path).row_group(0).column(n)).path_in_schema.startswith("q.")
    )
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 60] ^= 1
    path.write_bytes(data)
    with pytest.raises(AlabError, match="cannot be read"):
        lab.matrix("latest", "q", 1)
