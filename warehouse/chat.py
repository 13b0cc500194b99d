"""Turns messages into tokens, and knows which message each token belongs to."""

import json
from dataclasses import dataclass
from typing import Any

from warehouse.errors import AlabError

#: Stands in for a message's content while the template's own text around it is found out.
_SENTINEL = "\ue000alab\ue001"


@dataclass(frozen=True)
class Span:
    """Where one message stands in a rendered conversation, in characters.

    Attributes:
        start: first character, template text included.
        content_start: first character of the content.
        content_end: one past the last character of the content.
        end: one past the last character, template text included.
    """

    start: int
    content_start: int
    content_end: int
    end: int


@dataclass
class Rendered:
    """A conversation as the model reads it.

    Attributes:
        text: the rendered text.
        ids: its token ids.
        owners: per token (message_index or None, role, is_template).
    """

    text: str
    ids: list[int]
    owners: list[tuple[int | None, str, bool]]


class Chat:
    """A tokenizer's way of writing conversations.

    With a chat template, every conversation and every prefix of one is rendered with the generation prompt,
    also where the last message is the assistant's. Without one, the contents are joined by newlines.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.has_template = bool(getattr(tokenizer, "chat_template", None))

    def text(self, messages: list[dict], *, generation_prompt: bool = True) -> str:
        """Render messages as text; raises what the template raises."""
        if not self.has_template:
            return "\n".join(message["content"] for message in messages)
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered text. The template writes its own special tokens: none are added twice."""
        return self.tokenizer(text, add_special_tokens=not self.has_template)["input_ids"]

    def check(self, messages: list[dict], where: str) -> None:
        """Make sure that the template takes the conversation.

        Raises:
            AlabError: with exit code 2; names the first message that the template rejects.
        """
        reason = self._rejection(messages)
        if reason is None:
            return
        for k in range(len(messages)):
            if self._rejection(messages[: k + 1]) is not None and (k + 1 == len(messages) or k > 0):
                role = messages[k]["role"]
                raise AlabError(
                    f"{where}.messages[{k}] (role {role}): the chat template rejects the conversation: {reason}",
                    "Change the roles or their order.",
                    2,
                )
        raise AlabError(
            f"{where}.messages: the model's chat template rejects the conversation: {reason}", exit_code=2
        )

    def prefix(self, messages: list[dict]) -> str | None:
        """Render a prefix of a conversation; None where the template takes the whole but not this part."""
        return None if self._rejection(messages) is not None else self.text(messages)

    def render(self, messages: list[dict]) -> Rendered:
        """Render a conversation and find the message of each token."""
        text = self.text(messages)
        spans = self.spans(messages, text)
        encoding = self.tokenizer(
            text, add_special_tokens=not self.has_template,
            return_offsets_mapping=bool(getattr(self.tokenizer, "is_fast", False)),
        )  # fmt: skip
        ids = encoding["input_ids"]
        offsets = encoding.get("offset_mapping")
        if offsets is None:
            offsets = self._offsets_from_prefixes(text, ids)
        return Rendered(text, ids, [self._owner(span, spans, messages) for span in offsets])

    def spans(self, messages: list[dict], text: str) -> list[Span]:
        """Where each message stands in the rendered text.

        Found from the renderings of the prefixes. A sentinel in place of the content tells what the template
        writes before and after it, so a content that looks like template text, or stands there twice, is found too.
        Where a template rewrites earlier turns, only as much of them as still agrees is marked.
        """
        spans, start, sentinel = [], 0, _SENTINEL
        while any(sentinel in message["content"] for message in messages):
            sentinel += _SENTINEL
        for k, message in enumerate(messages):
            through = self._without_prompt(messages[: k + 1])
            marked = self._without_prompt([*messages[:k], message | {"content": sentinel}])
            end = max(start, len(_common_prefix(through, text)) if through is not None else start)
            if k + 1 == len(messages) and not self.has_template:
                end = len(text)
            content_start = content_end = end
            at = marked.find(sentinel) if marked is not None else -1
            if at >= 0 and through is not None:
                suffix = len(marked) - at - len(sentinel)
                inside = through[at : len(through) - suffix]
                # Round trip: what was found must be the content, give or take the white space a template trims.
                if inside.strip() == message["content"].strip() and text[at : at + len(inside)] == inside:
                    content_start, content_end = at, at + len(inside)
            spans.append(Span(start, content_start, content_end, end))
            start = end
        return spans

    def token_text(self, token_id: int) -> str:
        """Text of one token; the vocabulary's own spelling where its bytes are not valid UTF-8 alone."""
        text = self.tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if "\ufffd" in text or text == "":
            raw = self.tokenizer.convert_ids_to_tokens(token_id)
            return raw if isinstance(raw, str) else text
        return text

    def decode(self, ids: list[int]) -> str:
        """Text of a reply: all ids together, special tokens dropped."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def describe(self) -> str:
        """The tokenizer in short, as JSON."""
        return json.dumps({
            "class": type(self.tokenizer).__name__,
            "vocab_size": len(self.tokenizer),
            "special_tokens": {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()},
            "chat_template": getattr(self.tokenizer, "chat_template", None),
        })  # fmt: skip

    def _rejection(self, messages: list[dict]) -> str | None:
        """Why the template rejects messages; None where it takes them."""
        from jinja2 import TemplateError

        try:
            self.text(messages)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            return str(error) or type(error).__name__
        return None

    def _without_prompt(self, messages: list[dict]) -> str | None:
        from jinja2 import TemplateError

        try:
            return self.text(messages, generation_prompt=False)
        except (TemplateError, ValueError, TypeError, KeyError):
            return None

    def _owner(
        self, offset: tuple[int, int], spans: list[Span], messages: list[dict]
    ) -> tuple[int | None, str, bool]:
        first, last = offset
        if self.has_template or last > first:
            for k, span in enumerate(spans):
                if first < span.end and (first >= span.start or last > span.start):
                    is_template = not (first < span.content_end and last > span.content_start)
                    return k, messages[k]["role"], is_template
        return None, "assistant" if self.has_template else messages[0]["role"], True

    def _offsets_from_prefixes(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """Characters of each token for a tokenizer that does not tell them: lengths of decoded prefixes."""
        ends = [
            len(_common_prefix(self.tokenizer.decode(ids[: i + 1], skip_special_tokens=False), text))
            for i in range(len(ids))
        ]
        return list(zip([0, *ends[:-1]], ends, strict=True))


def _common_prefix(a: str, b: str) -> str:
    low, high = 0, min(len(a), len(b))
    while low < high:  # binary search over string comparisons, which run in C
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return a[:low]


def common_length(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix of two token sequences."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
