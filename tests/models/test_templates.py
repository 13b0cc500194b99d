"""Whose words stand where, in the ways of well-known models' templates."""

import itertools

import pytest
import templates
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import AlabError
from warehouse.models.chat import Chat, Rendered
from warehouse.models.spelling import joined

SYSTEM = {"role": "system", "content": "Be kind. "}
USER = {"role": "user", "content": " Hi\nthere"}
THOUGHT = {"role": "assistant", "content": "<think>\nwell, then\n</think>\n\nHello Hi"}
AGAIN = {"role": "user", "content": "Hi"}
TALK = [SYSTEM, USER, THOUGHT, AGAIN]
THINK = THOUGHT["content"]


def chat(template: str | None, **options) -> Chat:
    tokenizer = tiny.tokenizer(False).__class__(
        tokenizer_object=tiny.tokenizer(False).backend_tokenizer
    )
    tokenizer.chat_template = template
    return Chat(tokenizer, **options)


def parts(rendered: Rendered) -> list[tuple[int | None, str, str]]:
    """(message, words or template, text) of each stretch of a rendering."""
    pairs = zip(rendered.owners, rendered.texts, strict=True)
    return [
        (owner[0], "template" if owner[2] else "words", joined([text for _, text in group]))
        for owner, group in itertools.groupby(pairs, key=lambda pair: pair[0])
    ]


def words(rendered: Rendered) -> dict[int, str]:
    """The words of each message, all of its stretches."""
    found: dict[int, str] = {}
    for message, kind, text in parts(rendered):
        if kind == "words":
            found[message] = found.get(message, "") + text
    return found


WHOLE = {0: "Be kind. ", 1: " Hi\nthere", 2: THINK, 3: "Hi"}
TRIMMED = {k: text.strip() for k, text in WHOLE.items()}


@pytest.mark.parametrize(("name", "expected", "absent", "partial"), [
    ("LLAMA2", WHOLE, [], []),  # the first user turn is trimmed together with the system message
    ("LLAMA3", TRIMMED, [], []),
    ("MISTRAL", WHOLE, [], []),
    ("QWEN2", WHOLE, [], []),
    ("QWEN3", WHOLE | {2: "Hello Hi"}, [], [2]),
    ("DEEPSEEK_R1", WHOLE | {2: "\n\nHello Hi"}, [], [2]),
    ("PHI3", {k: text for k, text in WHOLE.items() if k}, [0], []),
    ("COMMAND_R", TRIMMED | {0: "Be kind. "}, [], []),
    ("IDEFICS", WHOLE, [], []),
    ("MIXED", WHOLE | {0: "Be kind."}, [], []),
    ("REPEATED", WHOLE | {0: "Be kind. Be kind. "}, [], []),
    ("SHOUTED", {k: text.upper().replace("\n", "\\n") for k, text in WHOLE.items()}, [], [1, 2]),
])  # fmt: skip
def test_each_message_has_its_words(name, expected, absent, partial):
    rendered = chat(templates.ALL[name]).render(TALK)
    assert words(rendered) == expected
    assert (rendered.absent, rendered.partial) == (absent, partial)
    assert joined(rendered.texts) == rendered.text
    roles = {owner[0]: owner[1] for owner in rendered.owners if owner[0] is not None}
    assert roles == {k: TALK[k]["role"] for k in range(4) if k not in absent}


def test_a_system_message_in_the_first_user_turn():
    assert parts(chat(templates.LLAMA2).render(TALK[:2])) == [
        (0, "template", "<s>[INST] <<SYS>>\n"), (0, "words", "Be kind. "), (0, "template", "\n<</SYS>>\n\n"),
        (1, "words", " Hi\nthere"), (1, "template", " [/INST]"),
    ]  # fmt: skip


def test_a_system_message_in_the_last_user_turn():
    """Each stretch of template belongs to a message beside it."""
    assert parts(chat(templates.MISTRAL).render(TALK)) == [
        (1, "template", "<s>[INST] "), (1, "words", " Hi\nthere"), (1, "template", "[/INST]"), (2, "template", " "),
        (2, "words", THINK), (2, "template", "</s>"), (0, "template", "[INST] "), (0, "words", "Be kind. "),
        (0, "template", "\n\n"), (3, "words", "Hi"), (3, "template", "[/INST]"),
    ]  # fmt: skip


def test_think_blocks():
    """Taken out of an earlier turn; in the last one they are the message's own words, whoever writes the tags."""
    rendered = chat(templates.QWEN3).render(TALK)
    assert (2, "template", "<|im_start|>assistant\n") in parts(rendered)
    assert words(chat(templates.QWEN3).render(TALK[:3])) == {k: WHOLE[k] for k in range(3)}
    tight = {"role": "assistant", "content": "<think>well</think>Hello"}
    rendered = chat(templates.QWEN3).render([USER, tight])
    assert [part for part in parts(rendered) if part[1] == "words"] == [
        (0, "words", " Hi\nthere"), (1, "words", "well"), (1, "words", "Hello"),
    ]  # fmt: skip


