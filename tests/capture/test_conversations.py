"""Captures of conversations: what is read after a reply, which snapshots there are, and which token each state sits on."""

import copy

import numpy as np
import pytest
import templates
import tiny
import torch
from captures import CHAT, USER, make_scenario, rows, run
from transformers import GPT2Config, GPT2LMHeadModel

import warehouse
from warehouse.capture import conversation as capture
from warehouse.capture import scenarios
from warehouse.errors import AlabError
from warehouse.models import loading as models
from warehouse.models import sites
from warehouse.models.reader import Reader

SYSTEM = {"role": "system", "content": "Be kind."}
HI = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "Hi!"}


def with_template(template: str | None):
    """The tiny tokenizer with another template and without an end of sequence."""
    tokenizer = copy.deepcopy(tiny.tokenizer(template=False))
    tokenizer.eos_token, tokenizer.chat_template = None, template
    return tokenizer


def captured(lake, llama, template: str | None, **changes) -> str:
    loaded = models.Loaded(llama[0].model, with_template(template), "tiny", "float32", "cpu")
    return capture.capture_one(make_scenario(**changes), loaded, llama[1], lake)


def speaker(tokens: list[int], at: int, eos: int = 2):
    """A model that says the given tokens, the first of them at position `at`, whatever it has read."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tiny.VOCAB, n_embd=96, n_layer=2, n_head=4, n_positions=96, tie_word_embeddings=False,
                        bos_token_id=1, eos_token_id=eos)  # fmt: skip
    model = GPT2LMHeadModel._from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(0.01)
        model.transformer.wpe.weight.copy_(10 * torch.eye(96))
        model.lm_head.weight.zero_()
        for i, token in enumerate(tokens):
            model.lm_head.weight[token, at - 1 + i] += 1
    return model


@pytest.mark.parametrize(("reply", "new", "eos", "kept", "tail"), [
    ("<|system|>ab<|user|>c<|end|>", 20, "<|end|>", "<|system|>ab<|user|>c<|end|>", "<|assistant|>"),  # specials inside
    ("ab<|end|><|eos|>", 20, "<|eos|>", "ab<|end|>", "<|assistant|>"),  # an end that the template does not write
    ("ab<|eos|>", 20, "<|eos|>", "ab", "<|end|><|assistant|>"),
    ("  ab ", 5, "<|eos|>", "  ab ", "<|end|><|assistant|>"),  # cut off; white space that a template would trim
    ("é", 1, "<|eos|>", None, "<|end|><|assistant|>"),  # cut off within a character
    ("<|eos|>", 20, "<|eos|>", "", "<|end|><|assistant|>"),
])  # fmt: skip
def test_the_state_after_a_reply_follows_what_was_generated(tmp_path, reply, new, eos, kept, tail):
    tokenizer = tiny.tokenizer()
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    prompt = encode("<|user|>Hi<|end|><|assistant|>")
    end = tokenizer.convert_tokens_to_ids(eos)
    model = speaker(encode(reply), len(prompt), end)
    run_id = warehouse.record(
        model, tokenizer, [{"role": "user", "content": "Hi"}], warehouse=tmp_path, generation={"max_new_tokens": new},
        capture={"store_dtype": "float32"},
    )  # fmt: skip
    lab = warehouse.open(tmp_path)
    sequence = [*prompt, *(encode(kept) if kept is not None else encode(reply)[:1]), *encode(tail)]
    with torch.no_grad():
        expected = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
    for layer in range(2):
        stored = lab.vector(run_id, "hidden_in", layer, state="snapshot", message=1)
        assert np.abs(stored - expected[layer][0, -1].numpy()).max() < 1e-5 * np.abs(stored).max()
    told = lab.sql("select n_tokens from snapshots where is_generated").fetchall()
    sits = lab.sql(
        "select n_tokens, position, token, role, is_template, is_generated from state_tokens where state_index = 1 "
        "and state = 'snapshot'"
    ).fetchall()
    assert told == [(len(sequence),)]
    assert sits == [(len(sequence), len(sequence) - 1, "<|assistant|>", "assistant", True, False)]


def test_a_reply_is_never_encoded_again(lake, llama, monkeypatch):
    """The ids after the prompt's are those of the steps, whatever their text would become."""
    read = []
    original = Reader.as_trees
    monkeypatch.setattr(
        Reader, "as_trees", lambda self, some: read.extend(map(list, some)) or original(self, some)
    )
    run_id = run(lake, llama)
    prompt = [
        t for (t,) in rows(lake, "select token_id from tokens where step = 0 order by position")
    ]
    reply = [
        t
        for (t,) in rows(
            lake, "select generated_token_id from steps where run_id = ? order by step", run_id
        )
    ]
    (after,) = [ids for ids in read if ids[: len(prompt)] == prompt]
    end, header = tiny.SPECIAL.index("<|end|>"), tiny.SPECIAL.index("<|assistant|>")
    assert after == [*prompt, *reply, end, header]


