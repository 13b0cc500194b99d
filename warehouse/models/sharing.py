"""Whether a model reads several sequences together rightly, and goes on from its cache: by numbers.

A tree needs a mask and positions that are not those of one sequence: alibi has no such positions,
some kinds of attention have no such mask. A cache may not go back, a batch may mix up its rows.
Where a model ignores what it is told, some token's state moves by far more than rounding.
"""

import torch
from torch import Tensor, nn

from warehouse.errors import AlabError
from warehouse.models.batch import Batch
from warehouse.models.branches import Branches
from warehouse.models.probe import alike, outputs_of
from warehouse.models.reader import Reader

#: Tokens that the sequences of a probe begin with alike.
_STEM = 2


def decodes(reader: Reader, tokens: list[int], logits: Tensor) -> bool:
    """Whether a decode step over the cache gives the (tokens, vocabulary) logits of one pass.

    The reader's cache holds the tokens afterwards.
    """
    try:
        with torch.no_grad():
            reader.rewind(0)
            reader.read(tokens[:-1])
            step = reader.read(tokens[-1:])
    except AlabError:  # no cache, which is said where one is needed
        return True
    return bool(alike(step, logits[-1:]).all())


def trees_and_rewinds(
    reader: Reader, layer: nn.Module, tokens: list[int], plain: Tensor
) -> tuple[bool, bool]:
    """Whether a model reads trees rightly, and whether its cache goes back; one pass or three.

    Args:
        reader: of the model, whose cache holds the tokens, as `decodes` leaves it.
        layer: its last decoder layer.
        tokens: tokens of a plain pass.
        plain: what the layer gave for them, (tokens, width).
    """
    stem, rest = tokens[:_STEM], tokens[_STEM:]
    other = [*stem, *rest[3:], *rest[:3]]

    def right(reader: Reader, sequences: list[list[int]]) -> bool:
        try:
            if reader.ids != tokens:
                reader.read(tokens)
            reader.rewind(len(stem))
            tree = next(reader.as_trees(sequences))
            reader.read_tree(tree)
            states = outputs[layer][-1].flatten(0, -2)
            same = _close(states[-len(rest) :], plain[len(stem) :])
        except Exception:  # whatever the model's own code does with what it does not expect
            return False
        return same and len(tree.ends) == len(sequences) and tree.trunk == len(stem)

    with torch.no_grad(), outputs_of([layer]) as outputs:
        trees = right(reader, [other, tokens])
        return trees, trees or right(Reader(reader.model), [tokens])


def batches(
    reader: Reader,
    layer: nn.Module,
    tokens: list[int],
    plain: Tensor,
    kind: type[Batch] | type[Branches] = Batch,
) -> bool:
    """Whether a model reads sequences of different lengths in one pass rightly; costs two passes.

    Arguments as of `trees_and_rewinds`; `kind` is how the pass reads them.
    """
    short = [*tokens[:_STEM], *tokens[:_STEM:-1]][: len(tokens) // 2 + 1]
    batch = kind([short, tokens])
    with torch.no_grad(), outputs_of([layer]) as outputs:
        try:
            reader.read_batch(Batch([short]))
            reader.read_batch(batch)
            alone, together = (states.flatten(0, -2) for states in outputs[layer])
            return _close(batch.pick(together), torch.cat([alone, plain]))
        except Exception:  # as above
            return False


def _close(states: Tensor, plain: Tensor) -> bool:
    """Whether no token's state moved by more than rounding explains."""
    apart = (states.to(plain.device) - plain).norm(dim=1) / plain.norm(dim=1)
    return bool((apart.float() < (1e-5 if torch.finfo(plain.dtype).eps < 1e-6 else 0.05)).all())
