"""What of a warehouse comes out as arrays: tensors of a pass, conversations, states, datasets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warehouse.catalog import catalog
from warehouse.exchange import matrix, tensors
from warehouse.lake.lake import Lake

if TYPE_CHECKING:
    import pyarrow as pa
    import torch


class Arrays:
    """The part of `Warehouse` that gives arrays, and its private copy of the catalog."""

    def __init__(self, warehouse: Path | str):
        self._lake = Lake(warehouse)
        self._connection = catalog.Mirror(self._lake).cursor

    def tensor(
        self,
        run: str,
        site: str,
        *,
        layer: int | Sequence[int] | None = None,
        step: int = 0,
        prompt: int = 0,
        as_torch: bool = False,
    ) -> "np.ndarray | torch.Tensor":
        """One site of one forward pass.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            site: `hidden_out`, `q`, `mlp_act`, … or `attention`, `embeddings`, `logits`.
            layer: 0-based decoder block or several, `[0, 5]`; None for embeddings and logits.
            step: 0-based forward pass; 0 is the prefill.
            prompt: 0-based conversation within the run.
            as_torch: give a torch tensor.

        Returns:
            float32, shaped (tokens, width); `attention` is shaped (heads, tokens, keys), 0 for
            later keys. With several layers (layers, tokens, width) and (layers, heads, tokens,
            keys), in the order that was asked for.

        Raises:
            AlabError: no such run, site, layer, step or prompt; the message names those there are.

        >>> lab.tensor("latest", "hidden_out", layer=2).shape
        (12, 16)
        >>> lab.tensor("latest", "hidden_out", layer=[0, 2]).shape
        (2, 12, 16)
        >>> lab.tensor("latest", "attention", layer=0, step=3).shape
        (2, 1, 15)
        >>> lab.tensor("latest", "logits", step=1).dtype
        dtype('float32')
        """
        values = tensors.tensor(self._lake, self._connection(), run, site, layer, (prompt, step))
        return _as_torch(values) if as_torch else values

    def activations(
        self, run: str, site: str, layers: int | Sequence[int] | None = None, *, prompt: int = 0
    ) -> tensors.Activations:
        """One site over a whole conversation, prefill and decode, as one array with its tokens.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            site: `hidden_out`, `q`, `mlp_act`, … or `embeddings`, `logits`.
            layers: 0-based decoder blocks, such as `12`, `[0, 5]` or `range(12)`; None for all.
            prompt: 0-based conversation within the run.

        Returns:
            `values`, float32, (layers, tokens, width), or (tokens, width) for embeddings and
            logits; `tokens`, an Arrow table with a row per token; `table()`, both in long form.

        Raises:
            AlabError: no such run, site, layer or prompt; the message names those there are.

        >>> stream = lab.activations("latest", "hidden_out", [0, 2])
        >>> stream.values.shape, stream.tokens.column_names[:4]
        ((2, 15, 16), ['step', 'position', 'token_id', 'token'])
        >>> stream.table().column_names[:6]
        ['run_id', 'prompt_id', 'layer', 'step', 'position', 'token_id']

        What SQL says of the tokens, joined with their vectors, in pandas and in polars:

            alike = lab.sql("from token_similarity('latest', 2, 'q', 5)")
            alike.df().merge(stream.table().to_pandas())
            alike.pl().join(pl.from_arrow(stream.table()), "position")
        """
        return tensors.activations(self._lake, self._connection(), run, site, layers, prompt)

    def vector(
        self,
        run: str,
        site: str,
        layer: int,
        *,
        state: str = "final",
        label: str | None = None,
        message: int | None = None,
        example: int | None = None,
        prompt: int = 0,
        as_torch: bool = False,
    ) -> "np.ndarray | torch.Tensor":
        """One last-token state, the kind that comparisons use.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            site: hidden_in, hidden_out, attn_out or mlp_down_out.
            layer: 0-based decoder block.
            state: initial (the prefill's last token), final (the last decode step's), snapshot,
                reference, or example (each of those that a reference of several is the mean of).
            label: which reference.
            message: which snapshot: the last message that it has seen.
            example: which example: its 0-based place in the scenario's `reference_states`.
            prompt: 0-based conversation within the run; references and examples belong to all.
            as_torch: give a torch tensor.

        Returns:
            float32, shaped (width,).

        Raises:
            AlabError: one of these does not exist; the message names those that do.

        >>> lab.vector("latest", "hidden_out", 2).shape
        (16,)
        >>> lab.vector("latest", "hidden_out", 2, state="reference", label="joy").shape
        (16,)
        >>> lab.vector("latest", "hidden_out", 2, state="snapshot", message=9)
        Traceback (most recent call last):
            ...
        warehouse.errors.AlabError: there is no snapshot 9 in this run
        There are: 0, 1, 2, 3, 4, 5
        """
        db = self._connection()
        values = tensors.vector(db, run, site, layer, state, label, message, example, prompt)
        return _as_torch(values) if as_torch else values

    def matrix(
        self, run: str, site: str, layer: int, selector: str = "last"
    ) -> "tuple[np.ndarray, pa.Table]":
        """A vector for each prompt of a dataset, with its labels: what a probe is fitted on.

        Reads one column of the files of one layer. Works on conversations too, where `last` and
        `all` are the tokens of the prompt.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            site: `hidden_out`, `q`, `mlp_act`, …; of `mean` hidden_in, hidden_out, attn_out or
                mlp_down_out.
            layer: 0-based decoder block.
            selector: which positions: `last`, `all`, `message_ends`, a field of the dataset's
                template, or `mean` over the prompt's tokens.

        Returns:
            The vectors, float32, shaped (rows, width), and an Arrow table with as many rows, in the
            order of prompt_id and position: these two, then the columns of the dataset. A selector
            with several positions has a row for each; prompts of which it keeps none are in
            neither. `mean` has no position. Where the dataset has a column `position` of its own,
            ours is `token_position`.

        Raises:
            AlabError: no such run, site, layer or selector; the message names those there are.

        >>> vectors, labels = lab.matrix("latest", "hidden_out", 2)
        >>> vectors.shape, labels.column_names
        ((1, 16), ['prompt_id', 'position'])
        >>> lab.matrix("latest", "hidden_out", 2, "name")
        Traceback (most recent call last):
            ...
        warehouse.errors.AlabError: there is no selector 'name' in this run
        There are: all, last
        """
        return matrix.matrix(self._lake, self._connection(), run, site, layer, selector)

    def batches(
        self, run: str, site: str, layer: int, size: int, selector: str = "last"
    ) -> "Iterator[tuple[np.ndarray, pa.Table]]":
        """The same, `size` rows at a time, for training: memory does not grow with the run.

        Args:
            run: a run id, a unique prefix of one, or `latest`.
            site: as for `matrix`.
            layer: 0-based decoder block.
            size: rows of a batch; the last one may have fewer.
            selector: which positions, as for `matrix`.

        Raises:
            AlabError: no such run, site, layer or selector, or a size below 1.

        >>> [len(vectors) for vectors, _ in lab.batches("latest", "hidden_out", 2, 5, "all")]
        [5, 5, 2]
        """
        return matrix.batches(self._lake, self._connection(), run, site, layer, size, selector)


def _as_torch(values: np.ndarray) -> "torch.Tensor":
    import torch

    return torch.from_numpy(values)