def test_no_template_no_tail(lake, llama):
    """The state after the reply sits on its last token, which no pass of the generation read."""
    run_id = captured(lake, llama, None)
    query = "select token_id from tokens where run_id = ? and step is null"
    sits = "select token_id, is_generated, is_template from state_tokens where state = 'snapshot' order by state_index desc"
    assert rows(lake, sits)[0] == (*rows(lake, query, run_id)[0], True, False)


@pytest.mark.parametrize(("template", "messages", "there", "warned"), [
    (templates.LLAMA2, [SYSTEM, USER], [1, 2], {"no_snapshot": "messages 0 to 0"}),
    (templates.MISTRAL, [SYSTEM, USER, REPLY, USER], [1, 3, 4], {"no_snapshot": "lack the words of message 0"}),
    (templates.PHI3, [SYSTEM, USER], [1, 2], {"not_rendered": "message 0 (system)"}),
    (templates.GEMMA, [USER, REPLY], [0, 1], {"no_snapshot": "the reply has no snapshot"}),
    (templates.QWEN3, [HI, REPLY | {"content": "<think>x</think>y"}, HI], [0, 1, 2],
     {"rewritten": "message 1 (assistant)", "no_snapshot": "longer than the model's context of 128"}),
    (templates.IDEFICS, [SYSTEM, USER], [0, 1, 2], {"content_parts": "message 0 (system), 1 (user)"}),
])  # fmt: skip
def test_snapshots_of_what_is_rendered(lake, llama, template, messages, there, warned):
    run_id = captured(lake, llama, template, prompt={"messages": messages})
    assert [
        k
        for (k,) in rows(
            lake, "select message_index from snapshots where run_id = ? order by 1", run_id
        )
    ] == there
    states = "select distinct state_index from states_of(?) where state = 'snapshot' order by 1"
    assert [k for (k,) in rows(lake, states, run_id)] == there
    told = dict(
        rows(
            lake, "select code, string_agg(message) from warnings where prompt_id = 0 group by code"
        )
    )
    assert set(told) == set(warned)
    assert all(sentence in told[code] for code, sentence in warned.items())


def test_a_reference_that_is_not_rendered(lake, llama):
    references = [{"label": "kind", "messages": [SYSTEM, USER]}]
    captured(lake, llama, templates.PHI3, prompt={"messages": [USER]}, reference_states=references)
    told = rows(lake, "select message from warnings where code = 'not_rendered'")
    assert told == [
        (
            "reference_states[0] (kind): message 0 (system): the chat template leaves out the words; no snapshot",
        )
    ]
    with pytest.raises(
        AlabError, match=r"reference_states\[0\].messages\[0\] \(role system\).*leaves out"
    ):
        captured(
            lake, llama, templates.PHI3, reference_states=[{"label": "kind", "messages": [SYSTEM]}]
        )


def test_every_state_sits_on_a_token(lake, llama):
    run_id = run(lake, llama)
    states = "select distinct prompt_id, state, state_index, label from states_of(?) order by all"
    named = "select prompt_id, state, state_index, label from state_tokens where run_id = ? order by all"
    assert rows(lake, states, run_id) == rows(lake, named, run_id)
    n = rows(lake, "select n_prompt_tokens from prompts")[0][0]
    sits = rows(lake, "select state, state_index, n_tokens, position, token, role, is_template, is_generated "
                "from state_tokens where run_id = ? order by all", run_id)  # fmt: skip
    last = [
        t for (t,) in rows(lake, "select token from tokens where run_id = ? and step = 3", run_id)
    ]
    assert sits[0] == ("final", 3, n + 3, n + 2, last[0], "assistant", False, True)
    assert sits[1] == ("initial", 0, n, n - 1, "<|assistant|>", "assistant", True, False)
    lengths = dict(
        rows(lake, "select message_index, n_tokens from snapshots where run_id = ?", run_id)
    )
    assert {row[1]: row[2] for row in sits if row[0] == "snapshot"} == lengths
    assert [row[2] for row in sits if row[0] == "reference"] == [
        t
        for (t,) in rows(
            lake,
            "select n_tokens from reference_states where run_id = ? order by ref_index",
            run_id,
        )
    ]
    for state in ("initial", "final"):
        token = rows(
            lake,
            "select token_id, position from state_tokens where run_id = ? and state = ?",
            run_id,
            state,
        )
        assert token == rows(
            lake,
            "select token_id, position from tokens where run_id = ? and position = ?",
            run_id,
            token[0][1],
        )


def test_without_states_there_are_no_tokens_of_states(lake, llama):
    run(lake, llama, capture={"states": False}, reference_states=[])
    assert rows(lake, "select count(*) from state_tokens") == [(0,)]


def test_without_a_generation_prompt(lake, llama):
    """States sit on the last token of the last message, references too."""
    run(lake, llama, prompt={"messages": CHAT, "add_generation_prompt": False})
    sits = rows(
        lake,
        "select state, state_index, token, role, is_template from state_tokens where state <> 'final' order by all",
    )
    assert sits == [
        ("initial", 0, "<|end|>", "user", True), ("reference", 0, "<|end|>", "user", True),
        ("reference", 1, "<|end|>", "user", True), ("snapshot", 0, "<|end|>", "system", True),
        ("snapshot", 1, "<|end|>", "user", True), ("snapshot", 2, "<|end|>", "assistant", True),
        ("snapshot", 3, "<|end|>", "user", True), ("snapshot", 4, "<|end|>", "assistant", True),
    ]  # fmt: skip


