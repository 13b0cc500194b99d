"""The rows of the logit lens as one JSON object, token by token.

The object is shaped so:

    {"run_id": …, "model": …, "site": …, "top_k": …, "tokens": [
      {"prompt_id": 0, "step": 0, "position": 11, "next_token_id": 3, "next_token": " the",
      "layers": [
        {"layer": 0, "kl": 7.1, "next_rank": 210, "next_logprob": -9.3,
         "top": [{"token_id": 5, "token": " a", "logprob": -2.1}, …]}, …]}, …]}
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.lake import store

if TYPE_CHECKING:
    from warehouse.lake.objects import ObjectFile

#: What the lens looks at: the residual stream, or the running sum of what the sub-layers add.
STREAMS = ("hidden_out", "contributions")

_TOKEN = ("prompt_id", "step", "position", "next_token_id")
_LAYER = ("layer", "kl", "next_rank", "next_logprob")
_TOP = ("token_id", "token", "logprob")


def rows_of(path: "Path | ObjectFile") -> Iterator[dict]:
    """The rows of a Parquet file of the lens."""
    for batch in store.parquet(path).iter_batches(1 << 14):
        yield from batch.to_pylist()


def write(path: Path, head: dict, rows: Iterable[dict], names: Mapping[int, str | None]) -> None:
    """Write the object, a token at a time.

    Args:
        path: the JSON file.
        head: what stands before the tokens: run_id, model, site, top_k.
        rows: of the lens, in the lake's order.
        names: text of each token by its id, for `next_token`.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "tokens": [')
        separator = "\n"
        for _, token in groupby(rows, itemgetter("prompt_id", "step", "position")):
            file.write(separator + json.dumps(_nest(list(token), names), ensure_ascii=False))
            separator = ",\n"
        file.write("\n]}\n")


def _nest(rows: list[dict], names: Mapping[int, str | None]) -> dict:
    """One token's rows as an object."""
    token = {name: rows[0][name] for name in _TOKEN}
    token["next_token"] = names.get(token["next_token_id"])
    layers: dict[int, dict] = {}
    for row in rows:
        entry = layers.setdefault(row["layer"], {name: row[name] for name in _LAYER} | {"top": []})
        entry["top"].append({name: row[name] for name in _TOP})
    return token | {"layers": list(layers.values())}


def read(content: dict) -> Iterator[dict]:
    """The rows that `write` made an object of.

    Raises:
        KeyError, TypeError: the object is of another shape.
    """
    for token in content["tokens"]:
        for layer in token["layers"]:
            for rank, top in enumerate(layer["top"]):
                row = token | layer | top | {"rank": rank, "site": content["site"]}
                yield {name: row[name] for name in (*_TOKEN, *_LAYER, *_TOP, "rank", "site")}
