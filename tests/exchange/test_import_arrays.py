"""What imported arrays may be: bfloat16, column by column, no sites at all, and not finite."""

import json

import numpy as np
import pytest
import torch
from captures import rows
from safetensors.torch import save_file
from test_import import hook_script

from warehouse.errors import AlabError
from warehouse.exchange import importing


def vectors(lake, column: str, layer: int) -> np.ndarray:
    return np.array(
        [
            row[0]
            for row in rows(
                lake, f"SELECT {column} FROM activations WHERE layer = {layer} ORDER BY position"
            )
        ]
    )


def left_out(lake) -> list[str]:
    return sorted(
        row[0] for row in rows(lake, "SELECT message FROM warnings WHERE code = 'import'")
    )


def one_step(folder, fmt: str) -> dict[str, np.ndarray]:
    """A directory of one pass without its file; gives its arrays."""
    hook_script(folder, steps=1)
    path = folder / "tensors" / "step_000.npz"
    with np.load(path) as arrays:
        found = dict(arrays)
    if fmt != "npz":
        path.unlink()
    return found


def test_bfloat16(lake, tmp_path):
    arrays = one_step(tmp_path / "hooks", "safetensors")
    tensors = {key: torch.from_numpy(value).bfloat16() for key, value in arrays.items()}
    tensors["layer_01/hidden_out"][0, 2, :3] = torch.tensor([torch.inf, -0.0, 3e38])
    save_file(tensors, tmp_path / "hooks" / "tensors" / "step_000.safetensors")
    importing.import_run(lake, tmp_path / "hooks")
    for layer in range(2):
        for site in ("hidden_in", "hidden_out"):
            expected = tensors[f"layer_{layer:02d}/{site}"][0].float().numpy()
            np.testing.assert_array_equal(vectors(lake, site, layer), expected)
    assert rows(lake, "SELECT store_dtype FROM runs") == [("bfloat16",)]


def test_bfloat16_beside_float32(lake, tmp_path):
    arrays = one_step(tmp_path / "hooks", "safetensors")
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    tensors["layer_00/hidden_in"] = tensors["layer_00/hidden_in"].bfloat16()
    save_file(tensors, tmp_path / "hooks" / "tensors" / "step_000.safetensors")
    importing.import_run(lake, tmp_path / "hooks")
    np.testing.assert_array_equal(
        vectors(lake, "hidden_in", 0), tensors["layer_00/hidden_in"][0].float().numpy()
    )
    np.testing.assert_array_equal(vectors(lake, "hidden_in", 1), arrays["layer_01/hidden_in"][0])
    assert rows(lake, "SELECT store_dtype FROM runs") == [("float32",)]


@pytest.mark.parametrize("fmt", ["npz", "npy"])
def test_column_by_column(lake, tmp_path, fmt):
    arrays = {
        key: np.asfortranarray(value) for key, value in one_step(tmp_path / "hooks", fmt).items()
    }
    assert (
        arrays["layer_00/hidden_in"].flags.f_contiguous
        and not arrays["layer_00/hidden_in"].flags.c_contiguous
    )
    if fmt == "npz":
        np.savez_compressed(tmp_path / "hooks" / "tensors" / "step_000.npz", **arrays)
    else:
        for key, value in arrays.items():
            path = tmp_path / "hooks" / "tensors" / "step_000" / f"{key}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, value)
    importing.import_run(lake, tmp_path / "hooks")
    for layer in range(2):
        np.testing.assert_array_equal(
            vectors(lake, "hidden_out", layer), arrays[f"layer_{layer:02d}/hidden_out"][0]
        )
        for head in range(2):
            found = rows(
                lake,
                f"SELECT weights FROM attention WHERE layer = {layer} AND head = {head} ORDER BY position",
            )
            for position, (weights,) in enumerate(found):
                expected = arrays[f"layer_{layer:02d}/attn_weights"][
                    0, head, position, : position + 1
                ]
                np.testing.assert_array_equal(weights, expected)
    states = rows(
        lake,
        "SELECT vector FROM states WHERE layer = 1 AND site = 'hidden_out' AND state = 'initial'",
    )
    np.testing.assert_array_equal(states[0][0], arrays["layer_01/hidden_out"][0, -1])


def test_a_large_array_column_by_column_is_not_read_into_memory(lake, tmp_path, monkeypatch):
    arrays = {
        key: np.asfortranarray(value) for key, value in one_step(tmp_path / "hooks", "npz").items()
    }
    np.savez(tmp_path / "hooks" / "tensors" / "step_000.npz", **arrays)
    monkeypatch.setattr("warehouse.exchange.arrays._MAX_BY_COLUMN", 100)
    with pytest.raises(AlabError, match="stored column by column and too large to be turned"):
        importing.import_run(lake, tmp_path / "hooks")


