"""The mathematics of the logit lens: from residual streams to what each layer would say next."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from warehouse.lens.head import Head

#: Logits that are looked at together.
LOGIT_VALUES = 1 << 24
#: Neighbouring tokens of the vocabulary whose best logit stands for them in the search for the top.
_BUCKET = 32


@dataclass
class Answers:
    """What the lens says of some tokens.

    Attributes:
        top: (tokens, layers, k) ids of the most likely tokens, most likely first.
        logprobs: (tokens, layers, k) their log-probabilities, nats.
        kl: (tokens, layers) KL(layer ‖ final), nats.
        next_rank: (tokens, layers) rank of the token that follows, from 0; -1 where none does.
        next_logprob: (tokens, layers) its log-probability, nats.
    """

    top: np.ndarray
    logprobs: np.ndarray
    kl: np.ndarray
    next_rank: np.ndarray
    next_logprob: np.ndarray


@torch.inference_mode()
def look(head: Head, streams: Tensor, targets: list[int], top_k: int) -> Answers:
    """Apply the lens to (tokens, layers, width) streams, of which the last layer counts as final.

    All rows meet one block of the vocabulary after another, so that memory is bounded however large
    it is. Each look at a block costs as much as a tenth of its matrix product, so looks are few.

    `targets` has for each token the id of the one that follows; -1 where none does.
    """
    tokens, layers, width = streams.shape
    rows, vocabulary = tokens * layers, len(head.unembedding)
    normed = head.normed(streams.reshape(rows, width))
    following = torch.tensor(targets).repeat_interleave(layers)
    tally = _Tally(tokens, layers, top_k, following, head.logits_of(normed, following.clamp_min(0)))
    size = min(vocabulary, max(_BUCKET, LOGIT_VALUES // rows // _BUCKET * _BUCKET))
    room = torch.empty(2, rows * size)
    for first in range(0, vocabulary, size):
        count = min(size, vocabulary - first)
        logits, scratch = room[:, : rows * count].view(2, rows, count)
        head.logits(normed, slice(first, first + count), out=logits)
        tally.add(first, logits, scratch)
    return tally.answers()


class _Tally:
    """What is known of all rows after some blocks of the vocabulary; a row is a token and layer.

    Sums of exponentials are relative to the row's largest logit so far, as in a streamed softmax.

    Args:
        tokens, layers: how many; rows are in this order.
        top_k: tokens to keep of each row.
        following: (rows,) token that follows; -1 where none does.
        following_logits: (rows, 1) its logits.
    """

    def __init__(
        self, tokens: int, layers: int, top_k: int, following: Tensor, following_logits: Tensor
    ):
        rows = tokens * layers
        self._tokens, self._layers, self._k = tokens, layers, top_k
        self._following, self._following_logits = following, following_logits
        self._rank = torch.zeros(rows, dtype=torch.int32)
        self._values, self._ids = torch.empty(rows, 0), torch.empty(rows, 0, dtype=torch.int64)
        self._largest, self._sum = torch.full((rows, 1), -torch.inf), torch.zeros(rows, 1)
        #: (tokens, one layer, another): the one's logits, averaged over what the other expects.
        self._means = torch.zeros(tokens, layers, layers)

    def add(self, first: int, logits: Tensor, scratch: Tensor) -> None:
        """Take in a block of the vocabulary from a token on; overwrites both (rows, block)."""
        best, places = _top(logits, min(self._k, logits.shape[1]))
        shares = torch.softmax(logits, -1, out=scratch)
        self._merge_top(best, places + first)
        added = self._add_exponentials(best[:, :1], shares.gather(1, places[:, :1]))
        self._merge_means(logits, shares, added)
        self._count_above(first, logits, scratch)

    def _merge_top(self, values: Tensor, ids: Tensor) -> None:
        """The largest of those so far and the block's."""
        values, ids = torch.cat([self._values, values], 1), torch.cat([self._ids, ids], 1)
        self._values, chosen = values.topk(min(self._k, values.shape[1]))
        self._ids = ids.gather(1, chosen)

    def _add_exponentials(self, best: Tensor, share: Tensor) -> Tensor:
        """Add the block's sum of exponentials, which its best token's share of it tells.

        Returns:
            (rows, 1) what was added.
        """
        largest = self._values[:, :1]
        added = (best - largest).exp_() / share
        added.masked_fill_(best == -torch.inf, 0.0)  # a block of tokens that the model never says
        # Until a token that the model says, the largest are −∞, and −∞ − −∞ is no number.
        self._sum = self._sum * (self._largest - largest).exp_().nan_to_num_(0.0) + added
        self._largest = largest
        return added

    def _merge_means(self, logits: Tensor, shares: Tensor, added: Tensor) -> None:
        """Average the means so far with those over the block, each by its share of the sum."""
        shape = self._tokens, self._layers, -1
        shares, others = shares.view(shape), logits.view(shape).transpose(1, 2)
        of_block = torch.bmm(shares, others)
        if not of_block.isfinite().all():  # 0 · −∞, of tokens that the model never says: nothing
            of_block = torch.bmm(shares, others.clamp_min(torch.finfo(others.dtype).min))
        weight = (added / self._sum).view(shape)
        merged = self._means + (of_block - self._means) * weight
        self._means = torch.where(weight > 0, merged, self._means)

    def _count_above(self, first: int, logits: Tensor, scratch: Tensor) -> None:
        """Count the block's tokens above the one that follows; overwrites both tensors."""
        inside = (self._following >= first) & (self._following < first + logits.shape[1])
        rows = inside.nonzero()[:, 0]
        # A token is not above itself, whatever the rounding.
        logits[rows, self._following[rows] - first] = -torch.inf
        self._rank += torch.gt(logits, self._following_logits, out=scratch).sum(-1).int()

    def answers(self) -> Answers:
        """What is known once the whole vocabulary is in."""
        shape = self._tokens, self._layers
        logs = (self._largest + self._sum.log()).view(*shape, 1)  # of the sums of exponentials
        apart = self._means.diagonal(dim1=1, dim2=2) - self._means[:, :, -1]
        kl = (apart - logs[..., 0] + logs[:, -1]).clamp_min_(0)
        self._rank[self._following < 0] = -1
        return Answers(
            self._ids.view(*shape, -1).numpy(),
            (self._values.view(*shape, -1) - logs).numpy(),
            kl.numpy(),
            self._rank.view(shape).numpy(),
            (self._following_logits.view(shape) - logs[..., 0]).numpy(),
        )


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and places of the k largest logits of each row, both (rows, k).

    The k largest lie in the k buckets with the largest maxima, which are much fewer to sort.
    """
    rows, vocabulary = logits.shape
    whole = vocabulary // _BUCKET
    if whole <= k:
        values, places = logits.topk(k)
        return values, places
    buckets = logits[:, : whole * _BUCKET].view(rows, whole, _BUCKET)
    chosen = buckets.amax(-1).topk(k).indices
    ids = (chosen[:, :, None] * _BUCKET + torch.arange(_BUCKET)).view(rows, -1)
    rest = torch.arange(whole * _BUCKET, vocabulary).expand(rows, -1)
    ids = torch.cat([ids, rest], 1)
    values, at = logits.gather(1, ids).topk(k)
    return values, ids.gather(1, at)
