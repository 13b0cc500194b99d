"""Writes the arrays of an imported directory as part files, a block of rows at a time."""

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np

from warehouse.exchange.directory import Directory, ImportedPass
from warehouse.lake.parts import Parts
from warehouse.lake.staging import StagedRun

#: Rows, and values of attention and outputs, that are compressed together.
GROUP_ROWS, GROUP_VALUES = 128, 1 << 20

#: Columns of some rows, as `PageWriter.write` takes them.
Columns = dict[str, Any]


def write_layer(staged: StagedRun, source: Directory, layer: int | None) -> None:
    """Write the part files of one layer, or those of embeddings and logits."""
    widths = {site: width for (n, site), width in source.widths.items() if n == layer}
    if widths:
        values, rows = sum(widths.values()), GROUP_ROWS
        if layer is None:
            rows = min(rows, max(1, GROUP_VALUES // values))
        dataset = "outputs" if layer is None else "activations"
        with Parts(staged, dataset, layer, widths) as parts:
            blocks = (_vectors(source, one, layer, rows) for one in source.passes)
            _write(parts, chain.from_iterable(blocks), rows * values)
    if (layer, "attention") in source.passes[0].keys:
        with Parts(staged, "attention", layer, {}) as parts:
            blocks = (_attention(source, one, layer) for one in source.passes)
            _write(parts, chain.from_iterable(blocks), GROUP_VALUES)


def _write(parts: Parts, blocks: Iterator[Columns], values: int) -> None:
    """Write blocks, small ones together in row groups of about so many values.

    A column has a value in every row of a row group or in none.
    """
    waiting: list[Columns] = []
    size = 0
    for block in blocks:
        if waiting and (size >= values or block.keys() != waiting[0].keys()):
            parts.write(_joined(waiting))
            waiting, size = [], 0
        waiting.append(block)
        size += _size(block)
    if waiting:
        parts.write(_joined(waiting))


def _size(block: Columns) -> int:
    """Values of the vectors in a block."""
    flat = (values[0] if isinstance(values, tuple) else values for values in block.values())
    return sum(array.size for array in flat if getattr(array, "dtype", None) == np.float32)


def _joined(blocks: list[Columns]) -> Columns:
    """The rows of several blocks."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], tuple):
            return tuple(map(join, (list(some) for some in zip(*values, strict=True))))
        if isinstance(values[0], list):
            return [item for some in values for item in some]
        return np.concatenate(values)

    return {name: join([block[name] for block in blocks]) for name in blocks[0]}


def _vectors(
    source: Directory, one: ImportedPass, layer: int | None, rows: int
) -> Iterator[Columns]:
    """Rows of activations or outputs of one pass; a row of logits that is all NaN has none."""
    widths = {site: width for (n, site), width in one.widths.items() if n == layer}
    reader, position = source.reader(one.path), one.first
    arrays = (reader.blocks(one.keys[layer, site], rows * widths[site]) for site in widths)
    for flat in zip(*arrays, strict=True):
        vectors = {}
        for (site, width), values in zip(widths.items(), flat, strict=True):
            vectors[site] = values.reshape(-1, width)
            source.counts.add(layer, site, vectors[site])
        count = len(next(iter(vectors.values())))
        absent = np.zeros(count, bool)
        if "logits" in vectors:
            absent = np.isnan(vectors["logits"]).all(1)
        edges = [0, *(np.flatnonzero(np.diff(absent)) + 1).tolist(), count]
        for first, last in pairwise(edges):
            yield _tokens(one, np.arange(position + first, position + last)) | {
                site: values[first:last]
                for site, values in vectors.items()
                if site != "logits" or not absent[first]
            }
        position += count


def _attention(source: Directory, one: ImportedPass, layer: int | None) -> Iterator[Columns]:
    """Rows of attention of one pass, the causal half of the weights."""
    key, first, keys = one.keys[layer, "attention"], 0, np.arange(one.end)
    for flat in source.reader(one.path).blocks(key, max(1, GROUP_VALUES // one.end) * one.end):
        block = flat.reshape(-1, one.end)
        number = np.arange(first, first + len(block))
        position = one.first + number % one.tokens
        causal = keys <= position[:, None]
        if block[~causal].any():
            where = f"{key} of step {one.step}"
            raise source.refused(f"{where} looks at later tokens, which alab has no place for")
        source.counts.add(layer, "attention", block[causal])
        weights = block[causal], position + 1
        yield _tokens(one, position) | {"head": number // one.tokens, "weights": weights}
        first += len(block)


def _tokens(one: ImportedPass, position: np.ndarray) -> Columns:
    """What says which token of a pass each row is about."""
    count = len(position)
    prompt_id, step = (np.full(count, number, np.int32) for number in (one.prompt_id, one.step))
    return {"prompt_id": prompt_id, "step": step, "kind": [one.kind] * count, "position": position}
