"""Which prompts of a dataset are read together: the batch plan.

Which prompts share a pass changes the last bits of what a model computes, so the plan is made once,
stored with the run, and followed by whoever goes on with it. Prompts are dealt to shards by a hash
of their row's id, which another machine computes too; within a shard prompts of like length meet,
so that little is padded.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from warehouse.errors import AlabError
from warehouse.scenario import Scenario

#: Prompts of a shard, about: what a killed capture loses at the most.
SHARD = 2048
#: Tokens of a batch, padding included: beyond it a batch has fewer prompts.
BATCH_TOKENS = 1 << 13
#: Which shard, from 1, of how many.
Share = tuple[int, int]


@dataclass(frozen=True)
class PlannedBatch:
    """Prompts that are read in one pass.

    Attributes:
        shard: the shard that it is a part of.
        number: its place in the shard.
        prompts: their `prompt_id`, the shortest first; of a tree in the order of their tokens.
        padded: tokens that each is filled up to; of a tree those of the longest.
        tree: tokens of the tree that they are; 0 where they are padded side by side.
    """

    shard: int
    number: int
    prompts: tuple[int, ...]
    padded: int
    tree: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and tokens of the pass: those of one shape give a padded prompt the same bits.

        In a tree, bits depend on its branches too.
        """
        return (1, self.tree) if self.tree else (len(self.prompts), self.padded)


@dataclass(frozen=True)
class BatchPlan:
    """All batches of a dataset.

    Attributes:
        size: prompts of a batch, at the most.
        shards: the batches of each shard, in the order in which they are read.
    """

    size: int
    shards: tuple[tuple[PlannedBatch, ...], ...]

    def __iter__(self) -> Iterator[PlannedBatch]:
        return (batch for shard in self.shards for batch in shard)

    @property
    def digest(self) -> str:
        """What tells whether two plans are the same."""
        return hashlib.sha256(repr(list(self)).encode()).hexdigest()


def make_batches(
    lengths: Sequence[int],
    row_ids: Sequence[str],
    prompts: Sequence[int],
    size: int,
    shard: int | None = None,
    *,
    cut: Callable[[int, list[int]], Iterable[PlannedBatch]] | None = None,
    parts: int = 1,
) -> BatchPlan:
    """Plan which prompts are read together.

    Args:
        lengths: tokens of each prompt, by `prompt_id`.
        row_ids: id of each prompt's row, likewise.
        prompts: the prompts to read.
        size: prompts of a batch, at the most.
        shard: prompts of a shard, about.
        cut: makes the batches of a shard, of its number and its prompts, where they are no padded
            ones of like length.
        parts: how many share the work: there are as many shards for each, and the shards of part
            k, those whose number is k modulo `parts`, have the rows for which `shard_of` says k.

    >>> plan = make_batches([3, 9, 3, 4], ["a", "b", "c", "d"], [0, 1, 2, 3], size=2)
    >>> [(batch.prompts, batch.padded) for batch in plan]
    [((0, 2), 3), ((3, 1), 9)]
    """
    count = parts * -(-len(prompts) // (parts * (shard or SHARD)))
    dealt: list[list[int]] = [[] for _ in range(count)]
    for prompt in prompts:
        dealt[shard_of(row_ids[prompt], count)].append(prompt)
    cut = cut or partial(_cut, lengths=lengths, size=size)
    return BatchPlan(size, tuple(tuple(cut(number, some)) for number, some in enumerate(dealt)))


def shard_of(row_id: str, count: int) -> int:
    """The shard of a row, by a hash of its id."""
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8]) % count


def parse_share(text: str) -> Share:
    """The shard that a text such as `3/16` means.

    Raises:
        AlabError: with exit code 2; it means none.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise AlabError(
            f"--shard: {text!r} is no shard", "Write for example 3/16; the first is 1/16.", 2
        )
    return index, count


def is_in(scenario: Scenario, share: Share) -> bool:
    """Whether a scenario, one of several, is in a shard of them."""
    return shard_of(scenario.name, share[1]) == share[0] - 1


def refuse_undivided(scenario: Scenario) -> None:
    """Refuse a scenario that has no rows to share."""
    if not scenario.is_read_only:
        raise AlabError(
            f"{scenario.name} is no dataset that is read only: it has no shards",
            "Capture it without --shard and --finish; of several scenarios --shard takes some.",
            2,
        )


def _cut(
    shard: int, prompts: list[int], lengths: Sequence[int], size: int
) -> Iterator[PlannedBatch]:
    """Cut the prompts of a shard into padded batches of like length."""
    prompts = sorted(prompts, key=lambda p: (lengths[p], p))
    number, first = 0, 0
    while first < len(prompts):
        last = first + 1
        while last < len(prompts) and last - first < size:
            if (last + 1 - first) * lengths[prompts[last]] > BATCH_TOKENS:
                break
            last += 1
        yield PlannedBatch(shard, number, tuple(prompts[first:last]), lengths[prompts[last - 1]])
        number, first = number + 1, last
