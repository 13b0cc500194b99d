"""Texts of tokens: they join to the text, and tell a word from the word after a space."""

import copy
import re

import alphabets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.models.chat import Chat
from warehouse.models.spelling import Spelling, joined

#: Any text, and one of what tokenizers find hard: runs of spaces, letters of several bytes, marks, combining accents.
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=24),
    st.lists(
        st.sampled_from([" ", "  ", "cat", " cat", "the", "é", "e\u0301", "語", "🐈", "👩‍👧", "<|end|>", "\n", "\t", "ﬁ", "▁", "Ã", "Ġ",
                         ".", "<0x41>", "\u00a0"]), max_size=12,
    ).map("".join),
)  # fmt: skip


class Slow:
    """A tokenizer that does not tell offsets."""

    is_fast = False

    def __init__(self, fast):
        self._fast = fast

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False):
        assert not return_offsets_mapping
        return {"input_ids": self._fast(text, add_special_tokens=add_special_tokens)["input_ids"]}

    def __len__(self):
        return len(self._fast)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("kind", alphabets.KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_texts_of_a_prompt_join_to_it(kind, slow, text):
    tokenizer = alphabets.tokenizer(kind)
    rendered = Chat(Slow(tokenizer) if slow else tokenizer).render(
        [{"role": "user", "content": text}]
    )
    own = [
        t
        for t, (_, role, _) in zip(rendered.texts, rendered.owners, strict=True)
        if role is not None
    ]
    assert rendered.ids == tokenizer(text)["input_ids"]
    assert len(rendered.texts) == len(rendered.ids) == len(rendered.owners)
    assert rendered.text == text
    assert joined(own) == (text if own else "")  # BERT has no tokens for white space


@pytest.mark.parametrize("kind", [kind for kind in alphabets.KINDS if "word" not in kind])
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_each_token_has_the_text_that_it_writes(kind, text):
    """Where nothing rewrites the text, a token's text in the prompt is its text alone, but for a space before all."""
    text = text.replace("<|end|>", "").replace("▁", "_")
    tokenizer = alphabets.tokenizer(kind)
    chat = Chat(tokenizer)
    rendered = chat.render([{"role": "user", "content": text}])
    pairs = [
        (t, chat.token_text(i))
        for t, i, o in zip(rendered.texts, rendered.ids, rendered.owners, strict=True)
        if o[1]
    ]
    if joined([alone for _, alone in pairs]).removeprefix(" ") == text.removeprefix(" "):
        within, alone = zip(*pairs, strict=True) if pairs else ((), ())
        assert within[1:] == alone[1:]
        assert within[:1] == alone[:1] or within[0] == alone[0].removeprefix(" ")


@pytest.mark.parametrize("kind", alphabets.KINDS)
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_texts_of_ids_join_to_what_is_decoded(kind, text):
    """Without a text of their own, as those of a reply."""
    tokenizer = alphabets.tokenizer(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = Spelling(tokenizer).whole(ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    if kind == "word pieces":
        decoded, whole = ("".join(re.sub("##", "", some).split()) for some in (decoded, whole))
    assert whole in (
        decoded,
        " " + decoded,
    )  # Llama's way of decoding takes a space off the beginning


@pytest.mark.parametrize("kind", ["bytes", "unigram", "legacy", "gemma", "bpe"])
def test_a_word_and_the_word_after_a_space(kind):
    tokenizer = alphabets.tokenizer(kind)
    spelling = Spelling(tokenizer)
    texts = {spelling.text(i) for i in range(len(tokenizer))}
    assert {"cat", " cat"} <= texts or {"at", " the"} <= texts
    pieces = {tokenizer.convert_ids_to_tokens(i): spelling.text(i) for i in range(len(tokenizer))}
    assert all(text == piece.replace("Ġ", " ").replace("▁", " ") for piece, text in pieces.items() if piece.isascii()
               and not piece.startswith("<0x"))  # fmt: skip


@pytest.mark.parametrize(("kind", "spelled"), [
    ("bytes", "<0xC3><0xA8>"), ("unigram", "<0xC3><0xA8>"), ("bytes, NFC", "<0xC3><0xA8>"),
])  # fmt: skip
def test_bytes_of_a_character_are_spelled_alike(kind, spelled):
    chat = Chat(alphabets.tokenizer(kind))
    rendered = chat.render([{"role": "user", "content": "xè"}])
    assert "".join(rendered.texts).endswith(spelled)
    assert [chat.token_text(i) for i in rendered.ids][-2:] == rendered.texts[-2:]


def test_special_tokens_that_the_tokenizer_adds():
    """They are not in the text, and nobody's."""
    rendered = Chat(alphabets.tokenizer("legacy")).render([{"role": "user", "content": "the cat"}])
    assert (rendered.texts[0], rendered.owners[0]) == ("<s>", (None, None, True))
    assert "".join(rendered.texts[1:]) == rendered.text == "the cat"
    assert set(rendered.owners[1:]) == {(0, "user", False)}


def test_a_tokenizer_that_rewrites_letters():
    """What becomes several tokens of one letter still joins."""
    rendered = Chat(alphabets.tokenizer("bytes, NFC")).render(
        [{"role": "user", "content": "e\u0301x"}]
    )
    assert joined(rendered.texts) == "e\u0301x"


def test_ids_past_the_vocabulary():
    """Models have rows of the unembedding without a token."""
    for kind in alphabets.KINDS:
        tokenizer = alphabets.tokenizer(kind)
        assert Spelling(tokenizer).text(len(tokenizer) + 5) == ""


@pytest.mark.parametrize(
    "tail", ["", "<|end|>", "\n<|end|>cat the", ".\ncat", " the cat\n", "é<|end|>"]
)
@pytest.mark.parametrize("kind", [kind for kind in alphabets.KINDS if "word" not in kind])
def test_what_follows_a_word_is_encoded_as_it_follows(kind, tail):
    """SentencePiece puts a space before a text, but not before what is in the midst of one."""
    tokenizer = copy.deepcopy(alphabets.tokenizer(kind))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ tail }}{% endfor %}"
    ids = Chat(tokenizer, {"tail": tail}).after_reply([{"role": "user", "content": "x"}])
    assert [*tokenizer("x", add_special_tokens=False)["input_ids"], *ids] == tokenizer(
        "x" + tail, add_special_tokens=False
    )["input_ids"]
