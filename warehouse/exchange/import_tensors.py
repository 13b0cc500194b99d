"""Writes the arrays of an imported directory as part files, a block of rows at a time."""

from collections.abc import Callable, Iterator
from itertools import pairwise
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
            _write(parts, source, lambda one: _vectors(source, one, layer, rows), rows * values)
    if (layer, "attention") in source.passes[0].keys:
        with Parts(staged, "attention", layer, {}) as parts:
            _write(parts, source, lambda one: _attention(source, one, layer), GROUP_VALUES)


def _write(
    parts: Parts,
    source: Directory,
    blocks: Callable[[ImportedPass], Iterator[Columns]],
    values: int,
) -> None:
    """Write the blocks of every pass, small ones together in row groups of about so many values.

    A column has a value in every row of a row group or in none.
    """
    waiting: list[Columns] = []
    size = 0
    for block in (block for one in source.passes for block in blocks(one)):
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
        vectors = {
            site: values.reshape(-1, widths[site])
            for site, values in zip(widths, flat, strict=True)
        }
        for site, values in vectors.items():
            source.counts.add(layer, site, values)
        count = len(next(iter(vectors.values())))
        absent = np.zeros(count, bool)
        if "logits" in vectors:
            absent = np.isnan(vectors["logits"]).all(1)
        edges = [0, *(np.flatnonzero(np.diff(absent)) + 1).tolist(), count]
        for first, last in pairwise(edges):
            places = {
                "prompt_id": np.full(last - first, one.prompt_id, np.int32),
                "step": np.full(last - first, one.step, np.int32),
                "position": np.arange(position + first, position + last, dtype=np.int32),
            } | ({} if layer is None else {"kind": [one.kind] * (last - first)})
            yield places | {
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
            raise source.refused(
                f"{key} of step {one.step} looks at later tokens, which alab has no place for"
            )
        source.counts.add(layer, "attention", block[causal])
        yield {
            "prompt_id": np.full(len(block), one.prompt_id, np.int32),
            "step": np.full(len(block), one.step, np.int32),
            "head": number // one.tokens,
            "position": position,
            "weights": (block[causal], position + 1),
        }
        first += len(block)
