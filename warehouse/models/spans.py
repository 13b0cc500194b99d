"""Where the words of each message stand in a rendered conversation.

A chat template is a program: it may strip white space, fold the system message into a user turn,
take a think block out of an earlier reply, or drop a role. What it did is not guessed from how
texts differ but measured: marks, characters that are nowhere in the conversation, are put into a
content, and the template renders it again. Where that is the same text but for the marks, the marks
stand where the words went. The template's logic sees the content itself with a mark more; a mark
that changes something else is noticed, and tried at another place.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from warehouse.models.spelling import common_start

#: Renders messages as text; None where the template refuses them.
Render = Callable[[Sequence[dict]], str | None]

#: Places inside a content at which marks are tried where those around it are not seen.
_TRIES = 16


@dataclass(frozen=True)
class Span:
    """A part of a message's words in a rendering.

    Attributes:
        start: its first character in the rendering.
        end: one past its last.
        upto: one past its last in the content; -1 where no mark can be put into it.
    """

    start: int
    end: int
    upto: int


@dataclass(frozen=True)
class Segment:
    """A part of a rendering that belongs to a message; None for the generation prompt."""

    start: int
    end: int
    message: int | None
    is_template: bool


@dataclass
class Placement:
    """Where the words of a conversation stand.

    Attributes:
        spans: per message, the spans of its words, in order; of an empty content a span without
            characters.
        absent: messages that have words, or are there to be left out, of which the rendering has
            none.
        partial: messages of whose words the rendering has some only, or others.
    """

    spans: list[list[Span]]
    absent: list[int] = field(default_factory=list)
    partial: list[int] = field(default_factory=list)


def words(message: dict) -> str:
    """A message's words, whether its content is a text or one part of text."""
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


def worded(message: dict, text: str) -> dict:
    """A message with other words."""
    content = text if isinstance(message["content"], str) else [{"type": "text", "text": text}]
    return message | {"content": content}


def place(messages: Sequence[dict], text: str, render: Render) -> Placement:
    """Find the words of each message in the rendering of all.

    Args:
        messages: the conversation, as it is given to the template.
        text: its rendering.
        render: renders messages as `text` was rendered.
    """
    search = _Search(messages, text, render)
    spans = search.together() or [search.alone(k) for k in range(len(messages))]
    placement = Placement(spans)
    for k, mine in enumerate(spans):
        core = words(messages[k]).strip()
        if not mine and (core or render([*messages[:k], *messages[k + 1 :]]) == text):
            mine += search.once(k, spans)
            if not mine:
                placement.absent.append(k)
                continue
        if core and _letters(core) not in _letters("".join(text[p.start : p.end] for p in mine)):
            placement.partial.append(k)
    return placement


def _letters(text: str) -> str:
    return "".join(text.split()).casefold()


