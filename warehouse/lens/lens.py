"""The logit lens: what each layer would say next, had it to speak at once.

The model's final norm and unembedding are applied to the residual stream after each layer. The
first call for a model's weights loads it and keeps both in the lake (see `warehouse.lens.store`);
every later one needs no model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from warehouse.atomic import writing
from warehouse.catalog import catalog, library, runs
from warehouse.catalog.runs import Run, numbers
from warehouse.errors import AlabError
from warehouse.exchange import lens_json
from warehouse.lake.lake import Lake
from warehouse.lake.manifest import file_row
from warehouse.lake.parquet import open_parquet
from warehouse.lake.schemas import lens_schema
from warehouse.lens import store as run_heads
from warehouse.lens.head import Head
from warehouse.query import run as query

#: Values of residual streams that are in memory at once, and rows and logits that are looked at
#: together.
VECTOR_VALUES, ROWS, LOGIT_VALUES = 1 << 24, 2048, 1 << 24
#: Neighbouring tokens of the vocabulary whose best logit stands for them while the top tokens are
#: sought.
_BUCKET = 32
#: Nats by which the last layer's most likely token may differ from what the run noted, rounding
#: included.
_TOLERANCE = 0.1

_TOKENS = """
SELECT prompt_id, step, position FROM activations_of($run) WHERE layer = $layer AND list_contains($steps, step)
ORDER BY ALL
"""
_VECTORS = """
SELECT a.layer, t.i, a.vector
FROM tensor_of($run, $site) AS a
JOIN (SELECT unnest($prompts) AS prompt_id, unnest($steps) AS step, unnest($positions) AS position,
             unnest(range(len($prompts))) AS i) AS t USING (prompt_id, step, position)
