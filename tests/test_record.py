"""Capture of a model that is loaded already, and `Warehouse.capture`."""

import doctest

import numpy as np
import pytest
import tiny
import torch

import warehouse
from warehouse import recording
from warehouse.errors import AlabError

CHAT = [{"role": "user", "content": "Hello"}]


def test_doctest(tmp_path):
    lab = warehouse.open(tmp_path / "lab")
    lab._lake.prepare()
    given = {"model": tiny.model_of("llama"), "tokenizer": tiny.tokenizer(), "lab": lab, "folder": tmp_path / "lab"}
    results = doctest.testmod(recording, extraglobs=given)
    assert results.attempted == 3
    assert results.failed == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_keeps_what_the_model_computes(tmp_path, attention):
    model, tokenizer = tiny.model_of("llama", attention), tiny.tokenizer()
    model.train()
    run = warehouse.record(
        model,
        tokenizer,
        CHAT,
        warehouse=tmp_path,
        generation={"max_new_tokens": 1},
        capture={"store_dtype": "float32"},
    )
    assert model.training
    model.eval()
    ids = tokenizer(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True),
                    add_special_tokens=False)["input_ids"]  # fmt: skip
    with torch.no_grad():
        expected = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    lab = warehouse.open(tmp_path)
    np.testing.assert_allclose(lab.tensor(run, "hidden_out", layer=0), expected, atol=1e-5)
    kept = lab.sql("SELECT count(*) FROM attention WHERE run_id = $run", run=run).fetchall()[0][0]
    assert (kept > 0) == (attention == "eager")


def test_an_option_that_does_not_exist(tmp_path):
    with pytest.raises(AlabError, match="record: "):
        warehouse.record(
            tiny.model_of("llama"), tiny.tokenizer(), CHAT, warehouse=tmp_path, capture={"everything": 1}
        )


def test_warehouse_capture(tmp_path):
    folder = tmp_path / "model"
    tiny.model_of("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    lab = warehouse.open(tmp_path / "lab")
    (run,) = lab.capture({
        "name": "own", "model": {"id": str(folder), "dtype": "float32", "device": "cpu"},
        "prompt": {"messages": CHAT}, "generation": {"max_new_tokens": 2},
    })  # fmt: skip
    assert run.startswith("own_")
    assert lab.runs().fetchall()[0][0] == run
    with pytest.raises(AlabError, match=r"the key .model. is missing"):
        lab.capture({"name": "own"})
