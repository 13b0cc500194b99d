"""Writes tensors to Parquet beside the forward passes: one thread, a bounded queue, constant memory."""

import contextlib
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from warehouse import lake, parquet
from warehouse.errors import AlabError

#: Rows of activations that are compressed together; the last token of a prefill is read without the rest.
GROUP_ROWS = 128
#: Values that outputs and attention compress together.
GROUP_VALUES = 1 << 20
#: A part file that has grown past this is closed, and another begun.
PART_BYTES = 256 << 20
#: Bytes of decode rows, over all layers, that may wait for their row group to fill.
PENDING_BYTES = 128 << 20
#: Bytes of tensors that may wait for the writer; a pass that is faster waits for it.
QUEUE_BYTES = 256 << 20

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class Rows:
    """Tensors of consecutive tokens on their way to the lake.

    Attributes:
        prompt_id: conversation within the run.
        step: forward pass.
        kind: prefill or decode.
        position: position of the first token.
        layer: decoder block; None for embeddings and logits.
        sites: a (tokens, width) tensor per site.
        attention: (heads, tokens, keys) weights, or None.
        ready: on a CUDA device, the event after which the tensors are on the host.
    """

    prompt_id: int
    step: int
    kind: str
    position: int
    layer: int | None
    sites: dict[str, Tensor]
    attention: Tensor | None = None
    ready: Any = None

    @property
    def count(self) -> int:
        """Number of tokens."""
        return len(next(iter(self.sites.values()))) if self.sites else 0

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        tensors = [*self.sites.values(), *([self.attention] if self.attention is not None else [])]
        return sum(tensor.nbytes for tensor in tensors)

    def tail(self, start: int) -> "Rows":
        """The tokens from `start` on, copied, so that the tensors they come from can be freed."""
        sites = {site: tensor[start:].clone() for site, tensor in self.sites.items()}
        return Rows(self.prompt_id, self.step, self.kind, self.position + start, self.layer, sites)


@dataclass
class SiteStats:
    """What was seen while a site of a layer was written."""

    out_of_range: int = 0
    nonfinite: int = 0


@dataclass
class Stats:
    """What was seen while a run was written.

    Attributes:
        sites: per (layer or None, site).
        residual: per layer, (largest absolute error of the residual identity, largest |hidden_out|).
    """

    sites: dict[tuple[int | None, str], SiteStats] = field(default_factory=dict)
    residual: dict[int, tuple[float, float]] = field(default_factory=dict)


