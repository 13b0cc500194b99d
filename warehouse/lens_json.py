"""The rows of the logit lens as one JSON object, token by token.

The object is shaped so:

    {"run_id": …, "model": …, "site": …, "top_k": …, "tokens": [
      {"prompt_id": 0, "step": 0, "position": 11, "next_token_id": 3, "next_token": " the", "layers": [
        {"layer": 0, "kl": 7.1, "next_rank": 210, "next_logprob": -9.3,
         "top": [{"token_id": 5, "token": " a", "logprob": -2.1}, …]}, …]}, …]}
"""

import json
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import pyarrow.parquet as pq

from warehouse.heads import Head
from warehouse.reading import Run
from warehouse.whole import writing


def write(path: Path, run: Run, head: Head, source: Path, site: str, top_k: int) -> None:
    """Write the rows of a file of the lens, a token at a time.

    Args:
        path: the JSON file.
        run: the run they are of.
        head: names the tokens.
        source: the Parquet file.
        site: the site that was looked at.
        top_k: most likely tokens of each layer.

    Raises:
        AlabError: the file cannot be written.
    """
    opening = {"run_id": run.run_id, "model": run.rows("runs")[0]["model_id"], "site": site, "top_k": top_k}
    with writing(path, "--json") as draft, draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(opening, ensure_ascii=False)[:-1] + ', "tokens": [')
        separator = "\n"
        rows = chain.from_iterable(batch.to_pylist() for batch in pq.ParquetFile(source).iter_batches(1 << 14))
        for _, token in groupby(rows, itemgetter("prompt_id", "step", "position")):
            file.write(separator + json.dumps(_record(list(token), head), ensure_ascii=False))
            separator = ",\n"
        file.write("\n]}\n")


def _record(rows: list[dict], head: Head) -> dict:
    """One token's rows as an object."""
    first = rows[0]
    target = first["next_token_id"]
    token = {name: first[name] for name in ("prompt_id", "step", "position", "next_token_id")}
    token["next_token"] = head.tokens[target] if head.tokens is not None and target is not None else None
    layers: dict[int, dict] = {}
    for row in rows:
        own = {name: row[name] for name in ("layer", "kl", "next_rank", "next_logprob")}
        entry = layers.setdefault(row["layer"], own | {"top": []})
        entry["top"].append({name: row[name] for name in ("token_id", "token", "logprob")})
    return token | {"layers": list(layers.values())}