class _Search:
    """Puts marks into contents and looks where they come out."""

    def __init__(self, messages: Sequence[dict], text: str, render: Render):
        self.messages, self.text, self.render = messages, text, render
        self.contents = [words(message) for message in messages]
        self._taken = set(text).union(*self.contents)

    def marks(
        self, places: Mapping[int, Sequence[int]], instead: bool = False
    ) -> dict[tuple[int, int], list[int]] | None:
        """Where marks come out.

        Args:
            places: per message, where in its content a mark is put.
            instead: put it in the place of a character, so that no content gets longer.

        Returns:
            Per (message, place), where the rendering has it; None where marks change the rendering.
        """
        changed, free = list(self.messages), characters_not_in(self._taken)
        places_of: dict[str, tuple[int, int]] = {}
        originals: dict[str, str] = {}
        for k, at in places.items():
            content, last, parts = self.contents[k], 0, []
            for place in sorted(set(at)):
                mark = next(free)
                places_of[mark] = (k, place)
                originals[mark] = content[place : place + instead]
                parts += [content[last:place], mark]
                last = place + instead
            changed[k] = worded(self.messages[k], "".join([*parts, content[last:]]))
        rendered = self.render(changed)
        if rendered is None:
            return None
        pattern = re.compile(f"[{''.join(places_of)}]")
        if pattern.sub(lambda match: originals[match[0]], rendered) != self.text:
            return None
        outcomes: dict[tuple[int, int], list[int]] = {key: [] for key in places_of.values()}
        for n, match in enumerate(pattern.finditer(rendered)):
            outcomes[places_of[match[0]]].append(match.start() - n * (not instead))
        return outcomes

    def shown(self, k: int, place: int) -> list[int]:
        """Where a mark at one place of a content comes out; nowhere if it changes the rendering."""
        marks = self.marks({k: (place,)})
        return marks[k, place] if marks else []

    def together(self) -> list[list[Span]] | None:
        """The spans of all messages from one rendering, which is enough for most templates."""
        whole = {k: (0, len(content)) for k, content in enumerate(self.contents)}
        for ends in (whole, {k: _core(content) for k, content in enumerate(self.contents)}):
            marks = self.marks(ends)
            if marks is None:
                continue
            spans = []
            for k, (first, last) in ends.items():
                pairs = _pairs(marks[k, first], marks[k, last], last)
                spans.append(pairs if pairs and ends[k] == whole[k] else self.alone(k))
            return spans
        return None

    def alone(self, k: int) -> list[Span]:
        """The spans of one message's words."""
        core = _core(self.contents[k])
        unseen = False
        for first, last in dict.fromkeys([(0, len(self.contents[k])), core]):
            marks = self.marks({k: (first, last)})
            if marks is not None and (pairs := _pairs(marks[k, first], marks[k, last], last)):
                return pairs
            unseen |= marks is not None and not marks[k, first] and not marks[k, last]
        if not unseen and (spans := self._replaced(k, *core)):
            return spans
        inner = self._inside(k, *core)
        marks = self.marks({k: inner}) if inner else {}
        if unseen and marks is not None and not any(marks.values()):
            return []  # neither its ends nor anything between
        return sorted(self._grown(k, [*core[::-1], *inner]), key=lambda span: span.start)

    def _replaced(self, k: int, first: int, last: int) -> list[Span]:
        """Spans of a message's words where the template looks at how long they are."""
        content = self.contents[k]
        marks = self.marks({k: (first, last - 1)}, instead=True) if last - first > 1 else None
        if marks is None:
            return []
        pairs = _pairs(marks[k, first], marks[k, last - 1], last)
        if pairs:
            return [Span(span.start, span.end + 1, last) for span in pairs]
        starts = marks[k, first]
        lengths = ((at, common_start(content[first:], self.text[at:])) for at in starts)
        return [Span(start, start + length, first + length) for start, length in lengths]

    def once(self, k: int, spans: list[list[Span]]) -> list[Span]:
        """Words that stand in the rendering once, through this message, though no mark came out."""
        core = self.contents[k].strip()
        if not core or self.text.count(core) != 1:
            return []
        start = self.text.index(core)
        end = start + len(core)
        free = all(end <= span.start or start >= span.end for mine in spans for span in mine)
        other = next(characters_not_in(self._taken))
        reworded = worded(self.messages[k], other)
        without = self.render([*self.messages[:k], reworded, *self.messages[k + 1 :]])
        if not free or without is None or core in without:
            return []
        return [Span(start, end, len(self.contents[k].rstrip()))]

    def _inside(self, k: int, first: int, last: int) -> list[int]:
        """Places at the beginning of words, none within a tag, spread over a part of a content."""
        content = self.contents[k]
        starts = [m.start() for m in re.compile(r"(?<=[\s>])[^\s<]").finditer(content, first, last)]
        return starts[:: max(1, -(-len(starts) // _TRIES))] if starts else []

    def _grown(self, k: int, places: Sequence[int]) -> Iterator[Span]:
        """Spans around places whose marks come out, as long as content and rendering agree."""
        content, text = self.contents[k], self.text
        covered: list[tuple[int, int]] = []
        for at in places:
            if any(first <= at <= last for first, last in covered):
                continue
            for where in self.shown(k, at):
                first = at - common_start(content[:at][::-1], text[:where][::-1])
                last = at + common_start(content[at:], text[where:])
                # What the words that a template took away end with, it may write itself.
                if content[:first].strip():
                    first = self._nearest(k, range(first, min(at, first + _TRIES)), at)
                if content[last:].strip():
                    last = self._nearest(k, range(last, max(at, last - _TRIES), -1), at)
                covered.append((first, last))
                if last > first:
                    yield Span(where - (at - first), where + (last - at), last)

    def _nearest(self, k: int, places: Sequence[int], default: int) -> int:
        return next((place for place in places if self.shown(k, place)), default)


def _core(content: str) -> tuple[int, int]:
    """Where a content begins and ends without the white space around it."""
    last = len(content.rstrip())
    return (len(content) - len(content.lstrip()) if last else 0), last


def _pairs(starts: list[int], ends: list[int], upto: int) -> list[Span] | None:
    """Spans between marks that come out equally often, one after the other."""
    pairs = list(zip(starts, ends, strict=False))
    if len(starts) != len(ends) or any(start > end for start, end in pairs):
        return None
    return [Span(start, end, upto) for start, end in pairs]


def characters_not_in(taken: set[str]) -> Iterator[str]:
    """Characters that no text has a use for: those that Unicode leaves to private use."""
    private = map(chr, chain(range(0xE000, 0xF900), range(0xF0000, 0x10FFFE)))
    return (character for character in private if character not in taken)


def segments(
    messages: Sequence[dict], text: str, placement: Placement, render: Render, split: bool = True
) -> list[Segment]:
    """A whole rendering as parts that belong to messages.

    What the template writes between two messages' words belongs to the former as far as it is what
    the template writes after the former alone, and to the latter from there.

    Args:
        messages: the conversation.
        text: its rendering.
        placement: where its words stand.
        render: renders messages without a generation prompt.
        split: whether the text between two messages is to be shared out; else all of it belongs to
            the former.
    """
    placed = [(span, k) for k, mine in enumerate(placement.spans) for span in mine]
    placed += list(_empty_ones(messages, text, placement, render)) if split else []
    placed.sort(key=lambda item: (item[0].start, item[0].end, item[1]))
    parts: list[Segment] = []
    at, before = 0, None
    for span, k in placed:
        if span.start < at:
            continue  # no two messages have the same words: what stands first keeps them
        if before is not None and before[1] != k:
            gap = text[at : span.start]
            after = _after(messages, *before, render) if split else gap
            own = len(gap) if after is None else common_start(after, gap)
            parts.append(Segment(at, at + own, before[1], True))
            at += own
        parts += [Segment(at, span.start, k, True), Segment(span.start, span.end, k, False)]
        at, before = span.end, (span, k)
    closed = common_start(render(messages) or "", text)
    if closed < at and before is not None:  # without a generation prompt it would be another text
        closed = at + common_start(_after(messages, *before, render) or "", text[at:])
    last = before[1] if before else len(messages) - 1
    parts += [Segment(at, closed, last, True), Segment(closed, len(text), None, True)]
    return [part for part in parts if part.end > part.start]


def _empty_ones(
    messages: Sequence[dict], text: str, placement: Placement, render: Render
) -> Iterator[tuple[Span, int]]:
    """Places of empty messages that take no mark: where what is rendered up to them ends."""
    for k, mine in enumerate(placement.spans):
        if not mine and k not in placement.absent:
            through = render(messages[: k + 1])
            if through is not None:
                end = common_start(through, text)
                yield Span(end, end, -1), k


def _after(messages: Sequence[dict], span: Span, k: int, render: Render) -> str | None:
    """What the template writes after the words of a last message; None where that is unknown."""
    if span.upto < 0:
        return ""
    content = words(messages[k])
    mark = next(characters_not_in(set("".join(words(m) for m in messages))))
    marked = worded(messages[k], content[: span.upto] + mark + content[span.upto :])
    rendered = render([*messages[:k], marked])
    return rendered.rpartition(mark)[2] if rendered and mark in rendered else None


def owner(
    characters: tuple[int, int], text: str, parts: Sequence[Segment]
) -> tuple[int | None, bool]:
    """The message of a token's characters, and whether they are the template's.

    A token that has a part of a message's word belongs to that message.
    """
    start, end = characters
    token = text[start:end]
    if token.strip():  # white space at its ends may be anybody's
        end = start + len(token.rstrip())
        start += len(token) - len(token.lstrip())
    for part in parts:
        if not part.is_template and start < part.end and end > part.start:
            return part.message, False
    for part in parts:
        if start < part.end:
            return part.message, part.is_template if end > start else True
    return (parts[-1].message if parts else None), True
