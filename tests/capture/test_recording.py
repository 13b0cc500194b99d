"""Capture of a model that is loaded already, and `Warehouse.capture`."""

import copy
import doctest

import numpy as np
import pytest
import tiny
import torch

import warehouse
from warehouse.capture import recording as loaded
from warehouse.catalog import check
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake

CHAT = [{"role": "user", "content": "Hello"}]


def test_doctest(tmp_path):
    lab = warehouse.open(tmp_path / "lab")
    lab._lake.prepare()
    given = {
        "model": tiny.model_of("llama"),
        "tokenizer": tiny.tokenizer(),
        "lab": lab,
        "folder": tmp_path / "lab",
    } | {"torch": torch}
    results = doctest.testmod(loaded, extraglobs=given)
    assert results.attempted == 5
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
            tiny.model_of("llama"),
            tiny.tokenizer(),
            CHAT,
            warehouse=tmp_path,
            capture={"everything": 1},
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


IDS = torch.tensor([[5, 9, 2, 7]])


def _hooks(model):
    """Our hooks on a model; transformers leaves some of its own."""
    hooks = [
        hook
        for m in model.modules()
        for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    return [hook for hook in hooks if "warehouse" in (getattr(hook, "__module__", None) or "")]


def _passes(model, tokenizer=None, **options):
    """The two prompts that the tests record: a loop of one's own, then `generate`."""
    with torch.no_grad():
        first = model(IDS, use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        second = model(token, past_key_values=first.past_key_values, use_cache=True)
        third = model(
            torch.tensor([[3, 1]]), past_key_values=second.past_key_values, use_cache=True
        )
        text = model.generate(IDS[:, :3], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return [output.logits.clone() for output in (first, second, third)], token, text


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_recording_keeps_any_pass(tmp_path, attention):
    model, tokenizer = tiny.model_of("llama", attention), tiny.tokenizer()
    expected, token, text = _passes(model)
    with warehouse.recording(
        model, tokenizer, warehouse=tmp_path, capture={"store_dtype": "float32"}
    ) as kept:
        logits, _, again = _passes(model)
    assert all(torch.equal(a, b) for a, b in zip(expected, logits, strict=True))
    assert torch.equal(text, again)
    assert not _hooks(model)

    lab = warehouse.open(tmp_path)
    steps = lab.sql(
        """SELECT prompt_id, step, kind, seq_len, generated_token_id FROM steps
                       WHERE run_id = $run ORDER BY ALL""",
        run=kept.run_id,
    ).fetchall()
    reply = text[0, 3:].tolist()
    assert steps == [
        (0, 0, "prefill", 4, token.item()), (0, 1, "decode", 5, None), (0, 2, "decode", 7, None),
        (1, 0, "prefill", 3, reply[0]), (1, 1, "decode", 4, reply[1]), (1, 2, "decode", 5, reply[2]),
        (1, 3, "decode", 6, None),
    ]  # fmt: skip
    read = torch.tensor([[*IDS[0].tolist(), token.item(), 3, 1]])
    with torch.no_grad():
        whole = model(read, output_hidden_states=True)
    where = {"run": kept.run_id, "site": "hidden_out", "layer": 0}
    tensors = [lab.tensor(**where, prompt=0, step=step) for step in range(3)]
    assert [len(tensor) for tensor in tensors] == [4, 1, 2]
    np.testing.assert_allclose(np.concatenate(tensors), whole.hidden_states[1][0], atol=1e-5)
    stored = lab.sql("SELECT position, logits, embeddings FROM outputs_of($run) WHERE prompt_id = 0 ORDER BY 1",
                     run=kept.run_id).fetchall()  # fmt: skip
    assert [row[0] for row in stored] == list(range(7))
    np.testing.assert_array_equal(
        [row[1] for row in stored], torch.cat([every[0] for every in expected])
    )
    np.testing.assert_allclose([row[2] for row in stored], whole.hidden_states[0][0], atol=1e-6)


def test_generate_gives_logits_for_the_last_prompt_token_only(tmp_path):
    model = tiny.model_of("llama")
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept:
        model.generate(IDS, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    rows = warehouse.open(tmp_path).sql(
        "SELECT position, logits IS NULL, embeddings IS NULL FROM outputs_of($run) ORDER BY 1",
        run=kept.run_id,
    )
    assert rows.fetchall() == [
        (0, True, False),
        (1, True, False),
        (2, True, False),
        (3, False, False),
        (4, False, False),
    ]


def test_a_recording_works_like_any_run(tmp_path):
    model, tokenizer = tiny.model_of("llama"), tiny.tokenizer()
    with warehouse.recording(model, tokenizer, warehouse=tmp_path, name="mine") as kept:
        _passes(model)
    assert kept.run_id.startswith("mine_")
    lab = warehouse.open(tmp_path)
    layers = model.config.num_hidden_layers
    rows = lab.sql(
        "SELECT prompt_id, count(*) FROM intra_run($run) GROUP BY ALL ORDER BY 1", run=kept.run_id
    )
    assert rows.fetchall() == [(0, 4 * layers), (1, 4 * layers)]
    assert lab.sql("SELECT max(residual_error) < 1e-6 FROM layers").fetchall() == [(True,)]
    assert lab.report(out=tmp_path / "report.html")
    assert not check.check(lab._lake)


def test_after_an_exception_nothing_is_kept(tmp_path):
    model = tiny.model_of("llama")
    with (
        pytest.raises(FileNotFoundError, match="mine"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        model(IDS)
        assert _hooks(model)
        raise FileNotFoundError("mine")
    assert warehouse.open(tmp_path).runs().fetchall() == []
    assert not list(Lake(tmp_path).root.glob(".staging/*"))
    assert not _hooks(model)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (lambda model: None, "no forward pass"),
        (lambda model: model(IDS.repeat(2, 1)), "a batch of 2"),
        (lambda model: model(IDS, attention_mask=torch.tensor([[0, 1, 1, 1]])), "masks tokens"),
        (
            lambda model: model(inputs_embeds=torch.zeros(1, 2, model.config.hidden_size)),
            "embeddings",
        ),
        (lambda model: model.model(IDS), "part of the model"),
        (lambda model: model.generate(IDS, max_new_tokens=2, num_beams=2), "a batch of 2"),
        (
            lambda model: model.generate(IDS, max_new_tokens=3, cache_implementation="static"),
            "static cache",
        ),
    ],
)
def test_passes_that_cannot_be_recorded(tmp_path, passes, message):
    model = tiny.model_of("llama")
    with (
        pytest.raises(AlabError, match=message),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        passes(model)
    assert warehouse.open(tmp_path).runs().fetchall() == []


def test_a_cache_from_elsewhere(tmp_path):
    model = tiny.model_of("llama")
    cache = model(IDS, use_cache=True).past_key_values
    with (
        pytest.raises(AlabError, match="a cache of 4 tokens that the pass before it did not leave"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        model(IDS[:, :1], past_key_values=cache)


def test_a_model_in_training_mode(tmp_path):
    model = copy.deepcopy(tiny.model_of("llama")).train()
    with (
        pytest.raises(AlabError, match="training mode"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        pass


@pytest.mark.parametrize("fmt", ["npz", "safetensors", "npy"])
def test_logits_that_were_not_computed_are_nan_and_come_back_as_null(tmp_path, fmt):
    model = tiny.model_of("llama")
    ids = torch.tensor([[5, 20, 30, 40]])
    with warehouse.recording(
        model, tiny.tokenizer(), warehouse=tmp_path / "lab", capture={"store_dtype": "float32"}
    ) as kept:
        model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    lab = warehouse.open(tmp_path / "lab")
    logits = lab.tensor(
        kept.run_id, "logits", as_torch=True
    )  # generate asks for the last token's alone
    assert logits.shape[0] == 4 and logits[:3].isnan().all()
    assert torch.allclose(logits[3], model(ids).logits[0, 3], atol=1e-6)
    again = lab.import_run(lab.export(kept.run_id, tmp_path / "arrays", fmt=fmt), name="again")
    both = "SELECT step, position, embeddings, logits FROM outputs WHERE run_id = $run ORDER BY position"
    assert lab.sql(both, run=kept.run_id).fetchall() == lab.sql(both, run=again).fetchall()


@pytest.mark.parametrize(
    ("family", "heads"), [("llama", 2), ("gpt2", 4), ("falcon", 1), ("falcon:new", 2)]
)
def test_key_value_heads_are_counted(tmp_path, family, heads):
    run = warehouse.record(
        tiny.model_of(family), tiny.tokenizer(), [{"role": "user", "content": "hi"}], warehouse=tmp_path,
        generation={"max_new_tokens": 1},
    )  # fmt: skip
    assert warehouse.open(tmp_path).sql(
        "SELECT num_kv_heads FROM runs WHERE run_id = $r", r=run
    ).fetchall() == [(heads,)]


def test_sequences_that_are_read_in_turns_are_refused(tmp_path):
    model = tiny.model_of("llama")
    with (
        pytest.raises(AlabError, match="that the pass before it did not leave"),
        warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path),
    ):
        one = model(IDS, use_cache=True).past_key_values
        model(IDS + 1, use_cache=True)  # as long, so that its length does not tell it apart
        model(IDS[:, :1], past_key_values=one)


def test_passes_that_give_tuples(tmp_path):
    model = tiny.model_of("llama")
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept:
        cache = model(IDS, use_cache=True, return_dict=False)[1]
        model(IDS[:, :1], past_key_values=cache, return_dict=False)
    steps = warehouse.open(tmp_path).sql(
        "SELECT step, seq_len FROM steps WHERE run_id = $r ORDER BY step", r=kept.run_id
    )
    assert steps.fetchall() == [(0, 4), (1, 5)]


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_a_caller_may_change_what_a_pass_gave(tmp_path, store):
    model = tiny.model_of("llama")
    ids = (
        torch.arange(5, 5 + 128)[None] % tiny.VOCAB
    )  # a row group, which is not copied to be gathered
    runs = []
    for spoil in (False, True):
        with warehouse.recording(
            model, tiny.tokenizer(), warehouse=tmp_path, capture={"store_dtype": store}
        ) as kept, torch.no_grad():  # fmt: skip
            output = model(ids, output_hidden_states=True, output_attentions=True, use_cache=True)
            cache = output.past_key_values
            for _ in range(2):
                if spoil:
                    for tensor in (*output.hidden_states, *output.attentions, output.logits):
                        tensor.zero_()
                output = model(
                    torch.tensor([[7]]),
                    past_key_values=cache,
                    output_hidden_states=True,
                    output_attentions=True,
                )
            if spoil:
                for tensor in (*output.hidden_states, *output.attentions, output.logits):
                    tensor.zero_()
        runs.append(kept.run_id)
    lab = warehouse.open(tmp_path)
    for what in ("activations_of", "attention_of", "outputs_of", "states_of"):
        query = f"SELECT * EXCLUDE (run_id) FROM {what}($run) ORDER BY ALL"
        first, second = (lab.sql(query, run=run).fetchall() for run in runs)
        assert str(first) == str(second)
        assert first


def test_passes_with_inference_mode_and_without(tmp_path):
    model = tiny.model_of("llama")
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept:
        with torch.inference_mode():
            model(IDS)
        with torch.no_grad():
            model(IDS)
    assert len(Lake(tmp_path).metadata(kept.run_id, "prompts")) == 2
