"""Texts of tokens: what each id writes, so that the texts of a sequence join to its text.

A token is bytes, and most tokens are whole characters. Where several tokens make one character,
each shows its bytes as `<0xE2>`, whatever the tokenizer: what they join to is the text once every
run of such bytes is read as UTF-8.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

#: A token that is one byte, in SentencePiece's spelling.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

#: Bytes that are no text, in the spelling of texts of tokens.
_BYTES = re.compile(r"(?:<0x[89A-F][0-9A-F]>)+")

#: How SentencePiece spells a space.
_SPACE = "\u2581"


def _byte_letters() -> dict[str, int]:
    """Byte of each letter that byte-level tokenizers spell bytes with, as GPT-2 chose them.

    Those that can be seen in Latin-1 are themselves; the others follow from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_LETTERS = _byte_letters()


def _spell_bytes(error: UnicodeError) -> tuple[str, int]:
    """What stands for bytes that are no text; where reading goes on."""
    assert isinstance(error, UnicodeDecodeError)  # `_ERRORS` is for decoding
    return "".join(f"<0x{b:02X}>" for b in error.object[error.start : error.end]), error.end


#: Name under which Python's codecs have that.
_ERRORS = "alab"
codecs.register_error(_ERRORS, _spell_bytes)


def joined(texts: Sequence[str]) -> str:
    """The text that texts of tokens make: bytes that make a character together are that character.

    >>> joined(["I", " ", "<0xE2>", "<0x99><0xA5>", " you"])
    'I ♥ you'
    """

    def read(match: re.Match) -> str:
        return bytes.fromhex(re.sub("<0x|>", "", match[0])).decode("utf-8", _ERRORS)

    return _BYTES.sub(read, "".join(texts))


class Spelling:
    """How a tokenizer's ids write text.

    Whether pieces are spelled in GPT-2's letters for bytes or with SentencePiece's mark for spaces
    is found out by reading a text that is known; pieces of neither kind are what `decode` makes of
    them.

    Attributes:
        marks: ids of tokens that stand for themselves and are no text, such as `<|im_end|>`.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        self._added = {int(i) for i in added}
        self.marks = {int(i) for i, token in added.items() if str(token).strip()}
        self._raws: dict[int, bytes | None] = {}
        self._kind = self._kind_of_pieces()

    def text(self, token_id: int) -> str:
        """What one id writes, a leading space included; bytes that are no text as `<0xE2>`."""
        raw = self.raw(token_id)
        if raw is not None:
            return raw.decode("utf-8", _ERRORS)
        text = self._decoded([token_id])
        if "\ufffd" in text or text == "":
            piece = self._tokenizer.convert_ids_to_tokens(token_id)
            return piece if isinstance(piece, str) else text
        return text

    def raw(self, token_id: int) -> bytes | None:
        """The bytes that one id writes; None where its piece does not tell."""
        if token_id not in self._raws:
            piece = self._tokenizer.convert_ids_to_tokens(token_id)
            literal = token_id in self._added and isinstance(piece, str)
            self._raws[token_id] = piece.encode() if literal else _bytes_of(piece, self._kind)
        return self._raws[token_id]

    def whole(self, ids: Sequence[int]) -> str:
        """The text of ids that have no text of their own: what their texts join to."""
        return joined([self.text(token_id) for token_id in ids])

    def ranges(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None = None
    ) -> list[tuple[int, int]]:
        """First and one past the last character of each token of a text.

        From the tokens' bytes, where they are the text's; else as the tokenizer tells, where it
        does; else from how long the decoded beginnings are.
        """
        raws = self._bytes_of_text(text, ids)
        if raws is not None:
            return list(_characters(text, raws))
        if offsets is not None:
            return list(offsets)
        ends, end = [], 0
        for n in range(1, len(ids) + 1):
            end = max(end, common_start(self._decoded(ids[:n]), text))
            ends.append(end)
        return list(pairwise([0, *ends]))

    def _decoded(self, ids: Sequence[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return self._tokenizer.decode(ids, **options)

    def texts(self, text: str, ids: Sequence[int], ranges: Sequence[tuple[int, int]]) -> list[str]:
        """Text of each token of a text; they join to it, whatever became of its white space.

        Args:
            text: what was tokenised.
            ids: its tokens.
            ranges: first and one past the last character of each, as tokenizers give them: white
                space may be between two, and tokens that make one character together have the same.
        """
        raws = self._bytes_of_text(text, ids)
        if raws is not None:
            return [raw.decode("utf-8", _ERRORS) for raw in raws]
        texts: list[str] = []
        end = 0
        for group in _sharing(ranges):
            start, end = end, max(end, *(ranges[i][1] for i in group))
            if group[-1] == len(ids) - 1:
                end = len(text)
            shared = text[start:end]
            raws = self._bytes_of_text(shared, [ids[i] for i in group]) if group[1:] else None
            if raws is None:  # one token, or one character that the tokenizer rewrote as several
                texts += [""] * (len(group) - 1) + [shared]
            else:
                texts += [raw.decode("utf-8", _ERRORS) for raw in raws]
        return texts

    def _bytes_of_text(self, text: str, ids: Sequence[int]) -> list[bytes] | None:
        """The bytes of each token, where together they are the text's; a space before it aside."""
        raws = _all_known([self.raw(token_id) for token_id in ids])
        if raws is None:
            return None
        written, data = b"".join(raws), text.encode()
        if written == b" " + data:
            first = next(i for i, raw in enumerate(raws) if raw)
            raws[first] = raws[first][1:]
            return raws
        return raws if written == data else None

    def _kind_of_pieces(self) -> str | None:
        for probe in ("a b", "the cat"):
            try:
                ids = self._tokenizer(probe, add_special_tokens=False)["input_ids"]
                pieces = [str(piece) for piece in self._tokenizer.convert_ids_to_tokens(ids)]
            except Exception:  # whatever the tokenizer's own code does
                return None
            for kind in ("letters", "spaces"):
                raws = _all_known([_bytes_of(piece, kind) for piece in pieces])
                text = b"".join(raws or []).decode("utf-8", "replace")
                if text.removeprefix(" ") == probe:
                    return kind
        return None


def _all_known(raws: Sequence[bytes | None]) -> list[bytes] | None:
    """The bytes of some tokens; None where those of any are unknown."""
    known = [raw for raw in raws if raw is not None]
    return known if len(known) == len(raws) else None


def _bytes_of(piece: Any, kind: str | None) -> bytes | None:
    """The bytes that a piece of the vocabulary spells; None where that is not known."""
    if not isinstance(piece, str):
        return None
    if kind == "letters":
        known = all(letter in _LETTERS for letter in piece)
        return bytes(_LETTERS[letter] for letter in piece) if known else None
    if kind == "spaces":
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
    return None


def _characters(text: str, raws: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Characters of a text that each of its tokens has a byte of."""
    owner: Sequence[int] = range(len(text))  # character of each byte
    if not text.isascii():
        owner = [n for n, letter in enumerate(text) for _ in letter.encode()]
    at = 0
    for raw in raws:
        first, at = at, at + len(raw)
        start = owner[first] if first < len(owner) else len(text)
        yield start, owner[at - 1] + 1 if raw else start


def _sharing(ranges: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Neighbouring tokens in groups: those in one group share characters."""
    group: list[int] = []
    end = 0
    for i, (start, stop) in enumerate(ranges):
        if group and not (start < end and stop > start):
            yield group
            group = []
        group.append(i)
        end = max(end, stop)
    if group:
        yield group


def common_start(a: str, b: str) -> int:
    """Length of what two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # binary search over string comparisons, which run in C
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
