"""Export: every tensor and row is there, and comes back."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rows import DATASETS, everything
from synthetic import Shape, make_run
from synthetic_dataset import make_dataset

from warehouse.catalog import catalog, check
from warehouse.catalog.runs import numbers
from warehouse.cli.commands import main
from warehouse.errors import AlabError
from warehouse.exchange import importing
from warehouse.exchange.export import export
from warehouse.lake.lake import Lake


def test_the_logit_lens_goes_along(lake, tmp_path):
    run_id = make_run(lake, "alpha", Shape(lens=True))
    catalog.sync(lake)
    other = Lake(tmp_path / "other")
    out = export(lake, run_id, tmp_path / "out")
    assert importing.import_run(other, out) == run_id
    with catalog.connect(lake) as db, catalog.connect(other) as copy:
        rows = [
            one.execute("SELECT * FROM logit_lens ORDER BY ALL").fetchall() for one in (db, copy)
        ]
    assert rows[0] == rows[1]
    assert rows[0]
    assert check.check(other) == []
    some = export(lake, run_id, tmp_path / "some", layers="1", steps="0")
    found = json.loads((some / "logit_lens" / "hidden_out.json").read_text())
    assert {
        (token["step"], layer["layer"]) for token in found["tokens"] for layer in token["layers"]
    } == {(0, 1)}
    importing.import_run(Lake(tmp_path / "third"), some)


def test_a_changed_byte_of_an_imported_tensor_is_found(two_runs, tmp_path):
    lake, *_ = two_runs
    other = Lake(tmp_path / "other")
    importing.import_run(other, export(lake, "alpha", tmp_path / "out"))
    catalog.sync(other)
    for dataset in ("activations", "attention", "outputs"):
        path = next((other.root / dataset).rglob("*.parquet"))
        data = path.read_bytes()
        path.write_bytes(data[:700] + bytes([data[700] ^ 4]) + data[701:])
        assert [p.kind for p in check.check(other)] == []
        assert [p.kind for p in check.check(other, deep=True)] == ["damaged"]
        path.write_bytes(data)


@pytest.mark.parametrize("gone", [
    "tensors/step_001.npz", "references", "conversation_snapshots", "states", "logit_lens", "references/ref_joy.npz",
])  # fmt: skip
def test_an_export_that_lost_a_part_is_refused(lake, tmp_path, gone):
    run_id = make_run(lake, "alpha", Shape(lens=True))
    catalog.sync(lake)
    out = export(lake, run_id, tmp_path / "out")
    shutil.rmtree(out / gone) if (out / gone).is_dir() else (out / gone).unlink()
    other = Lake(tmp_path / "other")
    with pytest.raises(AlabError, match="cannot import"):
        importing.import_run(other, out)
    assert other.run_ids() == []


@pytest.mark.parametrize("fmt", ["npz", "npy", "safetensors"])
def test_round_trip(two_runs, tmp_path, fmt):
    lake, alpha, _ = two_runs
    out = export(lake, "alpha", tmp_path / "out", fmt=fmt)
    other = Lake(tmp_path / "other")
    assert importing.import_run(other, out) == alpha
    before, after = everything(lake, alpha), everything(other, alpha)
    assert all(before[name] for name in (*DATASETS, "steps", "tokens", "top_tokens", "snapshots"))
    for name in before:
        assert after[name] == before[name], name
    assert check.check(other) == []


def test_the_layout(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    out = export(lake, alpha, tmp_path / "out")
    steps = json.loads((out / "steps.json").read_text())
    assert [row["file"] for row in steps] == [f"tensors/step_{step:03d}.npz" for step in range(4)]
    with np.load(out / steps[0]["file"], allow_pickle=False) as arrays:
        assert arrays["layer_02/hidden_in"].shape == (1, 12, 16)
        assert arrays["layer_00/mlp_act"].shape == (1, 12, 24)
        assert arrays["layer_01/attn_weights"].shape == (1, 2, 12, 12)
        np.testing.assert_allclose(arrays["layer_01/attn_weights"].sum(-1), 1, rtol=1e-6)
        assert (arrays["embeddings"].shape, arrays["logits"].shape) == ((1, 12, 16), (1, 12, 40))
    with np.load(out / steps[3]["file"]) as arrays:
        assert arrays["layer_01/attn_weights"].shape == (1, 2, 1, 15)
    assert json.loads((out / "run.json").read_text())["run_id"] == alpha
    index = json.loads((out / "references" / "index.json").read_text())
    assert [row["label"] for row in index] == ["joy", "fear", "calm"]
    with np.load(out / "references" / index[0]["file"]) as arrays:
        assert arrays["layer_00/hidden_out"].shape == (16,)
    assert (out / "conversation_snapshots" / "snapshot_00_system.npz").exists()


def test_other_readers_open_the_files(two_runs, tmp_path):
    from safetensors.numpy import load_file

    lake, alpha, _ = two_runs
    npz = np.load(export(lake, alpha, tmp_path / "a") / "tensors" / "step_001.npz")
    safe = load_file(
        export(lake, alpha, tmp_path / "b", fmt="safetensors") / "tensors" / "step_001.safetensors"
    )
    npy = export(lake, alpha, tmp_path / "c", fmt="npy") / "tensors" / "step_001"
    assert set(npz) == set(safe)
    for key in npz:
        np.testing.assert_array_equal(npz[key], safe[key])
        np.testing.assert_array_equal(npz[key], np.load(npy / f"{key}.npy"))


def lake_rows(lake, run_id: str, analysis: str) -> list[tuple]:
    with catalog.connect(lake) as db:
        return db.execute(f"FROM {analysis}(?)", [run_id]).fetchall()


@pytest.mark.parametrize("fmt", ["parquet", "arrow"])
def test_tables_have_the_rows_of_the_lake(two_runs, tmp_path, fmt):
    lake, alpha, _ = two_runs
    out = export(
        lake, alpha, tmp_path / "out", fmt=fmt, sites="q,attention", layers="1", steps="1-2"
    )
    read = pq.read_table if fmt == "parquet" else lambda path: pa.ipc.open_file(path).read_all()
    table = read(out / "activations" / f"layer_01.{fmt}")
    assert table.column_names == ["prompt_id", "step", "kind", "position", "q"]
    with catalog.connect(lake) as db:
        query = "SELECT q FROM activations WHERE run_id = ? AND layer = 1 AND step IN (1, 2) ORDER BY position"
        assert table["q"].to_pylist() == [row[0] for row in db.execute(query, [alpha]).fetchall()]
    assert sorted(path.name for path in out.iterdir()) == [
        "activations", "attention", "logit_lens", "metadata", "states",
    ]  # fmt: skip
    assert read(out / "logit_lens" / f"part-0.{fmt}").num_rows == len(
        lake_rows(lake, alpha, "logit_lens_of")
    )
    assert read(out / "attention" / f"layer_01.{fmt}").num_rows == 4


def test_a_selection(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    out = export(
        lake, alpha, tmp_path / "out", sites="hidden_out,mlp_act,attention", layers="0,2", steps="0"
    )
    assert [path.name for path in (out / "tensors").iterdir()] == ["step_000.npz"]
    with np.load(out / "tensors" / "step_000.npz") as arrays:
        assert set(arrays) == {
            f"layer_{layer:02d}/{site}"
            for layer in (0, 2)
            for site in ("hidden_out", "mlp_act", "attn_weights")
        }
    other = Lake(tmp_path / "other")
    run_id = importing.import_run(other, out, name="part")
    with catalog.connect(other) as db:
        query = "SELECT count(*), count(hidden_out), count(q) FROM activations WHERE run_id = ?"
        assert db.execute(query, [run_id]).fetchone() == (24, 24, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sites": "hidden"},
            "there is no site 'hidden' in this run\nThere are: hidden_in, hidden_out, q,",
        ),
        ({"layers": "2-5"}, "there is no layer 5 in this run\nThere are: 0-2"),
        ({"layers": "9"}, "there is no layer 9 in this run\nThere are: 0-2"),
        ({"steps": "4"}, "there is no step 4 in this run\nThere are: 0-3"),
        ({"steps": "one"}, "'one' is no step or range of them"),
    ],
)
def test_what_does_not_exist_is_named(two_runs, tmp_path, options, message):
    lake, alpha, _ = two_runs
    with pytest.raises(AlabError, match=message):
        export(lake, alpha, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_ranges():
    assert numbers(None, [1], "layer") is None
    assert numbers("0-2, 4", list(range(9)), "layer") == {0, 1, 2, 4}


def test_an_existing_directory_is_kept_unless_forced(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    out = export(lake, alpha, tmp_path / "out")
    (out / "mine").write_text("kept")
    with pytest.raises(AlabError, match="--force"):
        export(lake, alpha, out)
    assert (out / "mine").exists()
    export(lake, alpha, out, force=True)
    assert not (out / "mine").exists()
    export(lake, alpha, out, fmt="arrow", force=True)
    export(lake, alpha, out, fmt="npy", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_nothing_but_exports(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    for name in ("file", "folder/file"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        with pytest.raises(AlabError, match="is no export"):
            export(lake, alpha, tmp_path / name.split("/")[0], force=True)
        assert path.read_text() == "mine"


def test_the_commands(tmp_path):
    lake = Lake(tmp_path / "lab")
    run_id = make_run(lake, "one")
    options = ["-w", str(lake.warehouse)]
    result = CliRunner().invoke(main, [*options, "export", "one", "-o", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out'}\n")
    result = CliRunner().invoke(
        main, ["-w", str(tmp_path / "other"), "import", str(tmp_path / "out")]
    )
    assert (result.exit_code, result.stdout) == (0, f"{run_id}\n")
    result = CliRunner().invoke(
        main, [*options, "import", str(tmp_path / "out"), "--name", "again"]
    )
    assert result.stdout.startswith("again_")


# --- runs over datasets ---------------------------------------------------------------------------------------


def read_table(path):
    """A table that an export wrote."""
    if path.suffix == ".parquet":
        return pq.read_table(path, partitioning=None)
    with pa.ipc.open_file(path) as file:
        return file.read_all()


@pytest.mark.parametrize("fmt", ["parquet", "arrow"])
def test_a_dataset_comes_as_tables(lake, tmp_path, fmt):
    made = make_dataset(lake)
    out = export(lake, "latest", tmp_path / "out", fmt=fmt)
    labels = read_table(out / "labels" / f"part-0.{fmt}")
    assert labels.drop_columns(["run_id", "prompt_id"]).to_pylist() == made.labels.to_pylist()
    positions = read_table(out / "metadata" / f"positions.{fmt}").to_pylist()
    last = [(row["prompt_id"], row["position"]) for row in positions if row["selector"] == "last"]
    assert sorted(last) == made.selectors["last"]
    rows = read_table(out / "activations" / f"layer_02.{fmt}")
    places = list(zip(*(rows[name].to_pylist() for name in ("prompt_id", "position")), strict=True))
    assert sorted(places) == made.places
    for site in ("hidden_out", "q", "mlp_down_in"):
        found = np.array(rows[site].to_pylist(), "f4")
        assert np.array_equal(found, made.values[site, 2][[made.row[place] for place in places]])
    states = read_table(out / "states" / f"part-0.{fmt}").to_pylist()
    found = {
        row["prompt_id"]: row["vector"]
        for row in states
        if (row["site"], row["layer"]) == ("hidden_out", 1)
    }
    assert {row["state"] for row in states} == {"mean"}
    assert np.array_equal(
        np.array([found[p] for p in made.prompts], "f4"), made.means["hidden_out", 1]
    )


def test_some_layers_and_sites_of_a_dataset(lake, tmp_path):
    make_dataset(lake)
    out = export(lake, "latest", tmp_path / "out", fmt="parquet", sites="q", layers="1")
    assert [path.name for path in (out / "activations").iterdir()] == ["layer_01.parquet"]
    names = read_table(out / "activations" / "layer_01.parquet").column_names
    assert "q" in names
    assert "hidden_out" not in names


@pytest.mark.parametrize("fmt", ["npz", "npy", "safetensors"])
def test_arrays_of_a_dataset_are_refused(lake, tmp_path, fmt):
    made = make_dataset(lake)
    arguments = [
        "-w",
        str(lake.warehouse),
        "export",
        "latest",
        "-o",
        str(tmp_path / "out"),
        "--format",
        fmt,
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"{made.run_id} is a dataset run, which {fmt} has no layout for" in result.output
    assert "--format parquet" in result.output
    assert "lab.matrix(" in result.output
    assert len(result.output.strip().splitlines()) <= 2
    assert not list(tmp_path.glob("*out*"))
