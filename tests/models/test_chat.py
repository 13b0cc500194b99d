"""Which message each token belongs to."""

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import AlabError
from warehouse.models.chat import Chat, common_length

ROLES = st.sampled_from(["system", "user", "assistant"])
CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


def owners(chat: Chat, messages: list[dict]) -> list[tuple[str, tuple]]:
    rendered = chat.render(messages)
    return [
        (chat.token_text(i), owner) for i, owner in zip(rendered.ids, rendered.owners, strict=True)
    ]


def test_content_and_template_are_told_apart():
    found = owners(
        Chat(tiny.tokenizer()),
        [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}],
    )
    assert found == [
        ("<|user|>", (0, "user", True)), ("a", (0, "user", False)), ("b", (0, "user", False)),
        ("<|end|>", (0, "user", True)), ("<|assistant|>", (1, "assistant", True)), ("c", (1, "assistant", False)),
        ("<|end|>", (1, "assistant", True)), ("<|assistant|>", (None, "assistant", True)),
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ROLES, CONTENT), min_size=1, max_size=5))
def test_round_trip(turns):
    """The tokens of a message that are not the template's spell its content, whatever it is."""
    chat = Chat(tiny.tokenizer())
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered = chat.render(messages)
    assert chat.tokenizer.decode(rendered.ids, skip_special_tokens=False) == rendered.text
    assert rendered.owners[-1] == (None, "assistant", True)
    for k, message in enumerate(messages):
        ids = [
            i
            for i, owner in zip(rendered.ids, rendered.owners, strict=True)
            if owner == (k, message["role"], False)
        ]
        assert chat.tokenizer.decode(ids, skip_special_tokens=False) == message["content"]


@pytest.mark.parametrize(
    "content", ["<|user|>", "<|end|><|assistant|>", "\ue000alab\ue001", "a" * 50]
)
def test_contents_that_look_like_the_template(content):
    messages = [{"role": "user", "content": content}, {"role": "user", "content": content}]
    rendered = Chat(tiny.tokenizer()).render(messages)
    for k in (0, 1):
        mine = [o for o in rendered.owners if o[0] == k]
        assert mine[0] == (k, "user", True)
        assert mine[-1] == (k, "user", True)
        assert len(mine) == rendered.owners.count((k, "user", False)) + 2


def test_a_template_that_trims_and_one_that_rewrites():
    tokenizer = tiny.tokenizer(template=False).__class__(
        tokenizer_object=tiny.tokenizer(False).backend_tokenizer
    )
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    chat = Chat(tokenizer)
    messages = [{"role": "user", "content": "  x  "}, {"role": "user", "content": "y"}]
    assert [o for t, o in owners(chat, messages) if t == "x"] == [(0, "user", False)]
    tokenizer.chat_template = "{% for m in messages %}{{ '[old]' if not loop.last else '[' + m.content + ']' }}{% endfor %}"
    found = owners(chat, [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}])
    assert ("y", (1, "user", False)) in found
    assert len(found) == 8  # nothing is lost where an earlier turn was rewritten


def test_without_a_template_contents_are_joined_by_newlines():
    chat = Chat(tiny.tokenizer(template=False))
    rendered = chat.render([{"role": "system", "content": "ab"}, {"role": "user", "content": "c"}])
    assert rendered.text == "ab\nc"
    assert [o[0] for o in rendered.owners] == [0, 0, 1, 1]


def test_tokens_that_are_no_text_alone_are_spelled_as_bytes():
    chat = Chat(tiny.tokenizer())
    ids = chat.ids("é")
    assert [chat.token_text(i) for i in ids] == ["<0xC3>", "<0xA9>"]
    assert chat.decode(ids) == "é"


def test_a_role_order_that_the_template_rejects_names_the_message():
    tokenizer = tiny.tokenizer(template=False).__class__(
        tokenizer_object=tiny.tokenizer(False).backend_tokenizer
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    user = {"role": "user", "content": "a"}
    with pytest.raises(
        AlabError, match=r"prompt.messages\[1\] \(role user\).*roles must alternate"
    ) as caught:
        Chat(tokenizer).conversation([user, user], "prompt")
    assert caught.value.exit_code == 2
    Chat(tokenizer).conversation([user], "prompt")


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_length(a, b):
    n = common_length(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