class TensorWriter:
    """Takes the tensors of a run and writes them to its staging folder from a thread of its own.

    Use it as a context manager: leaving it waits until everything is written, or, after an exception, stops at once.

    Args:
        staged: the run being written.
        widths: per layer (None for embeddings and logits) the width of each site that will come.
        store_dtype: precision to round values to: float32, float16 or bfloat16. A value outside its range is
            kept unrounded and counted.
    """

    def __init__(self, staged: lake.StagedRun, widths: dict[int | None, dict[str, int]], store_dtype: str):
        self.stats = Stats()
        self._staged = staged
        self._scratch = Scratch(store_dtype)
        self._files: dict[tuple[str, int | None], _RowFile | _AttentionFile] = {}
        self._widths = widths
        self._queue: deque[Rows | None] = deque()
        self._waiting = 0
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="alab-writer", daemon=True)

    def __enter__(self) -> "TensorWriter":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        with self._change:
            if kind is not None:
                self._queue.clear()
            self._queue.append(None)
            self._change.notify_all()
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, rows: Rows) -> None:
        """Hand over tensors; waits while too much is under way.

        Raises:
            AlabError: writing failed, for example because the disk is full.
        """
        size = rows.nbytes
        with self._change:
            while self._waiting and self._waiting + size > QUEUE_BYTES and self._error is None:
                self._change.wait()
            self._raise()
            self._waiting += size
            self._queue.append(rows)
            self._change.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            error, folder = self._error, self._staged.lake.warehouse
            if isinstance(error, OSError):
                raise AlabError(
                    f"cannot write to the warehouse {folder}: {error.strerror or error}",
                    "Nothing of this run was kept. Free some space, or name another place with --warehouse.",
                ) from error
            raise error

    def _work(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # the model goes first where both want a core
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                while (rows := self._next()) is not None:
                    size = rows.nbytes
                    if rows.ready is not None:
                        rows.ready.synchronize()
                    self._write(rows)
                    del rows
                    with self._change:
                        self._waiting -= size
                        self._change.notify_all()
                for file in self._files.values():
                    file.close()
        except BaseException as error:  # handed to the thread that puts
            with self._change:
                self._error = error
                self._queue.clear()
                self._change.notify_all()

    def _next(self) -> Rows | None:
        with self._change:
            while not self._queue:
                self._change.wait()
            return self._queue.popleft()

    def _write(self, rows: Rows) -> None:
        if rows.sites:
            self._file("outputs" if rows.layer is None else "activations", rows.layer).add(rows)
        if rows.attention is not None:
            self._file("attention", rows.layer).add(rows)

    def _group(self, layer: int | None) -> int:
        """Rows in a row group: fewer for a wide model, since each layer keeps up to a group of decode rows."""
        if layer is None:
            return max(1, min(GROUP_ROWS, GROUP_VALUES // max(self._widths[None].values())))
        a_token = 4 * sum(sum(sites.values()) for key, sites in self._widths.items() if key is not None)
        return max(16, min(GROUP_ROWS, PENDING_BYTES // a_token))

    def _file(self, dataset: str, layer: int | None) -> "_RowFile | _AttentionFile":
        key = dataset, layer
        if key not in self._files:
            if dataset == "attention":
                self._files[key] = _AttentionFile(_Parts(self._staged, dataset, layer), self._scratch)
            else:
                self._files[key] = _RowFile(
                    _Parts(self._staged, dataset, layer),
                    self._widths[layer],
                    layer,
                    self._group(layer),
                    self._scratch,
                    self.stats,
                )
        return self._files[key]


class Scratch:
    """Buffers that are used again and again: touching fresh memory costs more than filling it."""

    def __init__(self, store_dtype: str):
        self.dtype = _TORCH[store_dtype]
        self.limit = torch.finfo(self.dtype).max
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A flat buffer of `count` values; its content is whatever was there."""
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[name, dtype] = torch.empty(count, dtype=dtype)
        return buffer[:count]

    def round(self, values: Tensor, stats: SiteStats) -> float:
        """Round a float32 tensor to the stored precision in place; gives its largest finite absolute value.

        NaN and infinities stay as they are, and so does what is out of range; both are counted.
        """
        low, high = (float(end) for end in torch.aminmax(values))
        largest = max(-low, high)
        if largest <= self.limit:
            if self.dtype != torch.float32:
                rounded = self.get("rounded", values.numel(), self.dtype).view(values.shape)
                rounded.copy_(values)
                values.copy_(rounded)
            return largest
        finite = values.isfinite()
        outside = finite & (values.abs() > self.limit)
        stats.nonfinite += int((~finite).sum())
        stats.out_of_range += int(outside.sum())
        keep = outside | ~finite
        values.copy_(torch.where(keep, values, values.to(self.dtype).float()))
        return float(values[finite].abs().max()) if finite.any() else 0.0


class _Parts:
    """The part files of one layer in one dataset; named by their steps once those are known."""

    def __init__(self, staged: lake.StagedRun, dataset: str, layer: int | None):
        self._staged = staged
        self._dataset = dataset
        self._folder = [] if layer is None else [f"layer={layer:02d}"]
        self._number = 0
        self._writer: Any = None
        self._steps: list[int] = []

    def write(self, table: pa.Table) -> None:
        """Append one row group."""
        if self._writer is None:
            self._open = self._staged.path(self._dataset, *self._folder, f".part-{self._number}.parquet")
            self._writer = parquet.open_parquet(self._open, table.schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        steps = table.column("step")
        self._steps += [steps[0].as_py(), steps[-1].as_py()]
        if self._open.stat().st_size > PART_BYTES:
            self.close()

    def close(self) -> None:
        """Finish the current part and move it to the folder of its steps."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        steps = f"steps={min(self._steps)}-{max(self._steps)}"
        final = self._staged.path(self._dataset, steps, *self._folder, f"part-{self._number}.parquet")
        final.parent.mkdir(parents=True, exist_ok=True)
        Path(self._open).rename(final)
        with contextlib.suppress(OSError):
            self._open.parent.rmdir()
        self._steps = []
        self._number += 1


class _RowFile:
    """One row per token, one vector per site: activations of a layer, or embeddings and logits."""

    def __init__(
        self, parts: _Parts, widths: dict[str, int], layer: int | None, group: int, scratch: Scratch, stats: Stats
    ):
        self._parts = parts
        self._layer = layer
        self._scratch = scratch
        self._stats = stats
        self._schema = parquet.output_schema(widths) if layer is None else parquet.activation_schema(widths)
        self._group = group
        self._pending: list[Rows] = []
        self._count = 0

    def add(self, rows: Rows) -> None:
        """Take rows; writes whole row groups and keeps the rest for later."""
        self._pending.append(rows)
        self._count += rows.count
        start = 0
        while self._count >= self._group:
            start = self._flush(self._group, start)
        if start:  # the rest of these rows is copied, so that a whole prefill is not kept for it
            self._pending[-1] = self._pending[-1].tail(start)

    def close(self) -> None:
        """Write what is left and finish the file."""
        if self._count:
            self._flush(self._count, 0)
        self._parts.close()

    def _flush(self, count: int, start: int) -> int:
        """Write the first `count` pending rows, from row `start` of the oldest; gives where the next begin."""
        pieces, left = [], count
        while left:
            rows = self._pending[0]
            stop = min(rows.count, start + left)
            pieces.append((rows, start, stop))
            left -= stop - start
            start = stop
            if stop == rows.count:
                self._pending.pop(0)
                start = 0
        self._count -= count
        self._parts.write(self._table(pieces, count))
        return start

    def _table(self, pieces: list[tuple[Rows, int, int]], count: int) -> pa.Table:
        values: dict[str, Tensor] = {}
        for column in self._schema:
            width = column.type.list_size if pa.types.is_fixed_size_list(column.type) else 0
            if width and column.name in pieces[0][0].sites:
                block = values[column.name] = self._scratch.get(column.name, count * width).view(count, width)
                at = 0
                for rows, start, stop in pieces:
                    block[at : at + stop - start].copy_(rows.sites[column.name][start:stop])
                    at += stop - start
        error = self._residual_error(values, count)
        for site, block in values.items():
            stats = self._stats.sites.setdefault((self._layer, site), SiteStats())
            largest = self._scratch.round(block, stats)
            if site == "hidden_out" and error is not None:
                before = self._stats.residual.get(self._layer, (0.0, 0.0))
                self._stats.residual[self._layer] = max(before[0], error), max(before[1], largest)
        steps = [np.full(stop - start, rows.step, np.int32) for rows, start, stop in pieces]
        columns: dict[str, pa.Array] = {
            "prompt_id": pa.array(np.concatenate([np.full(b - a, r.prompt_id, np.int32) for r, a, b in pieces])),
            "step": pa.array(np.concatenate(steps)),
            "position": pa.array(np.concatenate([np.arange(r.position + a, r.position + b, dtype=np.int32)
                                                 for r, a, b in pieces])),
        }  # fmt: skip
        if self._layer is not None:
            columns["kind"] = pa.array([rows.kind for rows, start, stop in pieces for _ in range(start, stop)])
        for site, block in values.items():
            flat = pa.Array.from_buffers(pa.float32(), block.numel(), [None, pa.py_buffer(block.view(-1).numpy())])
            columns[site] = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field(site).type)
        arrays = [columns.get(column.name) for column in self._schema]
        arrays = [pa.nulls(count, column.type) if array is None else array
                  for array, column in zip(arrays, self._schema, strict=True)]  # fmt: skip
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _residual_error(self, values: dict[str, Tensor], count: int) -> float | None:
        """Largest |hidden_out − hidden_in − contributions| of the rows; None where parts are missing."""
        if "hidden_in" not in values or "hidden_out" not in values or not {"attn_out", "mlp_down_out"} & set(values):
            return None
        difference = self._scratch.get("difference", values["hidden_out"].numel()).view(count, -1)
        torch.sub(values["hidden_out"], values["hidden_in"], out=difference)
        for site in ("attn_out", "mlp_down_out"):
            if site in values:
                difference.sub_(values[site])
        low, high = torch.aminmax(difference)
        return max(-float(low), float(high))


class _AttentionFile:
    """One row per head and query position, with the causal half of the weights."""

    def __init__(self, parts: _Parts, scratch: Scratch):
        self._parts = parts
        self._scratch = scratch
        self._schema = parquet.attention_schema()
        self._pending: list[tuple[Rows, int, int, int]] = []  # rows, head, first and last+1 query
        self._values = 0
        self._triangles: dict[tuple[int, int, int], Tensor] = {}

    def add(self, rows: Rows) -> None:
        """Take the weights of a pass, (heads, tokens, keys)."""
        heads, queries, keys = rows.attention.shape
        if queries > 1 and self._pending:
            self._flush()
        for head in range(heads):
            first = 0
            while first < queries:
                last, values = first, 0
                while last < queries and (values == 0 or values + keys - queries + last + 1 <= GROUP_VALUES):
                    values += keys - queries + last + 1
                    last += 1
                if self._values and self._values + values > GROUP_VALUES:
                    self._flush()
                self._pending.append((rows, head, first, last))
                self._values += values
                first = last
        if queries > 1:
            self._flush()
            self._triangles.clear() if queries > 2048 else None

    def close(self) -> None:
        """Write what is left and finish the file."""
        if self._pending:
            self._flush()
        self._parts.close()

    def _flush(self) -> None:
        values = self._scratch.get("attention", self._values)
        at, lengths, heads, positions, steps, prompts = 0, [], [], [], [], []
        for rows, head, first, last in self._pending:
            _, queries, keys = rows.attention.shape
            before = keys - queries
            row_lengths = np.arange(before + first + 1, before + last + 1, dtype=np.int32)
            total = int(row_lengths.sum())
            source = rows.attention[head]
            if last - first == 1:
                values[at : at + total].copy_(source[first, : before + last])
            else:
                index = self._triangle(first, last, before, keys)
                block = source[first:last].reshape(-1)
                if block.dtype != torch.float32:
                    block = block.float()
                torch.index_select(block, 0, index, out=values[at : at + total])
            at += total
            lengths.append(row_lengths)
            heads.append(np.full(last - first, head, np.int32))
            positions.append(row_lengths - 1 - before + rows.position)
            steps.append(np.full(last - first, rows.step, np.int32))
            prompts.append(np.full(last - first, rows.prompt_id, np.int32))
        self._scratch.round(values, SiteStats())
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32)
        flat = pa.Array.from_buffers(pa.float32(), at, [None, pa.py_buffer(values.numpy())])
        weights = pa.ListArray.from_arrays(pa.array(offsets), flat, type=self._schema.field("weights").type)
        columns = [pa.array(np.concatenate(part)) for part in (prompts, steps, heads, positions)]
        self._parts.write(pa.Table.from_arrays([*columns, weights], schema=self._schema))
        self._pending.clear()
        self._values = 0

    def _triangle(self, first: int, last: int, before: int, keys: int) -> Tensor:
        """Places of the causal half of query rows first … last − 1 in their flattened (rows, keys) block."""
        key = first, last, keys
        if key not in self._triangles:
            rows = torch.arange(first, last)
            mask = torch.arange(keys) <= (rows + before).unsqueeze(1)
            self._triangles[key] = mask.flatten().nonzero().flatten()
        return self._triangles[key]
