"""Import: a hook script's arrays come in whole, and nothing hostile does."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from rows import everything

from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.exchange import importing
from warehouse.exchange.export import export
from warehouse.lake import parts
from warehouse.lake.lake import Lake


def hook_script(
    folder,
    *,
    half: bool = False,
    tokens: int = 5,
    steps: int = 3,
    prompts: int = 1,
    whole: bool = True,
):
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
            rows.append(
                {"step": step, "prompt_id": prompt_id, "file": name, "generated_token": f"t{step}"}
            )
    if prompts > 1:
        (folder / "steps.json").write_text(json.dumps({"steps": rows}))
    (folder / "run.json").write_text(json.dumps({"model": "some/model", "name": "by hand"}))
    for sub, name in (("conversation_snapshots", "snapshot_00_system"), ("references", "ref_joy")):
        (folder / sub).mkdir()
        count = 4 if whole else 1
        np.savez(
            folder / sub / f"{name}.npz",
            **{k: v for k, v in arrays(count, count).items() if "layer" in k},
        )
    return folder


@pytest.mark.parametrize("half", [False, True])
def test_a_hook_scripts_directory(lake, tmp_path, half):
    folder = hook_script(tmp_path / "hooks", half=half, prompts=2)
    run_id = importing.import_run(lake, folder)
    assert run_id.startswith("by-hand_")
    with catalog.connect(lake) as db:
        query = "SELECT model_id, num_layers, hidden_size, vocab_size, store_dtype FROM runs"
        assert db.execute(query).fetchone() == (
            "some/model",
            2,
            8,
            11,
            "float16" if half else "float32",
        )
        query = (
            "SELECT prompt_id, step, seq_len, kind, generated_token FROM steps ORDER BY ALL LIMIT 2"
        )
        assert db.execute(query).fetchall() == [
            (0, 0, 5, "prefill", "t0"),
            (0, 1, 6, "decode", "t1"),
        ]
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
        with (
            np.load(folder / "tensors" / f"{name}.npz") as a,
            np.load(out / "tensors" / f"{again}.npz") as b,
        ):
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
    sites = [
        {
            "layer": 1,
            "site": "hidden_out",
            "module": "m",
            "width": 8,
            "n_out_of_range": 1,
            "n_nonfinite": 0,
        }
    ]
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
    (folder / "steps.json").write_text(
        json.dumps([{"step": 0, "file": str(folder.parent / "outside.npz")}])
    )


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
    (folder / "steps.json").write_text(
        json.dumps([{"step": "first", "file": "tensors/step_000.npz"}])
    )


def odd_prompt(folder):
    (folder / "steps.json").write_text(
        json.dumps([{"step": 0, "prompt_id": [1], "file": "tensors/step_000.npz"}])
    )


def huge(folder):
    (folder / "steps.json").write_text(
        json.dumps([{"step": 0, "seq_len": 10**18, "file": "tensors/step_000.npz"}])
    )


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
    assert not [
        path for path in lake.root.rglob("*") if path.is_file() and ".empty" not in path.parts
    ]
    assert [path for path in sorted(tmp_path.rglob("*")) if "lab" not in path.parts] == before
    assert not (tmp_path.parent / "evil").exists()


def test_a_pass_without_its_arrays_is_named(lake, tmp_path):
    folder = hook_script(tmp_path / "hooks")
    (folder / "run.json").write_text(json.dumps({"folders": []}))
    for row in ({"step": 7}, {"step": 7, "file": "tensors/step_007"}):
        (folder / "steps.json").write_text(json.dumps([row]))
        with pytest.raises(AlabError, match=r"step 7, whose file \S*step_007 is missing"):
            importing.import_run(lake, folder)


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
    original, calls = parts.PageWriter, []

    def full(*args):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return original(*args)

    lake.prepare()
    monkeypatch.setattr(parts, "PageWriter", full)
    with pytest.raises(AlabError, match="No space left on device"):
        importing.import_run(lake, folder)
    assert lake.run_ids() == []
    assert not list(lake.staging.iterdir())
