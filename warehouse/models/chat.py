"""Turns messages into tokens, and knows which message each token belongs to."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from warehouse.errors import AlabError
from warehouse.models import spans
from warehouse.models.spelling import Spelling

#: Whom a token belongs to: message_index, role and is_template. The index is None for the
#: generation prompt, the role too for special tokens that the tokenizer adds.
Owner = tuple[int | None, str | None, bool]


@dataclass
class Rendered:
    """A conversation as the model reads it.

    Attributes:
        text: the rendered text.
        ids: its token ids, special tokens that the tokenizer adds included.
        owners: whom each token belongs to.
        texts: text of each token; but for special tokens that the tokenizer adds they join to
            `text`.
        messages: the conversation as the template was given it.
        absent: messages whose words the text has not.
        partial: messages of whose words it has some only, or others.
        first: tokens that the tokenizer adds before the text's own.
        ranges: characters of the text that each of its own tokens writes.
        words: per message, where its words stand in the text.
    """

    text: str
    ids: list[int]
    owners: list[Owner]
    texts: list[str]
    messages: list[dict]
    absent: list[int] = field(default_factory=list)
    partial: list[int] = field(default_factory=list)
    first: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    words: list[list[spans.Span]] = field(default_factory=list)

    def token_at(self, message: int, end: int) -> int | None:
        """Position of the token with the last of the first `end` characters of a message's words.

        None where the text has not that character, or where it stands cannot be told.
        """
        for span in self.words[message]:
            begin = span.upto - (span.end - span.start)
            if 0 <= begin < end <= span.upto:
                before = [start < span.start + end - begin for start, _ in self.ranges]
                return self.first + sum(before) - 1
        return None

    @property
    def parts(self) -> list[int]:
        """Messages whose content was given as content parts."""
        contents = enumerate(message["content"] for message in self.messages)
        return [k for k, content in contents if not isinstance(content, str)]


class Chat:
    """A tokenizer's way of writing conversations.

    With a chat template, every conversation and every prefix of one is rendered with the generation
    prompt, also where the last message is the assistant's. Without one, the contents are joined by
    newlines.

    Args:
        tokenizer: a transformers tokenizer.
        options: what the chat template is told beside the messages, such as `{"enable_thinking":
            False}`.
        generation_prompt: whether the header of the next reply is written.
        plain: read contents as they are, without the template.
    """

    def __init__(
        self,
        tokenizer: Any,
        options: dict | None = None,
        *,
        generation_prompt: bool = True,
        plain: bool = False,
    ):
        self.tokenizer = tokenizer
        self._options = options or {}
        template = self._options.get("chat_template") or getattr(tokenizer, "chat_template", None)
        self.has_template = not plain and bool(template)
        self._generation_prompt = generation_prompt
        self._spelling: Spelling | None = None  # probed when the first token is spelled

    @property
    def spelling(self) -> Spelling:
        """How the tokenizer's ids write text."""
        if self._spelling is None:
            self._spelling = Spelling(self.tokenizer)
        return self._spelling

    def text(self, messages: Sequence[dict], *, generation_prompt: bool | None = None) -> str:
        """Render messages as text; raises what the template raises."""
        if not self.has_template:
            return "\n".join(map(spans.words, messages))
        prompt = self._generation_prompt if generation_prompt is None else generation_prompt
        options = self._options | {"add_generation_prompt": prompt}
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text; where a template wrote special tokens, none are added."""
        return self.tokenizer(text, add_special_tokens=not self.has_template)["input_ids"]

    def conversation(self, messages: list[dict], where: str) -> Rendered:
        """Render a conversation that is asked for.

        Args:
            messages: the conversation, contents strings.
            where: what errors call it.

        Raises:
            AlabError: with exit code 2; the template rejects it, or has a place for none of the
                user's words.
        """
        self._check_options(where)
        rendered = self._rendered(messages)
        if isinstance(rendered, str):
            raise self._rejected(messages, where, rendered)
        wordy = [k for k, message in enumerate(messages) if message["content"].strip()]
        requests = [k for k in wordy if messages[k]["role"] == "user"] or wordy
        if requests and set(requests) <= set(rendered.absent):
            k = requests[0]
            raise AlabError(
                f"{where}.messages[{k}] (role {messages[k]['role']}): the chat template leaves out "
                "its words, as a text and as content parts: it renders "
                f"{_short(rendered.text)!r}",
                "Change the roles, or give prompt.text, which is read without a template.",
                2,
            )
        return rendered

    def render(self, messages: list[dict]) -> Rendered:
        """Render a conversation and find the message of each token.

        Raises:
            ValueError: the template rejects it.
        """
        rendered = self._rendered(messages)
        if isinstance(rendered, str):
            raise ValueError(rendered)
        return rendered

    def prefix(self, messages: list[dict]) -> Rendered | None:
        """A part of a rendered conversation; None where the template does not take it.

        Of the owners only the last token's is exact: text between messages is not shared out.
        """
        text = self._try(messages)
        return None if text is None else self._read(messages, text, split=False)

    def after_reply(self, messages: list[dict]) -> list[int] | None:
        """Tokens that a template writes after a reply's words, the next generation prompt included.

        They do not depend on the reply, which is not rendered: a stand-in is.

        Args:
            messages: the conversation before the reply, as it was given.

        Returns:
            None where the template takes no reply there, or leaves it out.
        """
        if not self.has_template:
            return []
        mark = next(spans.characters_not_in(set("".join(map(spans.words, messages)))))
        for content in (mark, [{"type": "text", "text": mark}]):
            text = self._try([*messages, {"role": "assistant", "content": content}])
            if text is not None and text.count(mark) == 1 and not _shows_parts(text, messages):
                return self._ids_after(text.partition(mark)[2])
        return None

    def token_text(self, token_id: int) -> str:
        """Text of one token, a leading space included; bytes that are no text alone as `<0xE2>`."""
        return self.spelling.text(token_id)

    def decode(self, ids: list[int]) -> str:
        """Text of a reply: all ids together, special tokens dropped."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def summary(self) -> str:
        """The tokenizer in short, as JSON."""
        special = self.tokenizer.special_tokens_map.items()
        summary = {
            "class": type(self.tokenizer).__name__,
            "vocab_size": len(self.tokenizer),
            "special_tokens": {name: str(token) for name, token in special},
            "chat_template": getattr(self.tokenizer, "chat_template", None),
        }
        return json.dumps(summary)

    def _rendered(self, messages: list[dict]) -> Rendered | str:
        """The conversation as it loses the fewest words; or why the template rejects it.

        Contents are given as strings, then as content parts where strings vanish, then all as
        parts.
        """
        best: Rendered | None = None
        reason: str | None = None
        parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        for way in range(3 if self.has_template else 1):
            if way == 0:
                contents = messages
            elif way == 2:
                contents = parts
            elif best is None:
                continue
            else:
                pairs = enumerate(zip(messages, parts, strict=True))
                contents = [part if k in best.absent else own for k, (own, part) in pairs]
            text = self._try(contents)
            if text is None:
                reason = reason or self._rejection(contents)
            elif not _shows_parts(text, messages):
                rendered = self._read(contents, text)
                if best is None or len(rendered.absent) < len(best.absent):
                    best = rendered
                if not best.absent:
                    break
        return best or reason or "it renders nothing"

    def _read(self, messages: list[dict], text: str, *, split: bool = True) -> Rendered:
        """Tokens of a rendering and whom they belong to."""
        placement = spans.place(messages, text, self._try)
        without_prompt = partial(self._try, generation_prompt=False)
        parts = spans.segments(messages, text, placement, without_prompt, split)
        ids, first, ranges = self._encode(text)
        last = first + len(ranges)
        owners: list[Owner] = []
        end = 0
        for start, stop in ranges:
            message, is_template = spans.owner((min(start, end), max(end, stop)), text, parts)
            role = "assistant" if message is None else messages[message]["role"]
            owners.append((message, role, is_template))
            end = max(end, stop)
        nobody: Owner = (None, None, True)
        return Rendered(
            text,
            ids,
            [nobody] * first + owners + [nobody] * (len(ids) - last),
            [
                *map(self.token_text, ids[:first]),
                *self.spelling.texts(text, ids[first:last], ranges),
                *map(self.token_text, ids[last:]),
            ],
            messages,
            placement.absent,
            placement.partial,
            first,
            ranges,
            placement.spans,
        )

    def _encode(self, text: str) -> tuple[list[int], int, list[tuple[int, int]]]:
        """Token ids of a text, how many are added before its own, and the characters of those."""
        exact = bool(getattr(self.tokenizer, "is_fast", False))
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=exact)
        own = list(encoding["input_ids"])
        ids = own if self.has_template else list(self.ids(text))
        offsets = encoding["offset_mapping"] if exact else None
        for first in range(len(ids) - len(own) + 1):
            if ids[first : first + len(own)] == own:
                return ids, first, self.spelling.ranges(text, own, offsets)
        return ids, 0, self.spelling.ranges(text, ids)  # what is added changes the rest

    def _ids_after(self, text: str) -> list[int]:
        """Token ids of a text that follows a word, without what tokenizers put before a first."""
        ids, first, ranges = self._encode("a" + text)
        word = [stop <= 1 for _, stop in ranges]
        at = sum(word)  # tokens of the word, which stand first
        if at and all(word[:at]) and all(start >= 1 for start, _ in ranges[at:]):
            return ids[first + at :]
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_options(self, where: str) -> None:
        """Refuse options that the template does not read: a slip of the pen is no silent one."""
        if not self._options:
            return
        if not self.has_template:
            raise AlabError(
                f"{where}.template: the model's tokenizer has no chat template to give options to",
                "",
                2,
            )
        options = self._options.get("chat_template"), self._options.get("tools")
        source = self.tokenizer.get_chat_template(*options)
        for name in self._options:
            if name != "chat_template" and not re.search(rf"\b{re.escape(name)}\b", source):
                pattern = r"\b([a-z]+(?:_[a-z]+)+) is (?:not )?(?:defined|true|false)"
                known = sorted(set(re.findall(pattern, source)))
                raise AlabError(
                    f"{where}.template: the model's chat template has no option {name!r}",
                    f"It asks for: {', '.join(known)}" if known else "",
                    2,
                )

    def _rejected(self, messages: list[dict], where: str, reason: str) -> AlabError:
        """The error for a rejected conversation: names the message from which on it is."""
        reasons = [self._rejection(messages[: k + 1]) for k in range(len(messages))]
        taken = max((k for k, why in enumerate(reasons) if why is None), default=-1)
        last = len(messages) - 1
        k = next((k for k in range(taken + 1, last + 1) if reasons[k] == reason), last)
        return AlabError(
            f"{where}.messages[{k}] (role {messages[k]['role']}): the chat template rejects the "
            f"conversation: {reason}",
            "Change the roles or their order.",
            2,
        )

    def _rejection(self, messages: Sequence[dict]) -> str | None:
        """Why the template rejects messages; None where it takes them."""
        try:
            self.text(messages)
        except Exception as error:  # whatever the template does
            return " ".join(str(error).split()) or type(error).__name__
        return None

    def _try(self, messages: Sequence[dict], generation_prompt: bool | None = None) -> str | None:
        try:
            return self.text(messages, generation_prompt=generation_prompt)
        except Exception:  # whatever the template does
            return None


def _shows_parts(text: str, messages: Sequence[dict]) -> bool:
    """Whether a template wrote content parts as a program spells them, in place of their words."""
    said = "".join(map(spans.words, messages))
    return any(text.count(sign) > said.count(sign) for sign in ("'type': 'text'", '"type": "text"'))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two token sequences."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