def test_tool_messages():
    """Several results are one turn of the user's; a user who quotes one is told from them."""
    talk = [USER, {"role": "assistant", "content": "calling"}, {"role": "tool", "content": "42"},
            {"role": "tool", "content": "42"}, {"role": "user", "content": "<tool_response>42</tool_response>"}]  # fmt: skip
    rendered = chat(templates.QWEN3).render(talk)
    assert words(rendered) == {k: message["content"] for k, message in enumerate(talk)}
    assert [part for part in parts(rendered) if part[0] == 3] == [
        (3, "template", "\n<tool_response>\n"), (3, "words", "42"), (3, "template", "\n</tool_response><|im_end|>\n"),
    ]  # fmt: skip


def test_options_of_the_template():
    rendered = chat(templates.QWEN3, options={"enable_thinking": False}).render([USER])
    assert rendered.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert rendered.owners[-1] == (None, "assistant", True)
    with pytest.raises(AlabError, match="has no option 'enable_thinkng'") as caught:
        chat(templates.QWEN3, options={"enable_thinkng": False}).conversation([USER], "prompt")
    assert "enable_thinking" in caught.value.hint
    with pytest.raises(
        AlabError, match=r"prompt.template: the model's tokenizer has no chat template"
    ):
        chat(None, options={"enable_thinking": False}).conversation([USER], "prompt")
    closed = chat(templates.QWEN3, generation_prompt=False).render([USER])
    assert parts(closed)[-1] == (0, "template", "<|im_end|>\n")


def test_text_without_a_template():
    rendered = chat(templates.QWEN3, plain=True).render(
        [{"role": "text", "content": "Once upon\n a time"}]
    )
    assert rendered.text == "Once upon\n a time"
    assert set(rendered.owners) == {(0, "text", False)}


@pytest.mark.parametrize(("template", "messages", "expected"), [
    (templates.GEMMA, TALK, r"messages\[0\] \(role system\).*System role not supported"),
    (templates.GEMMA, [USER, AGAIN], r"messages\[1\] \(role user\).*must alternate"),
    (templates.GEMMA, [SYSTEM], r"messages\[0\] \(role system\).*System role not supported"),
    (templates.LLAMA2, [SYSTEM, USER, AGAIN], r"messages\[2\] \(role user\).*must alternate"),
    (templates.COMMAND_R, [SYSTEM, THOUGHT], r"messages\[1\] \(role assistant\).*must alternate"),
    ("{% if messages[-1].role == 'system' or (messages|length > 2 and messages[-1].role == messages[-2].role) %}"
     "{{ raise_exception('wrong order') }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}",
     [SYSTEM, USER, AGAIN], r"messages\[2\] \(role user\).*wrong order"),  # the system message alone is refused as well
    (templates.PHI3, [SYSTEM], r"messages\[0\] \(role system\).*leaves out its words"),
    ("{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}x", [USER, THOUGHT],
     r"messages\[0\] \(role user\).*leaves out its words"),
    ("{% for m in messages %}{{ m.content.nothing.there }}{% endfor %}", [USER], r"messages\[0\] \(role user\).*no attribute 'nothing'"),
    ("{% if messages|length < 2 %}{{ raise_exception('say more') }}{% endif %}{% for m in messages %}"
     "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}{% endfor %}",
     [USER, {"role": "tool", "content": "x"}], r"messages\[1\] \(role tool\).*no tools"),
])  # fmt: skip
def test_what_a_template_refuses_is_blamed_on_its_message(template, messages, expected):
    with pytest.raises(AlabError, match=r"prompt\." + expected) as caught:
        chat(template).conversation(messages, "prompt")
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2


def test_content_parts_are_given_where_texts_vanish():
    assert chat(templates.IDEFICS).render(TALK).parts == [0, 1, 2, 3]
    assert chat(templates.MIXED).render(TALK).parts == [1, 2, 3]
    assert chat(templates.QWEN2).render(TALK).parts == []
    shows = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content if m.content is not string else '' }}{% endif %}{% endfor %}."
    with pytest.raises(
        AlabError, match="leaves out its words"
    ):  # a template that spells the parts out has no words
        chat(shows).conversation([USER], "prompt")


