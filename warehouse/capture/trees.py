"""Whether a dataset's prompts are read as trees, which read a shared beginning once, and in which.

Padded side by side, prompts are read as long as they are; in a tree the tokens that they begin with
alike are there once, but a pass weighs all of its tokens against one another. Which is faster
depends on the prompts, the model and the device: it is measured, where enough tokens are saved.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from warehouse.capture.batches import PlannedBatch, make_batches
from warehouse.capture.dataset_prompts import DatasetPrompts
from warehouse.capture.plan import Plan
from warehouse.capture.proof import limit
from warehouse.models import limits
from warehouse.models.batch import Batch
from warehouse.models.branches import FILL, Branches, filled
from warehouse.models.chat import common_length
from warehouse.models.offload import device_of
from warehouse.models.reader import Reader

#: Tokens of a tree beyond those of the longest prompt: its attention grows with the square.
TOKENS = {"cpu": 512, "cuda": 1 << 12}
#: Prompts of a dataset, at the least: with fewer, measuring takes what trees could save.
FEWEST = 128
#: Share of the padded tokens, at the most, that are read as trees; and of the time.
FEWER_TOKENS, LESS_TIME = 0.75, 0.9
#: Seconds of a pass from which on it says how fast longer ones are.
CLEAR = 0.2
#: Times that either way is measured, at the most; share of the run from which on it is enough.
ROUNDS, SHARE = 3, 0.02

Cut = Callable[[int, list[int]], Iterable[PlannedBatch]]


def choose_trees(
    plan: Plan, prompts: DatasetPrompts, size: int, room: int
) -> dict[str, int] | None:
    """Measure whether trees are the faster way to read a dataset here, and right.

    Args:
        plan: the request and its model.
        prompts: what is read.
        size: prompts of a padded batch, at the most.
        room: bytes of recorded rows of a pass, at the most.

    Returns:
        `prompts` and `tokens` of a tree, at the most; None where prompts are padded.
    """
    trees = _largest(plan, prompts, room)
    if not plan.sites.branches or len(prompts.readable) < FEWEST or not trees:
        return None
    size = size if plan.sites.batches else 1
    given = prompts.lengths, prompts.dataset.ids, prompts.readable
    planned = list(make_batches(*given, size, cut=cut_trees(plan, prompts, trees)))
    grown = sum(batch.tree for batch in planned)
    padded = sum(len(batch.prompts) * batch.padded for batch in make_batches(*given, size))
    if grown > FEWER_TOKENS * padded:
        return None
    some = [prompts.ids(prompt) for prompt in planned[len(planned) // 2].prompts]
    with torch.inference_mode():
        speed = _Speed(plan, size)
        faster = speed.agree(some[:8]) and speed.trees_win(some, grown, padded)
    return trees if faster else None


def _largest(plan: Plan, prompts: DatasetPrompts, room: int) -> dict[str, int] | None:
    """Prompts and tokens of a tree, at the most; None where some prompt fits into none."""
    model, longest = plan.loaded.model, max(prompts.lengths)
    tokens = longest + TOKENS.get(device_of(model).type, TOKENS["cpu"])
    tokens = int(min(tokens, limits.tree_tokens(model))) // FILL * FILL
    count = max(1, room // _prompt_bytes(plan, prompts))
    return {"prompts": count, "tokens": tokens} if longest <= tokens else None


def cut_trees(plan: Plan, prompts: DatasetPrompts, trees: dict[str, int] | None) -> Cut | None:
    """What cuts the prompts of a shard into trees: neighbours in the order of their tokens."""
    if not trees:
        return None

    def cut(shard: int, some: list[int]) -> Iterator[PlannedBatch]:
        groups = _groups(plan, prompts, some, trees)
        for number, (group, tokens) in enumerate(groups):
            longest = max(prompts.lengths[prompt] for prompt in group)
            yield PlannedBatch(shard, number, tuple(group), longest, filled(tokens))

    return cut


def _groups(
    plan: Plan, prompts: DatasetPrompts, some: list[int], most: dict[str, int]
) -> Iterator[tuple[list[int], int]]:
    """Prompts of each tree, and its tokens."""
    group, tokens, before, regime = list[int](), 0, list[int](), tuple[int, ...]()
    for prompt, ids in sorted(((n, prompts.ids(n)) for n in some), key=lambda pair: pair[::-1]):
        own = limits.rotary_regime(plan.loaded.model, len(ids))
        grown = tokens + len(ids) - common_length(before, ids)
        if group and (own != regime or grown > most["tokens"] or len(group) == most["prompts"]):
            yield group, tokens
            group = []
        tokens = grown if group else len(ids)
        group.append(prompt)
        before, regime = ids, own
    if group:
        yield group, tokens


def _prompt_bytes(plan: Plan, prompts: DatasetPrompts) -> int:
    """Bytes that the recorded rows of a prompt take, on average."""
    values = prompts.tokens * sum(sum(widths.values()) for widths in plan.widths.values())
    if plan.scenario.capture.keeps("attention"):
        heads = plan.loaded.model.config.get_text_config().num_attention_heads
        values += prompts.tokens * max(prompts.lengths) * heads * len(plan.layers)
    return max(1, 4 * values // len(prompts.readable))


class _Speed:
    """How fast a model reads sequences in trees, and padded in batches of `size`."""

    def __init__(self, plan: Plan, size: int):
        self._reader, self._limit = Reader(plan.loaded.model), limit(plan.loaded.dtype)
        self._size = size

    def agree(self, some: Sequence[list[int]]) -> bool:
        """Whether a tree gives its last sequence the logits that it has alone."""
        along, alone = self._read([Branches(some)])[-1], self._read([Batch(some[-1:])])[0]
        return bool((along - alone).float().norm() <= self._limit * alone.float().norm())

    def trees_win(self, some: Sequence[list[int]], grown: int, padded: int) -> bool:
        """Whether so many tokens in trees take clearly less time than so many padded ones.

        The ways take turns, so that a machine whose speed drifts slows them alike.
        """
        start, tree, side = time.perf_counter(), math.inf, math.inf
        for _ in range(ROUNDS):
            tree = min(tree, grown * self._seconds(some, self._trees))
            side = min(side, padded * self._seconds(some, self._padded))
            if time.perf_counter() - start > SHARE * min(tree, side):
                break
        return tree <= LESS_TIME * side

    def _trees(self, some: Sequence[list[int]]) -> list[Batch | Branches]:
        return [Branches(some)]

    def _padded(self, some: Sequence[list[int]]) -> list[Batch | Branches]:
        return [Batch(some[n : n + self._size]) for n in range(0, len(some), self._size)]

    def _seconds(self, some: Sequence[list[int]], passes: Callable) -> float:
        """Per token that is read, of as many sequences as take long enough to tell, or of all."""
        count, took = 0, 0.0
        while took < CLEAR and count < len(some):
            count = min(max(8, 2 * count), len(some))
            start, batches = time.perf_counter(), passes(some[:count])
            self._read(batches)
            took = time.perf_counter() - start
        return took / sum(batch.shape[0] * batch.shape[1] for batch in batches)

    def _read(self, batches: Sequence[Batch | Branches]) -> Tensor:
        logits = torch.cat([self._reader.read_batch(batch) for batch in batches])
        logits.sum().item()  # waits for the device
        return logits