def test_a_text_instead_of_messages(lake, llama):
    run_id = run(lake, llama, prompt={"messages": None, "text": "Once upon a <|user|> time"})
    assert rows(lake, "select prompt_text from prompts") == [("Once upon a <|user|> time",)]
    assert rows(
        lake, "select distinct message_index, role, is_template from tokens where step = 0"
    ) == [(0, "text", False)]
    assert rows(lake, "select role, content, is_generated from messages order by message_index")[0] == (
        "text", "Once upon a <|user|> time", False,
    )  # fmt: skip
    assert rows(lake, "select message_index, role from snapshots where run_id = ? order by 1", run_id) == [
        (0, "text"), (1, "assistant"),
    ]  # fmt: skip
    # References are conversations all the same.
    assert rows(lake, "select distinct token from state_tokens where state = 'reference'") == [
        ("<|assistant|>",)
    ]


def test_further_roles(lake, llama):
    talk = [{"role": "developer", "content": "Be kind."}, USER, {"role": "tool", "content": "42"}]
    run(lake, llama, prompt={"messages": talk})
    assert rows(lake, "select role, string_agg(token, '' order by position) from tokens where step = 0 and not is_template "
                "group by message_index, role order by message_index") == [(m["role"], m["content"]) for m in talk]  # fmt: skip


def test_recording_says_which_tokens_states_sit_on(tmp_path):
    model = tiny.model_of("llama")
    with warehouse.recording(model, tiny.tokenizer(), warehouse=tmp_path) as kept:
        model.generate(
            torch.tensor([[5, 9, 2, 7]]), max_new_tokens=3, min_new_tokens=3, do_sample=False
        )
        model(torch.tensor([[8, 9]]))
    lab = warehouse.open(tmp_path)
    sits = lab.sql(
        "select prompt_id, state, state_index, n_tokens, position, is_generated from state_tokens order by all"
    )
    assert sits.fetchall() == [
        (0, "final", 2, 6, 5, True),
        (0, "initial", 0, 4, 3, False),
        (1, "initial", 0, 2, 1, False),
    ]
    tokens = lab.sql(
        "select count(*) from state_tokens s join tokens t using (run_id, prompt_id, position, token_id, token)"
    )
    assert tokens.fetchall() == [(3,)]
    states = lab.sql(
        "select count(distinct (prompt_id, state)) from states_of($run)", run=kept.run_id
    )
    assert states.fetchall() == [(3,)]


def test_options_from_python(tmp_path):
    tokenizer = with_template(templates.QWEN3)
    model = tiny.model_of("llama")
    options = {"warehouse": tmp_path, "generation": {"max_new_tokens": 1}}
    talk = [{"role": "user", "content": "Hi"}]
    warehouse.record(model, tokenizer, talk, template={"enable_thinking": False}, **options)
    warehouse.record(model, tokenizer, talk, add_generation_prompt=False, **options)
    texts = (
        warehouse.open(tmp_path).sql("select prompt_text from prompts order by run_id").fetchall()
    )
    assert [text.partition("<|im_end|>\n")[2] for (text,) in texts] == [
        "<|im_start|>assistant\n<think>\n\n</think>\n\n", "",
    ]  # fmt: skip


def test_discovery_is_not_needed_for_what_is_refused(lake, llama):
    """A conversation without its words is refused before anything runs."""
    with pytest.raises(
        AlabError, match=r"prompt.messages\[0\] \(role system\).*leaves out its words"
    ):
        captured(lake, llama, templates.PHI3, prompt={"messages": [SYSTEM]})
    assert not lake.root.exists()
    assert sites.discover(llama[0].model).layers


def test_one_run_for_each_message_that_the_template_takes(lake, llama, monkeypatch):
    """A system message that is folded into the user's turn cannot be run alone; the others are."""
    loaded = models.Loaded(
        llama[0].model, with_template(templates.LLAMA2), "tiny", "float32", "cpu"
    )
    monkeypatch.setattr(models, "load", lambda spec, **options: loaded)
    asked = make_scenario(prompt={"messages": [SYSTEM, HI, REPLY], "run_at_each_message": True})
    said = []
    ids = list(scenarios.capture([asked], [lake], progress=lambda what, *_: said.append(what)))
    assert [i.partition("_")[0] for i in ids] == ["tiny-m01", "tiny-m02"]
    assert any("tiny-m00 is left out: prompt.messages[0] (role system)" in what for what in said)
    alone = make_scenario(prompt={"messages": [SYSTEM], "run_at_each_message": True})
    with pytest.raises(AlabError, match="leaves out its words"):
        list(scenarios.capture([alone], [lake]))
