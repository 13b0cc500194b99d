"""What is read after a reply: its tokens, and what the chat template writes after a reply."""

from collections.abc import Collection, Sequence


def continued(
    generated: Sequence[int],
    tail: Sequence[int],
    ends: Collection[int],
    marks: Collection[int],
    blank: int = 0,
) -> list[int]:
    """The generated tokens and then the template's tail.

    A token at the end that only stops the generation is not part of the conversation, unless the
    tail begins with it. What ends a turn and is there already, as the model generated it, is not
    written again.

    Args:
        generated: the reply's tokens, an end-of-sequence token included.
        tail: tokens that the template writes after a reply, the next generation prompt included.
        ends: end-of-sequence tokens.
        marks: tokens that are no text, such as `<|im_end|>`.
        blank: how many tokens of white space the tail begins with; a reply that has ended needs
            none.

    >>> end, stop, header, space = 1, 2, 3, 4
    >>> continued([7, 8, end], [end, header], {end, stop}, {end, stop, header})
    [7, 8, 1, 3]
    >>> continued([7, 8, end, stop], [end, header], {stop}, {end, stop, header})
    [7, 8, 1, 3]
    >>> continued([7, 8], [end, header], {stop}, {end, stop, header})
    [7, 8, 1, 3]
    >>> continued([7, 8, stop], [space, stop, header], {stop}, {stop, header}, blank=1)
    [7, 8, 2, 3]
    >>> continued([7, 8], [space, stop, header], {stop}, {stop, header}, blank=1)
    [7, 8, 4, 2, 3]
    """
    reply, begun = list(generated), list(tail[blank:])
    if reply and reply[-1] in ends and reply[-1:] != begun[:1]:
        reply.pop()
    most = min(len(reply), len(begun)) if begun and begun[0] in marks else 0
    shared = next((n for n in range(most, 0, -1) if reply[-n:] == begun[:n]), 0)
    return [*reply, *(begun[shared:] if shared else tail)]