@pytest.mark.parametrize(("name", "tail"), [
    ("LLAMA2", " </s>"), ("LLAMA3", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("MISTRAL", "</s>"), ("QWEN3", "<|im_end|>\n<|im_start|>assistant\n"), ("PHI3", "<|end|>\n"),
    ("DEEPSEEK_R1", "<｜end▁of▁sentence｜><｜Assistant｜><think>\n"), ("IDEFICS", "<end_of_utterance>\nAssistant:"),
])  # fmt: skip
def test_what_follows_a_reply(name, tail):
    written = chat(templates.ALL[name])
    assert written.tokenizer.decode(written.after_reply(written.render(TALK).messages)) == tail


def test_no_reply_where_the_template_takes_none():
    written = chat(templates.GEMMA)
    assert written.after_reply([USER, THOUGHT]) is None


CONTENT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12),
    st.sampled_from(["", " ", "Hi", "Hi Hi", "user", "<|im_start|>user\nHi<|im_end|>\n", "</think>", "<think>\na\n</think>\n\nb",
                     "system", "<<SYS>>", "[INST] x [/INST]", "\ue000", "\ue001\ue000", "assistant\n", "\n\n", "[/INST]", " Hi"]),
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "LLAMA2",
        "LLAMA3",
        "MISTRAL",
        "QWEN2",
        "QWEN3",
        "DEEPSEEK_R1",
        "COMMAND_R",
        "IDEFICS",
        "MIXED",
    ],
)
@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENT, min_size=4, max_size=4))
def test_any_words(name, contents):
    """Equal contents, empty ones, and ones that look like the template or like each other: each has its own."""
    talk = [message | {"content": content} for message, content in zip(TALK, contents, strict=True)]
    rendered = chat(templates.ALL[name]).render(talk)
    assert joined(rendered.texts) == rendered.text
    found = words(rendered)
    for k, content in enumerate(contents):
        thinks = k == 2 and "</think>" in content and name in ("QWEN3", "DEEPSEEK_R1")
        core = (content.split("</think>")[-1] if thinks else content).strip()
        if core:
            assert found[k].strip() == core, (k, parts(rendered))
        else:
            assert not found.get(k, "").strip()


SAID = {"role": "user", "content": "Hello World"}


@pytest.mark.parametrize(("template", "talk", "expected"), [
    # How long a content is stands beside it.
    ("{% for m in messages %}[{{ m.content|length }}]{{ m.content }}{% endfor %}", [SAID, SAID],
     [(0, "template", "[11]"), (0, "words", "Hello World"), (1, "template", "[11]"), (1, "words", "Hello World")]),
    # It is cut off, and so is a mark at its end: what stands between is the former's.
    ("{% for m in messages %}[{{ m.content[:5] }}]{% endfor %}", [SAID, SAID],
     [(0, "template", "["), (0, "words", "Hello"), (0, "template", "]["), (1, "words", "Hello"), (1, "template", "]")]),
    # Something else is written in place of nothing.
    ("{% for m in messages %}<{{ m.role }}{{ '>' + m.content + '</>' if m.content else ' none/>' }}{% endfor %}",
     [SAID, THOUGHT | {"content": ""}, SAID],
     [(0, "template", "<user>"), (0, "words", "Hello World"), (0, "template", "</>"), (1, "template", "<assistant none/>"),
      (2, "template", "<user>"), (2, "words", "Hello World"), (2, "template", "</>")]),
    # The latest comes first.
    ("{% for m in messages|reverse %}<{{ m.content }}>{% endfor %}", [SAID, AGAIN],
     [(1, "template", "<"), (1, "words", "Hi"), (1, "template", "><"), (0, "words", "Hello World"), (0, "template", ">")]),
    # As JSON, whole.
    ("{{ messages|tojson }}", [SAID, AGAIN],
     [(0, "template", '[{"role": "user", "content": "'), (0, "words", "Hello World"), (0, "template", '"}'),
      (1, "template", ', {"role": "user", "content": "'), (1, "words", "Hi"), (1, "template", '"}]')]),
    # Marked for training.
    ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}", [SAID, AGAIN],
     [(0, "words", "Hello World"), (0, "template", ";"), (1, "words", "Hi"), (1, "template", ";")]),
])  # fmt: skip
def test_templates_that_look_at_their_contents(template, talk, expected):
    assert parts(chat(template).conversation(talk, "prompt")) == expected


def test_a_content_that_the_template_compares_is_found_where_it_stands_alone():
    """No mark goes through: the words are there once, and are gone with the message."""
    picky = "{% for m in messages %}{{ m.content if m.content in ('Hello World', 'Hi') else '?' }}|{% endfor %}"
    assert words(chat(picky).render([SAID, AGAIN])) == {0: "Hello World", 1: "Hi"}
    assert chat(picky).render([SAID, SAID]).absent == [0, 1]