@pytest.mark.parametrize("fmt", ["npz", "safetensors"])
def test_arrays_that_are_no_sites_are_left_out(lake, tmp_path, fmt):
    arrays = one_step(tmp_path / "hooks", fmt)
    more = {
        "input_ids": np.arange(5), "attention_mask": np.ones((1, 5), bool), "layer_00/hidden_ids": np.ones((1, 5, 8), np.int32),
        "layer_01/router_logits": np.ones((1, 5, 4), np.float32), "loss": np.float32(3.0),
    }  # fmt: skip
    path = tmp_path / "hooks" / "tensors" / f"step_000.{fmt}"
    if fmt == "npz":
        np.savez(path, **arrays, **more, names=np.array(["a", "b"]))
    else:
        tensors = {
            key: torch.from_numpy(np.asarray(value)) for key, value in (arrays | more).items()
        }
        save_file(tensors | {"names": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    importing.import_run(lake, tmp_path / "hooks")
    said = left_out(lake)
    assert [message.split()[2] for message in said] == [
        "attention_mask", "input_ids", "layer_00/hidden_ids", "layer_01/router_logits", "loss", "names"
    ]  # fmt: skip
    assert "not floating-point numbers" in said[0] and "alab has no place for it" in said[3]
    np.testing.assert_array_equal(vectors(lake, "hidden_in", 1), arrays["layer_01/hidden_in"][0])


def test_a_directory_without_any_site_is_refused(lake, tmp_path):
    one_step(tmp_path / "hooks", "npz")
    np.savez(tmp_path / "hooks" / "tensors" / "step_000.npz", input_ids=np.arange(5))
    with pytest.raises(AlabError, match="cannot import"):
        importing.import_run(lake, tmp_path / "hooks")


@pytest.mark.parametrize("told", [False, True])
def test_values_that_are_not_finite_are_counted(lake, tmp_path, told):
    """Whatever run.json says of them; a row of logits that is all NaN was not computed."""
    folder = tmp_path / "hooks"
    arrays = one_step(folder, "npz")
    arrays["layer_01/hidden_out"][0, 1, 2:5] = [np.nan, np.inf, -np.inf]
    arrays["layer_00/attn_weights"][0, 1, 3, 2] = np.nan
    arrays["layer_00/mlp_act"][0, 0, 0] = 70000
    arrays["logits"][0, :3] = np.nan
    arrays["logits"][0, 4, 7] = np.inf
    np.savez(folder / "tensors" / "step_000.npz", **arrays)
    if told:
        sites = [
            (1, "hidden_out"),
            (0, "attention"),
            (0, "mlp_down_in"),
            (None, "logits"),
            (0, "hidden_in"),
        ]
        (folder / "run.json").write_text(json.dumps({"store_dtype": "float16", "sites": [
            {"layer": layer, "site": site, "n_out_of_range": 0, "n_nonfinite": 0} for layer, site in sites
        ]}))  # fmt: skip
    importing.import_run(lake, folder)
    query = "SELECT layer, site, n_nonfinite, n_out_of_range FROM sites WHERE n_nonfinite > 0 OR n_out_of_range > 0 ORDER BY ALL"
    expected = [(0, "attention", 1, 0), (1, "hidden_out", 3, 0), (None, "logits", 1, 0)]
    if told:
        expected.insert(1, (0, "mlp_down_in", 0, 1))
    assert rows(lake, query) == expected
    assert rows(lake, "SELECT message FROM warnings WHERE code = 'nonfinite'") == [
        ("the imported arrays have 5 values that are NaN or infinite",)
    ]


@pytest.mark.parametrize("name", ["../../lake", "models", "a" * 31, 7])
def test_a_fingerprint_that_is_none_is_refused(lake, tmp_path, name):
    folder = hook_script(tmp_path / "hooks", steps=1)
    (folder / "run.json").write_text(json.dumps({"weights_hash": name}))
    with pytest.raises(AlabError, match="which is no fingerprint"):
        importing.import_run(lake, folder)


@pytest.mark.parametrize("by_column", [False, True])
def test_values_beyond_float32_do_not_become_infinite(lake, tmp_path, by_column):
    arrays = one_step(tmp_path / "hooks", "npz")
    wide = arrays["layer_01/hidden_out"].astype(np.float64)
    wide[0, 1, 2] = 1e300
    arrays["layer_01/hidden_out"] = np.asfortranarray(wide) if by_column else wide
    np.savez(tmp_path / "hooks" / "tensors" / "step_000.npz", **arrays)
    with pytest.raises(
        AlabError, match="layer_01/hidden_out has float64 values beyond the range of float32"
    ):
        importing.import_run(lake, tmp_path / "hooks")


@pytest.mark.parametrize("other", ["layer_0/hidden_out", "layer_001/mlp_act"])
def test_two_arrays_for_one_site(lake, tmp_path, other):
    arrays = one_step(tmp_path / "hooks", "npz")
    arrays |= {
        other: arrays["layer_00/hidden_out"] * 2,
        "layer_01/mlp_down_in": arrays["layer_00/hidden_out"],
    }
    np.savez(tmp_path / "hooks" / "tensors" / "step_000.npz", **arrays)
    with pytest.raises(AlabError, match=f"(?=.*{other}).* are both "):
        importing.import_run(lake, tmp_path / "hooks")


@pytest.mark.parametrize("array", [np.ones((5, 8), np.int64), np.ones((5, 8), np.complex64)])
def test_no_array_that_is_a_site(lake, tmp_path, array):
    (tmp_path / "hooks" / "tensors").mkdir(parents=True)
    np.savez(tmp_path / "hooks" / "tensors" / "step_000.npz", **{"layer_00/hidden_out": array})
    with pytest.raises(
        AlabError, match=r"no array in it is a site \(layer_00/hidden_out: it holds (int|complex)64"
    ):
        importing.import_run(lake, tmp_path / "hooks")