"""
_NEXT = "SELECT prompt_id, position - 1, token_id FROM tokens WHERE run_id = ?"
_NOTED = "SELECT prompt_id, step, seq_len - 1, argmax_logprob FROM steps WHERE run_id = ? AND argmax_logprob <= 0"
_SUMMARY = Template(
    "SELECT * EXCLUDE (run_id, site) FROM logit_lens_summary($run) WHERE site = $site"
)

#: Where one token stands: (prompt_id, step, position).
Place = tuple[int, int, int]


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


def logit_lens(
    lake: Lake,
    name: str,
    *,
    steps: str | None = None,
    position: str = "last",
    top_k: int = 10,
    site: str = "hidden_out",
    json_file: Path | None = None,
    model: Any = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> str:
    """Look at a run through the logit lens and keep what is seen as the run's dataset `logit_lens`.

    Args:
        lake: the warehouse's lake.
        name: a run id, a unique prefix of one, or `latest`.
        steps: the steps to look at, such as `0-3,7`; None is all.
        position: `last` for the last token of each step, `all`, or positions such as `0-3,7`.
        top_k: most likely tokens to keep.
        site: hidden_out, or contributions for the running sum of what the sub-layers add.
        json_file: file to write the same to as JSON, see `warehouse.exchange.lens_json`.
        model: a `models.Loaded` to take the final norm and unembedding from, for a model that
            cannot be loaded by its id; None loads it where the lake does not keep them yet.
        progress: told of what is happening.

    Returns:
        The run's id.

    Raises:
        AlabError: no such run, step or position, the run has not the site, or the model has no
            logit lens.
    """
    with catalog.connect(lake) as db:
        run = Run(lake, runs.find_run(db, name), db)
        head = run_heads.head_of(lake, run, model, progress)
        if not 1 <= top_k <= len(head.unembedding):
            raise AlabError(
                f"--top-k is {top_k}; it can be 1 to {len(head.unembedding)}", exit_code=2
            )
        places = _places(run, steps, position)
        progress(f"looking at {len(places)} tokens", 0, 0)
        with lake.hold(run.run_id) as held:
            path = held.path("logit_lens", f"{site}.parquet")
            with open_parquet(path, lens_schema()) as writer:
                for table in tables(run, head, places, site, top_k):
                    writer.write_table(table)
            if json_file:
                about = {
                    "run_id": run.run_id,
                    "model": run.rows("runs")[0]["model_id"],
                    "site": site,
                    "top_k": top_k,
                }
                with writing(json_file, "--json") as draft:
                    lens_json.write(
                        draft, about, lens_json.rows_of(path), dict(enumerate(head.tokens or []))
                    )
            _publish(lake, held, path)
    catalog.register(lake)
    return run.run_id


def show(
    lake: Lake, name: str, fmt: str | None = None, *, site: str = "hidden_out", **options: Any
) -> None:
    """Do as `logit_lens` does and print a line per layer: how far it is from the answer, and what it favours."""
    run_id = logit_lens(lake, name, site=site, **options)
    query.run(
        lake, _SUMMARY.substitute(run=library.literal(run_id), site=library.literal(site)), fmt
    )


def _publish(lake: Lake, held: Any, path: Path) -> None:
    row = file_row(held.run_id, path, held.folder)
    target = lake.root / row["path"]
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    files = lake.metadata(held.run_id, "files")
    rows = [old for old in files.to_pylist() if old["path"] != row["path"]] + [row]
    runs = lake.metadata(held.run_id, "runs")
    held.amend({"files": pa.Table.from_pylist(rows, files.schema), "runs": runs})


def _places(run: Run, steps: str | None, position: str) -> list[Place]:
    wanted = numbers(steps, run.steps(), "step") or frozenset(run.steps())
    values = {"run": run.run_id, "layer": min(run.layers(), default=0), "steps": sorted(wanted)}
    places = run.db.execute(_TOKENS, values).fetchall()
    if not places:
        raise AlabError(
            f"{run.run_id} has no activations",
            "They were not captured, or dropped with: alab rm --activations-only",
        )
    if position == "last":
        return list({place[:2]: place for place in places}.values())
    if position != "all":
        at = numbers(position, sorted({place[2] for place in places}), "position")
        places = [place for place in places if place[2] in at]
    return places


def tables(run: Run, head: Head, places: list[Place], site: str, top_k: int) -> Iterator[pa.Table]:
    """The rows of `logit_lens` for some tokens of a run, block by block.

    Raises:
        AlabError: the run has not the site, or the head is not of the model that the run was
            captured with.
    """
    layers, width = run.layers(), head.unembedding.shape[1]
    following = {(p, at): token for p, at, token in run.db.execute(_NEXT, [run.run_id]).fetchall()}
    noted = {tuple(row[:3]): row[3] for row in run.db.execute(_NOTED, [run.run_id]).fetchall()}
    has_final = layers[-1] == run.rows("runs")[0]["num_layers"] - 1
    texts = pa.array(
        head.tokens if head.tokens is not None else [None] * len(head.unembedding), pa.string()
    )
    if (
        has_final and noted and not noted.keys() & set(places)
    ):  # none of the tokens would show a wrong head
        one = [min(noted)]
        streams = residual_streams(run.db, run.run_id, site, layers, one, width)
        _check(run, one, look(head, streams, [-1], 1), noted)
    block = max(1, VECTOR_VALUES // (len(layers) * width))
    small = max(1, ROWS // len(layers))
    for first in range(0, len(places), block):
        some = places[first : first + block]
        streams = residual_streams(run.db, run.run_id, site, layers, some, width)
        for start in range(0, len(some), small):
            part = some[start : start + small]
            targets = [following.get((p, at), -1) for p, _, at in part]
            answers = look(head, streams[start : start + small], targets, top_k)
            if has_final:
                _check(run, part, answers, noted)
            yield _table(part, layers, answers, targets, texts, site, has_final)


def _check(run: Run, places: list[Place], answers: Answers, noted: dict[Place, float]) -> None:
    """Make sure that the last layer says what the model said when it was captured."""
    errors = [
        abs(noted[p] - float(answers.logprobs[i, -1, 0]))
        for i, p in enumerate(places)
        if p in noted
    ]
    if errors and not max(errors) <= _TOLERANCE:
        why = f"do not give what the model said in this run: log-probabilities are off by {max(errors):.2g} nats"
        raise run_heads.refused(run.lake, run, why)


def residual_streams(
    db: duckdb.DuckDBPyConnection,
    run_id: str,
    site: str,
    layers: list[int],
    places: list[Place],
    width: int,
) -> Tensor:
    """The residual stream after each layer, (tokens, layers, width), float32.

    Args:
        db: a connection to the catalog.
        run_id: id of the run.
        site: hidden_out, or contributions for hidden_in of layer 0 with the contributions added
            layer by layer.
        layers: the layers that were captured.
        places: the tokens.
        width: width of the residual stream.

    Raises:
        AlabError: what is needed was not captured.
    """
    columns = dict(
        zip(("prompts", "steps", "positions"), map(list, zip(*places, strict=True)), strict=True)
    )

    def read(column: str) -> Tensor | None:
        found = db.sql(_VECTORS, params=columns | {"run": run_id, "site": column}).to_arrow_table()
        if not found.num_rows:
            return None
        out = np.zeros((len(places), len(layers), width), np.float32)
        index = found["i"].to_numpy(), np.searchsorted(layers, found["layer"].to_numpy())
        out[index] = found["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
        return torch.from_numpy(out)

    if site == "hidden_out":
        streams = read(site)
    else:
        if layers != list(range(len(layers))):
            raise AlabError(
                "the running sum of contributions needs every layer from 0 on",
                "Use --site hidden_out.",
            )
        parts = [part for part in (read("attn_out"), read("mlp_down_out")) if part is not None]
        streams, entry = None, read("hidden_in")
        if entry is not None and parts:
            streams = sum(parts)
            streams[:, 0] += entry[:, 0]
            streams = streams.cumsum(1)
    if streams is None:
        raise AlabError(f"{site} was not captured in this run", f"See: alab inspect {run_id}")
    return streams


@torch.inference_mode()
def look(head: Head, streams: Tensor, targets: list[int], top_k: int) -> Answers:
    """Apply the lens to (tokens, layers, width) residual streams, of which the last layer counts as final.

    All rows meet one block of the vocabulary after another, so that memory is bounded however large
    it is; sums of exponentials are kept relative to the largest logit so far. Each look at a block
    costs as much as a tenth of its matrix product, so looks are few: its softmax tells the sum of
        its exponentials too, by its best token's share.

    Args:
        head: the model's head.
        streams: residual stream after each layer.
        targets: per token, id of the token that follows; -1 where none does.
        top_k: how many tokens to give.
    """
    tokens, layers, width = streams.shape
    rows, vocabulary = tokens * layers, len(head.unembedding)
    normed = head.normed(streams.reshape(rows, width))
    wanted = torch.tensor(targets).repeat_interleave(layers)
    aimed = head.logits_of(normed, wanted.clamp_min(0))
    rank = torch.zeros(rows, dtype=torch.int32)
    largest, total = torch.full((rows, 1), -torch.inf), torch.zeros(rows, 1)
    means = torch.zeros(
        tokens, layers, layers
    )  # one layer's logits, averaged over what another expects
    values, ids = torch.empty(rows, 0), torch.empty(rows, 0, dtype=torch.int64)
    size = min(vocabulary, max(_BUCKET, LOGIT_VALUES // rows // _BUCKET * _BUCKET))
    room = torch.empty(2, rows * size)
    for first in range(0, vocabulary, size):
        count = min(size, vocabulary - first)
        logits, shares = room[:, : rows * count].view(2, rows, count)
        head.logits(normed, slice(first, first + count), out=logits)
        best, at = _top(logits, min(top_k, count))
        torch.softmax(logits, -1, out=shares)
        values, chosen = torch.cat([values, best], 1).topk(min(top_k, ids.shape[1] + best.shape[1]))
        ids = torch.cat([ids, at + first], 1).gather(1, chosen)
        before = total * (largest - values[:, :1]).exp_()
        added = (best[:, :1] - values[:, :1]).exp_() / shares.gather(1, at[:, :1])
        added.masked_fill_(
            best[:, :1] == -torch.inf, 0.0
        )  # a block of tokens that the model never says
        largest, total = values[:, :1], before + added
        of_block = torch.bmm(
            shares.view(tokens, layers, count), logits.view(tokens, layers, count).transpose(1, 2)
        )
        share = (added / total).view(tokens, layers, 1)
        means = torch.where(share > 0, means + (of_block - means) * share, means)
        here = ((wanted >= first) & (wanted < first + count)).nonzero()[:, 0]
        logits[
            here, wanted[here] - first
        ] = -torch.inf  # a token is not above itself, whatever the rounding
        rank += torch.gt(logits, aimed, out=shares).sum(-1).int()
    spread = (largest + total.log()).view(tokens, layers, 1)  # log of the sum of the exponentials
    apart = means.diagonal(dim1=1, dim2=2) - means[:, :, -1]
    kl = (apart - spread[..., 0] + spread[:, -1]).clamp_min_(0)
    rank[wanted < 0] = -1
    shape = tokens, layers, top_k
    return Answers(
        ids.view(shape).numpy(),
        (values.view(shape) - spread).numpy(),
        kl.numpy(),
        rank.view(tokens, layers).numpy(),
        (aimed.view(tokens, layers) - spread[..., 0]).numpy(),
    )


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and ids of the k largest logits of each row, both (rows, k).

    The k largest lie in the k buckets with the largest maxima, which are much fewer to sort.
    """
    rows, vocabulary = logits.shape
    whole = vocabulary // _BUCKET
    if whole <= k:
        return logits.topk(k)
    buckets = logits[:, : whole * _BUCKET].view(rows, whole, _BUCKET)
    chosen = buckets.amax(-1).topk(k).indices
    ids = (chosen[:, :, None] * _BUCKET + torch.arange(_BUCKET)).view(rows, -1)
    rest = torch.arange(whole * _BUCKET, vocabulary).expand(rows, -1)
    ids = torch.cat([ids, rest], 1)
    values, at = logits.gather(1, ids).topk(k)
    return values, ids.gather(1, at)


