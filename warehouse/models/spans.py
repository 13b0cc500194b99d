"""Where the words of each message stand in a rendered conversation.

A chat template is a program: it may strip white space, fold the system message into a user turn,
    take a think block
out of an earlier reply, or drop a role. What it did is not guessed from how texts differ but
measured: marks, characters that are nowhere in the conversation, are put into a content, and the
    template renders it again. Where that
is the same text but for the marks, the marks stand where the words went. The template's logic sees
the content itself with a mark more; a mark that changes something else is noticed, and tried at
another place.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from warehouse.models.spelling import common_start

#: Renders messages as text; None where the template refuses them.
Render = Callable[[Sequence[dict]], str | None]

#: Places inside a content at which marks are tried where those around it are not seen.
_TRIES = 16


@dataclass(frozen=True)
class Piece:
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
    """A part of a rendering that belongs to one message; `message` is None for the generation prompt."""

    start: int
    end: int
    message: int | None
    is_template: bool


@dataclass
class Found:
    """Where the words of a conversation stand.

    Attributes:
        pieces: per message, the pieces of its words, in order; of an empty content a piece without
            characters.
        absent: messages that have words, or are there to be left out, of which the rendering has
            none.
        partial: messages of whose words the rendering has some only, or others.
    """

    pieces: list[list[Piece]]
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


def find(messages: Sequence[dict], text: str, render: Render) -> Found:
    """Find the words of each message in the rendering of all.

    Args:
        messages: the conversation, as it is given to the template.
        text: its rendering.
        render: renders messages as `text` was rendered.
    """
    search = _Search(messages, text, render)
    pieces = search.together() or [search.alone(k) for k in range(len(messages))]
    found = Found(pieces)
    for k, mine in enumerate(pieces):
        core = words(messages[k]).strip()
        if not mine and (core or render([*messages[:k], *messages[k + 1 :]]) == text):
            mine += search.once(k, pieces)
            if not mine:
                found.absent.append(k)
                continue
        if core and _letters(core) not in _letters("".join(text[p.start : p.end] for p in mine)):
            found.partial.append(k)
    return found


def _letters(text: str) -> str:
    return "".join(text.split()).casefold()


class _Search:
    """Puts marks into contents and looks where they come out."""

    def __init__(self, messages: Sequence[dict], text: str, render: Render):
        self.messages, self.text, self.render = messages, text, render
        self.contents = [words(message) for message in messages]
        self._taken = set(text).union(*self.contents)

    def seen(
        self, places: dict[int, Sequence[int]], instead: bool = False
    ) -> dict[tuple[int, int], list[int]] | None:
        """Where marks come out.

        Args:
            places: per message, where in its content a mark is put.
            instead: put it in the place of a character, so that no content gets longer.

        Returns:
            Per (message, place), where the rendering has it; None where marks change the rendering.
        """
        marks, changed, free = {}, list(self.messages), _characters_not_in(self._taken)
        originals: dict[str, str] = {}
        for k, at in places.items():
            content, last, parts = self.contents[k], 0, []
            for place in sorted(set(at)):
                mark = next(free)
                marks[mark] = (k, place)
                originals[mark] = content[place : place + instead]
                parts += [content[last:place], mark]
                last = place + instead
            changed[k] = worded(self.messages[k], "".join([*parts, content[last:]]))
        rendered = self.render(changed)
        if rendered is None:
            return None
        found: dict[tuple[int, int], list[int]] = {key: [] for key in marks.values()}
        pattern = re.compile(f"[{''.join(marks)}]")
        for n, mark in enumerate(pattern.finditer(rendered)):
            found[marks[mark[0]]].append(mark.start() - n * (not instead))
        return (
            found if pattern.sub(lambda mark: originals[mark[0]], rendered) == self.text else None
        )

    def shown(self, k: int, place: int) -> list[int]:
        """Where a mark at one place of a content comes out; nothing where it changes the rendering."""
        found = self.seen({k: (place,)})
        return found[k, place] if found else []

    def together(self) -> list[list[Piece]] | None:
        """The pieces of all messages from one rendering, which is enough for most templates."""
        whole = {k: (0, len(content)) for k, content in enumerate(self.contents)}
        for ends in (whole, {k: _core(content) for k, content in enumerate(self.contents)}):
            found = self.seen(ends)
            if found is not None:
                pairs = {
                    k: _pairs(found[k, at[0]], found[k, at[1]], at[1]) for k, at in ends.items()
                }
                return [
                    pairs[k] if pairs[k] and ends[k] == whole[k] else self.alone(k) for k in ends
                ]
        return None

    def alone(self, k: int) -> list[Piece]:
        """The pieces of one message's words."""
        core = _core(self.contents[k])
        unseen = False
        for first, last in dict.fromkeys([(0, len(self.contents[k])), core]):
            found = self.seen({k: (first, last)})
            if found is not None and (pairs := _pairs(found[k, first], found[k, last], last)):
                return pairs
            unseen |= found is not None and not found[k, first] and not found[k, last]
        if not unseen and (pieces := self._replaced(k, *core)):
            return pieces
        inner = self._inside(k, *core)
        found = self.seen({k: inner}) if inner else {}
        if unseen and found is not None and not any(found.values()):
            return []  # neither its ends nor anything between
        return sorted(self._grown(k, [*core[::-1], *inner]), key=lambda piece: piece.start)

    def _replaced(self, k: int, first: int, last: int) -> list[Piece]:
        """Pieces of a message's words where the template looks at how long they are."""
        content = self.contents[k]
        found = self.seen({k: (first, last - 1)}, instead=True) if last - first > 1 else None
        if found is None:
            return []
        pairs = _pairs(found[k, first], found[k, last - 1], last)
        if pairs:
            return [Piece(piece.start, piece.end + 1, last) for piece in pairs]
        shown = [
            (start, common_start(content[first:], self.text[start:])) for start in found[k, first]
        ]
        return [Piece(start, start + length, first + length) for start, length in shown]

    def once(self, k: int, pieces: list[list[Piece]]) -> list[Piece]:
        """Words that stand in the rendering once, with this message alone, though no mark went through."""
        core = self.contents[k].strip()
        if not core or self.text.count(core) != 1:
            return []
        start = self.text.index(core)
        end = start + len(core)
        free = all(end <= piece.start or start >= piece.end for mine in pieces for piece in mine)
        other = next(_characters_not_in(self._taken))
        without = self.render(
            [*self.messages[:k], worded(self.messages[k], other), *self.messages[k + 1 :]]
        )
        if not free or without is None or core in without:
            return []
        return [Piece(start, end, len(self.contents[k].rstrip()))]

    def _inside(self, k: int, first: int, last: int) -> list[int]:
        """Places at the beginning of words, none of them within a tag, spread over a part of a content."""
        content = self.contents[k]
        starts = [m.start() for m in re.compile(r"(?<=[\s>])[^\s<]").finditer(content, first, last)]
        return starts[:: max(1, -(-len(starts) // _TRIES))] if starts else []

    def _grown(self, k: int, places: Sequence[int]) -> Iterator[Piece]:
        """Pieces around those of some places whose marks are seen, each as long as content and rendering agree."""
        content, text = self.contents[k], self.text
        covered: list[tuple[int, int]] = []
        for at in places:
            if any(first <= at <= last for first, last in covered):
                continue
            for where in self.shown(k, at):
                first = at - common_start(content[:at][::-1], text[:where][::-1])
                last = at + common_start(content[at:], text[where:])
                # The template may write what the words that it took away ended with: that is not
                # the message's.
                if content[:first].strip():
                    first = self._nearest(k, range(first, min(at, first + _TRIES)), at)
                if content[last:].strip():
                    last = self._nearest(k, range(last, max(at, last - _TRIES), -1), at)
                covered.append((first, last))
                if last > first:
                    yield Piece(where - (at - first), where + (last - at), last)

    def _nearest(self, k: int, places: Sequence[int], default: int) -> int:
        return next((place for place in places if self.shown(k, place)), default)


def _core(content: str) -> tuple[int, int]:
    """Where a content begins and ends without the white space around it."""
    last = len(content.rstrip())
    return (len(content) - len(content.lstrip()) if last else 0), last


def _pairs(starts: list[int], ends: list[int], upto: int) -> list[Piece] | None:
    """Pieces between marks that come out equally often, one after the other."""
    if len(starts) != len(ends) or any(
        start > end for start, end in zip(starts, ends, strict=True)
    ):
        return None
    return [Piece(start, end, upto) for start, end in zip(starts, ends, strict=True)]


def _characters_not_in(taken: set[str]) -> Iterator[str]:
    """Characters that no text has a use for: those that Unicode leaves to private use."""
    return (
        chr(n)
        for n in chain(range(0xE000, 0xF900), range(0xF0000, 0x10FFFE))
        if chr(n) not in taken
    )


def segments(
    messages: Sequence[dict], text: str, found: Found, render: Render, split: bool = True
) -> list[Segment]:
    """A whole rendering as parts that belong to messages.

    What the template writes between two messages' words belongs to the former as far as it is what
    the template writes after the former alone, and to the latter from there.

    Args:
        messages: the conversation.
        text: its rendering.
        found: where its words stand.
        render: renders messages without a generation prompt.
        split: whether the text between two messages is to be shared out; else all of it belongs to
            the former.
    """
    placed = [(piece, k) for k, mine in enumerate(found.pieces) for piece in mine]
    placed += list(_empty_ones(messages, text, found, render)) if split else []
    placed.sort(key=lambda item: (item[0].start, item[0].end, item[1]))
    parts: list[Segment] = []
    at, before = 0, None
    for piece, k in placed:
        if piece.start < at:
            continue  # no two messages have the same words: what stands first keeps them
        if before is not None and before[1] != k:
            gap = text[at : piece.start]
            after = _after(messages, *before, render) if split else gap
            own = len(gap) if after is None else common_start(after, gap)
            parts.append(Segment(at, at + own, before[1], True))
            at += own
        parts += [Segment(at, piece.start, k, True), Segment(piece.start, piece.end, k, False)]
        at, before = piece.end, (piece, k)
    closed = common_start(render(messages) or "", text)
    if closed < at and before is not None:  # without a generation prompt it would be another text
        closed = at + common_start(_after(messages, *before, render) or "", text[at:])
    last = before[1] if before else len(messages) - 1
    parts += [Segment(at, closed, last, True), Segment(closed, len(text), None, True)]
    return [part for part in parts if part.end > part.start]


def _empty_ones(
    messages: Sequence[dict], text: str, found: Found, render: Render
) -> Iterator[tuple[Piece, int]]:
    """Places of empty messages into which no mark could be put: where what is rendered up to them ends."""
    for k, mine in enumerate(found.pieces):
        if not mine and k not in found.absent:
            through = render(messages[: k + 1])
            if through is not None:
                end = common_start(through, text)
                yield Piece(end, end, -1), k


def _after(messages: Sequence[dict], piece: Piece, k: int, render: Render) -> str | None:
    """What the template writes after a message's words where it is the last; None where that is not known."""
    if piece.upto < 0:
        return ""
    content = words(messages[k])
    mark = next(_characters_not_in(set("".join(words(m) for m in messages))))
    marked = worded(messages[k], content[: piece.upto] + mark + content[piece.upto :])
    rendered = render([*messages[:k], marked])
    return (
        None if rendered is None or mark not in rendered else rendered[rendered.rindex(mark) + 1 :]
    )


def owner(span: tuple[int, int], text: str, parts: Sequence[Segment]) -> tuple[int | None, bool]:
    """The message that a token belongs to, and whether it is the template's: that of a word that it has a part of."""
    start, end = span
    token = text[start:end]
    if token.strip():  # white space at its ends may be anybody's
        start, end = (
            start + len(token) - len(token.lstrip()),
            end - (len(token) - len(token.rstrip())),
        )
    for part in parts:
        if not part.is_template and start < part.end and end > part.start:
            return part.message, False
    for part in parts:
        if start < part.end:
            return part.message, part.is_template if end > start else True
    return (parts[-1].message if parts else None), True
