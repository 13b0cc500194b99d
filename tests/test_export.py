"""Export and import: nothing is lost, and nothing hostile gets in."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from synthetic import Shape, make_run

from warehouse import catalog, check, importing
from warehouse.cli import main
from warehouse.errors import AlabError
from warehouse.export import export
from warehouse.lake import Lake
from warehouse.reading import numbers

DATASETS = ("activations", "attention", "outputs", "states")


def everything(lake: Lake, run_id: str, skip: tuple[str, ...] = ()) -> dict[str, list]:
    """Every row of a run, but for the files that hold them."""
    found = {}
    with catalog.connect(lake) as db:
        for name in {*catalog.table_names(), *DATASETS} - {"files", *skip}:
            columns = "* EXCLUDE (run_id, bytes)" if name == "runs" else "* EXCLUDE (run_id)"
            rows = db.execute(f"SELECT {columns} FROM {name} WHERE run_id = ?", [run_id]).fetchall()
            found[name] = sorted(rows, key=repr)
    return found


def hook_script(folder, *, half: bool = False, tokens: int = 5, steps: int = 3, prompts: int = 1, whole: bool = True):
    """A directory as a script with hooks writes it: arrays and little else."""
    rng = np.random.default_rng(0)
    dtype = np.float16 if half else np.float32

    def arrays(count, end):
        weights = np.tril(rng.random((1, 2, count, end)), end - count)
        found = {"embeddings": rng.random((1, count, 8)), "logits": rng.random((1, count, 11))}
        for layer in range(2):
            found |= {f"layer_{layer:02d}/{site}": rng.standard_normal((1, count, 8)) for site in
                      ("hidden_in", "hidden_out", "attn_out", "mlp_down_out")}  # fmt: skip
            found |= {f"layer_{layer:02d}/mlp_act": rng.random((1, count, 12))}
            found |= {f"layer_{layer:02d}/attn_weights": weights}
        return {key: value.astype(dtype) for key, value in found.items()}

    rows = []
    for prompt_id in range(prompts):
        for step in range(steps):
            name = f"tensors/{'more/' if prompt_id else ''}step_{step:03d}.npz"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            np.savez(folder / name, **arrays(1 if step else tokens, tokens + step))
            rows.append({"step": step, "prompt_id": prompt_id, "file": name, "generated_token": f"t{step}"})
    if prompts > 1:
        (folder / "steps.json").write_text(json.dumps({"steps": rows}))
    (folder / "run.json").write_text(json.dumps({"model": "some/model", "name": "by hand"}))
    for sub, name in (("conversation_snapshots", "snapshot_00_system"), ("references", "ref_joy")):
        (folder / sub).mkdir()
        count = 4 if whole else 1
        np.savez(folder / sub / f"{name}.npz", **{k: v for k, v in arrays(count, count).items() if "layer" in k})
    return folder


def test_the_logit_lens_goes_along(lake, tmp_path):
    run_id = make_run(lake, "alpha", Shape(lens=True))
    catalog.sync(lake)
    other = Lake(tmp_path / "other")
    out = export(lake, run_id, tmp_path / "out")
    assert importing.import_run(other, out) == run_id
    with catalog.connect(lake) as db, catalog.connect(other) as copy:
        rows = [one.execute("SELECT * FROM logit_lens ORDER BY ALL").fetchall() for one in (db, copy)]
    assert rows[0] == rows[1]
    assert rows[0]
    assert check.check(other) == []
    some = export(lake, run_id, tmp_path / "some", layers="1", steps="0")
    found = json.loads((some / "logit_lens" / "hidden_out.json").read_text())
    assert {(token["step"], layer["layer"]) for token in found["tokens"] for layer in token["layers"]} == {(0, 1)}
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
    safe = load_file(export(lake, alpha, tmp_path / "b", fmt="safetensors") / "tensors" / "step_001.safetensors")
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
    out = export(lake, alpha, tmp_path / "out", fmt=fmt, sites="q,attention", layers="1", steps="1-2")
    read = pq.read_table if fmt == "parquet" else lambda path: pa.ipc.open_file(path).read_all()
    table = read(out / "activations" / f"layer_01.{fmt}")
    assert table.column_names == ["prompt_id", "step", "kind", "position", "q"]
    with catalog.connect(lake) as db:
        query = "SELECT q FROM activations WHERE run_id = ? AND layer = 1 AND step IN (1, 2) ORDER BY position"
        assert table["q"].to_pylist() == [row[0] for row in db.execute(query, [alpha]).fetchall()]
    assert sorted(path.name for path in out.iterdir()) == [
        "activations", "attention", "logit_lens", "metadata", "states",
    ]  # fmt: skip
    assert read(out / "logit_lens" / f"part-0.{fmt}").num_rows == len(lake_rows(lake, alpha, "logit_lens_of"))
    assert read(out / "attention" / f"layer_01.{fmt}").num_rows == 4


def test_a_selection(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    out = export(lake, alpha, tmp_path / "out", sites="hidden_out,mlp_act,attention", layers="0,2", steps="0")
    assert [path.name for path in (out / "tensors").iterdir()] == ["step_000.npz"]
    with np.load(out / "tensors" / "step_000.npz") as arrays:
        assert set(arrays) == {
            f"layer_{layer:02d}/{site}" for layer in (0, 2) for site in ("hidden_out", "mlp_act", "attn_weights")
        }
    other = Lake(tmp_path / "other")
    run_id = importing.import_run(other, out, name="part")
    with catalog.connect(other) as db:
        query = "SELECT count(*), count(hidden_out), count(q) FROM activations WHERE run_id = ?"
        assert db.execute(query, [run_id]).fetchone() == (24, 24, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "hidden"}, "there is no site 'hidden' in this run\nThere are: hidden_in, hidden_out, q,"),
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


@pytest.mark.parametrize("half", [False, True])
def test_a_hook_scripts_directory(lake, tmp_path, half):
    folder = hook_script(tmp_path / "hooks", half=half, prompts=2)
    run_id = importing.import_run(lake, folder)
    assert run_id.startswith("by-hand_")
    with catalog.connect(lake) as db:
        query = "SELECT model_id, num_layers, hidden_size, vocab_size, store_dtype FROM runs"
        assert db.execute(query).fetchone() == ("some/model", 2, 8, 11, "float16" if half else "float32")
        query = "SELECT prompt_id, step, seq_len, kind, generated_token FROM steps ORDER BY ALL LIMIT 2"
        assert db.execute(query).fetchall() == [(0, 0, 5, "prefill", "t0"), (0, 1, 6, "decode", "t1")]
        query = "SELECT state, label, prompt_id, vector FROM states WHERE layer = 1 AND site = 'hidden_out'"
        states = {row[:3]: row[3] for row in db.execute(query).fetchall()}
        query = "SELECT list(position ORDER BY position) FROM activations WHERE layer = 0 AND prompt_id = 1"
        assert db.execute(query).fetchone() == ([0, 1, 2, 3, 4, 5, 6],)
    with np.load(folder / "references" / "ref_joy.npz") as arrays:
        assert states["reference", "joy", None] == arrays["layer_01/hidden_out"][0, -1].tolist()
    with np.load(folder / "tensors" / "step_000.npz") as arrays:
        assert states["initial", None, 0] == arrays["layer_01/hidden_out"][0, -1].tolist()
    assert ("final", None, 1) in states
    assert ("snapshot", None, 0) in states
    out = export(lake, run_id, tmp_path / "out")
    for name, again in (("step_001", "step_001"), ("more/step_002", "prompt_001/step_002")):
        with np.load(folder / "tensors" / f"{name}.npz") as a, np.load(out / "tensors" / f"{again}.npz") as b:
            assert set(a) == set(b)
            for key in a:
                assert a[key].dtype == b[key].dtype
                np.testing.assert_array_equal(a[key], b[key])
    other = Lake(tmp_path / "other")
    importing.import_run(other, out)
    assert everything(other, run_id) == everything(lake, run_id)


def test_a_value_outside_float16_is_exported_as_it_is(lake, tmp_path):
    folder = hook_script(tmp_path / "hooks", half=True, steps=1)
    path = folder / "tensors" / "step_000.npz"
    arrays = dict(np.load(path))
    arrays["layer_01/hidden_out"] = arrays["layer_01/hidden_out"].astype(np.float32)
    arrays["layer_01/hidden_out"][0, -1, 3] = 70000
    np.savez(path, **arrays)
    sites = [{"layer": 1, "site": "hidden_out", "module": "m", "width": 8, "n_out_of_range": 1, "n_nonfinite": 0}]
    (folder / "run.json").write_text(json.dumps({"store_dtype": "float16", "sites": sites}))
    run_id = importing.import_run(lake, folder)
    catalog.sync(lake)
    out = export(lake, run_id, tmp_path / "out", sites="hidden_out")
    with np.load(out / "tensors" / "step_000.npz") as found:
        assert found["layer_01/hidden_out"][0, -1, 3] == 70000
        assert found["layer_00/hidden_out"].dtype == np.float16
    with np.load(out / "states" / "initial.npz") as found:
        assert found["layer_01/hidden_out"][3] == 70000


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/alab-was-executed", "w"))


def first(folder):
    return folder / "tensors" / "step_000.npz"


def cut(folder):
    first(folder).write_bytes(first(folder).read_bytes()[:-200])


def short(folder):
    """An archive that is whole, with an array that is not."""
    with zipfile.ZipFile(first(folder)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["logits.npy"] = entries["logits.npy"][:-4]
    with zipfile.ZipFile(first(folder), "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def flipped(folder):
    data = bytearray(first(folder).read_bytes())
    data[300] ^= 255
    first(folder).write_bytes(data)


def objects(folder):
    np.savez(first(folder), logits=np.array([Bomb()], dtype=object))


def pickled(folder):
    first(folder).write_bytes(pickle.dumps(Bomb()))


def climbing_key(folder):
    np.savez(first(folder), **{"../../evil": np.zeros((1, 2, 2), np.float32)})


def climbing_file(folder):
    (folder / "steps.json").write_text(json.dumps([{"step": 0, "file": "../outside.npz"}]))
    shutil.copy(first(folder), folder.parent / "outside.npz")


def absolute_file(folder):
    shutil.copy(first(folder), folder.parent / "outside.npz")
    (folder / "steps.json").write_text(json.dumps([{"step": 0, "file": str(folder.parent / "outside.npz")}]))


def link(folder):
    shutil.copy(first(folder), folder.parent / "outside.npz")
    first(folder).unlink()
    first(folder).symlink_to(folder.parent / "outside.npz")


def climbing_id(folder):
    (folder / "run.json").write_text(json.dumps({"run_id": "../../evil"}))


def no_json(folder):
    (folder / "run.json").write_text("{")


def deep_json(folder):
    (folder / "run.json").write_text("[" * 100_000)


def odd_json(folder):
    (folder / "run.json").write_text(json.dumps({"prompts": [{"prompt_id": {"a": 1}}]}))


def odd_environment(folder):
    (folder / "run.json").write_text(json.dumps({"environment": ["python", 3]}))


def odd_scenario(folder):
    (folder / "run.json").write_text(json.dumps({"scenario_json": "[1]"}))


def odd_lens(folder):
    (folder / "run.json").write_text(json.dumps({"folders": ["logit_lens"]}))
    (folder / "logit_lens").mkdir()
    (folder / "logit_lens" / "hidden_out.json").write_text(
        json.dumps({"site": "hidden_out", "tokens": [{"step": 0}]})
    )


def odd_step(folder):
    (folder / "steps.json").write_text(json.dumps([{"step": "first", "file": "tensors/step_000.npz"}]))


def odd_prompt(folder):
    (folder / "steps.json").write_text(json.dumps([{"step": 0, "prompt_id": [1], "file": "tensors/step_000.npz"}]))


def huge(folder):
    (folder / "steps.json").write_text(json.dumps([{"step": 0, "seq_len": 10**18, "file": "tensors/step_000.npz"}]))


def two_in_a_batch(folder):
    np.savez(first(folder), logits=np.zeros((2, 3, 4), np.float32))


def later_tokens(folder):
    np.savez(first(folder), **{"layer_00/attn_weights": np.full((1, 2, 3, 3), 1 / 3, np.float32)})


def other_widths(folder):
    arrays = dict(np.load(folder / "tensors" / "step_001.npz"))
    arrays["layer_00/hidden_in"] = arrays["layer_00/hidden_in"][..., :4]
    np.savez(folder / "tensors" / "step_001.npz", **arrays)


def integers(folder):
    np.savez(first(folder), logits=np.zeros((1, 3, 4), np.int64))


def damaged_state(folder):
    path = folder / "references" / "ref_joy.npz"
    path.write_bytes(path.read_bytes()[:50])


def nothing(folder):
    shutil.rmtree(folder / "tensors")


@pytest.mark.parametrize(
    "harm",
    [cut, short, flipped, objects, pickled, climbing_key, climbing_file, absolute_file, link, climbing_id, no_json,
     odd_environment, odd_scenario, odd_lens, deep_json, odd_json, odd_step, odd_prompt, huge, two_in_a_batch, later_tokens, other_widths, integers,
     damaged_state, nothing],
)  # fmt: skip
def test_damaged_and_hostile_directories_are_refused(lake, tmp_path, harm):
    folder = hook_script(tmp_path / "hooks")
    harm(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlabError, match="cannot import"):
        importing.import_run(lake, folder)
    assert lake.run_ids() == []
    assert not [path for path in lake.root.rglob("*") if path.is_file() and ".empty" not in path.parts]
    assert [path for path in sorted(tmp_path.rglob("*")) if "lab" not in path.parts] == before
    assert not (tmp_path.parent / "evil").exists()


def test_a_damaged_safetensors_file(two_runs, tmp_path, lake):
    out = export(two_runs[0], "alpha", tmp_path / "out", fmt="safetensors")
    path = out / "tensors" / "step_000.safetensors"
    data = path.read_bytes()
    for bad in (data[:-1], b"\xff" * 8 + data[8:], data[:40], b""):
        path.write_bytes(bad)
        with pytest.raises(AlabError, match="cannot import"):
            importing.import_run(lake, out)


def test_a_run_that_is_there_is_not_imported_over(two_runs, tmp_path):
    lake, alpha, _ = two_runs
    out = export(lake, alpha, tmp_path / "out")
    with pytest.raises(AlabError, match=f"already has the run {alpha}"):
        importing.import_run(lake, out)


def test_a_full_disk_leaves_nothing(lake, tmp_path, monkeypatch):
    folder = hook_script(tmp_path / "hooks")
    original, calls = importing.PageWriter, []

    def full(*args):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return original(*args)

    lake.prepare()
    monkeypatch.setattr(importing, "PageWriter", full)
    with pytest.raises(AlabError, match="No space left on device"):
        importing.import_run(lake, folder)
    assert lake.run_ids() == []
    assert not list(lake.staging.iterdir())


def test_the_commands(tmp_path):
    lake = Lake(tmp_path / "lab")
    run_id = make_run(lake, "one")
    options = ["-w", str(lake.warehouse)]
    result = CliRunner().invoke(main, [*options, "export", "one", "-o", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out'}\n")
    result = CliRunner().invoke(main, ["-w", str(tmp_path / "other"), "import", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (0, f"{run_id}\n")
    result = CliRunner().invoke(main, [*options, "import", str(tmp_path / "out"), "--name", "again"])
    assert result.stdout.startswith("again_")