def _table(
    places: list[Place],
    layers: list[int],
    answers: Answers,
    targets: list[int],
    texts: pa.Array,
    site: str,
    has_final: bool,
) -> pa.Table:
    """Rows in the order token, layer, rank."""
    tokens, _, k = answers.top.shape
    each = len(layers) * k

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values.reshape(-1), k)

    prompts, steps, positions = (np.repeat(column, each) for column in np.array(places, np.int32).T)
    ids = answers.top.reshape(-1).astype(np.int32)
    following, no_next = (
        np.repeat(np.array(targets, np.int32), each),
        np.repeat(np.array(targets) < 0, each),
    )
    columns = {
        "prompt_id": prompts,
        "step": steps,
        "position": positions,
        "layer": np.tile(np.repeat(np.array(layers, np.int32), k), tokens),
        "rank": np.tile(np.arange(k, dtype=np.int32), len(layers) * tokens),
        "token_id": ids,
        "token": texts.take(pa.array(ids)),
        "logprob": answers.logprobs.reshape(-1),
        "kl": pa.array(spread(answers.kl), mask=np.full(len(ids), not has_final)),
        "site": pa.array([site]).take(pa.array(np.zeros(len(ids), np.int32))),
        "next_token_id": pa.array(following, mask=no_next),
        "next_rank": pa.array(spread(answers.next_rank), mask=no_next),
        "next_logprob": pa.array(spread(answers.next_logprob), mask=no_next),
    }
    return pa.table(columns, schema=lens_schema())
