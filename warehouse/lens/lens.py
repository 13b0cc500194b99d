"""The logit lens: what each layer would say next, had it to speak at once.

The model's final norm and unembedding are applied to the residual stream after each layer. The
first call for a model's weights loads it and keeps both in the lake (see `warehouse.lens.store`);
every later one needs no model.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from warehouse.assets import query
from warehouse.atomic import writing
from warehouse.catalog import catalog
from warehouse.catalog.runs import Run, numbers, open_run
from warehouse.errors import AlabError
from warehouse.exchange import lens_json
from warehouse.lake.lake import Lake
from warehouse.lake.parquet import open_parquet
from warehouse.lake.schemas import lens_schema
from warehouse.lens import store
from warehouse.lens.head import Head
from warehouse.lens.look import Answers, look
from warehouse.lens.streams import Place, residual_streams

#: Values of residual streams that are in memory at once, and rows that are looked at together.
VECTOR_VALUES, ROWS = 1 << 24, 2048
#: Nats by which the last layer's most likely token may differ from what the run noted, rounding
#: included.
_TOLERANCE = 0.1


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
    with open_run(lake, name) as run:
        head = store.head_of(lake, run, model, progress)
        if not 1 <= top_k <= len(head.unembedding):
            most = len(head.unembedding)
            raise AlabError(f"--top-k is {top_k}; it can be 1 to {most}", exit_code=2)
        places = places_of(run, steps, position)
        progress(f"looking at {len(places)} tokens", 0, 0)
        with lake.hold(run.run_id) as hold:
            path = hold.path("logit_lens", f"{site}.parquet")
            with open_parquet(path, lens_schema()) as writer:
                for table in tables(run, head, places, site, top_k):
                    writer.write_table(table)
            if json_file:
                model_id = run.rows("runs")[0]["model_id"]
                about = {"run_id": run.run_id, "model": model_id, "site": site, "top_k": top_k}
                texts = dict(enumerate(head.tokens or []))
                with writing(json_file, "--json") as draft:
                    lens_json.write(draft, about, lens_json.rows_of(path), texts)
            _publish(lake, hold, path)
    catalog.Catalog(lake).add(run.run_id, progress)
    return run.run_id


def _publish(lake: Lake, hold: Any, path: Path) -> None:
    """Put a file of the lens in its place, with its row in the run's table of files."""
    row, site = hold.add(path), path.stem
    files = lake.metadata(hold.run_id, "files")
    rows = [
        old
        for old in files.to_pylist()
        if old["dataset"] != "logit_lens" or Path(old["path"]).name.split(".")[0] != site
    ] + [row]
    table = pa.Table.from_pylist(rows, files.schema)
    hold.amend({"files": table, "runs": lake.metadata(hold.run_id, "runs")})


def places_of(run: Run, steps: str | None, position: str) -> list[Place]:
    """The tokens of a run that `--steps` and `--position` mean.

    Raises:
        AlabError: there is no such step or position, or the run has no activations.
    """
    every = run.steps()
    chosen = sorted(numbers(steps, every, "step") or every)
    values = {"run": run.run_id, "layer": min(run.layers(), default=0), "steps": chosen}
    places = run.db.execute(query("lens_places"), values).fetchall()
    if not places:
        raise AlabError(
            f"{run.run_id} has no activations",
            "They were not captured, or dropped with: alab rm --activations-only",
        )
    if position == "last":
        return list({place[:2]: place for place in places}.values())
    if position == "all":
        return places
    at = numbers(position, sorted({place[2] for place in places}), "position")
    return [place for place in places if at is None or place[2] in at]


def tables(run: Run, head: Head, places: list[Place], site: str, top_k: int) -> Iterator[pa.Table]:
    """The rows of `logit_lens` for some tokens of a run, block by block.

    Raises:
        AlabError: the run has not the site, or the head is not of the model that the run was
            captured with.
    """
    layers, width = run.layers(), head.unembedding.shape[1]
    values = {"run": run.run_id}
    following = {(p, at): i for p, at, i in run.db.execute(query("lens_next"), values).fetchall()}
    noted = {row[:3]: row[3] for row in run.db.execute(query("lens_noted"), values).fetchall()}
    has_final = layers[-1] == run.rows("runs")[0]["num_layers"] - 1
    texts = pa.array(head.tokens or [None] * len(head.unembedding), pa.string())
    if has_final and noted and noted.keys().isdisjoint(places):
        one = [min(noted)]  # none of the tokens would show a wrong head
        streams = residual_streams(run.db, run.run_id, site, layers, one, width)
        _check(run, one, look(head, streams, [-1], 1), noted)
    block, small = max(1, VECTOR_VALUES // (len(layers) * width)), max(1, ROWS // len(layers))
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
    first = answers.logprobs[:, -1, 0]
    errors = [abs(noted[p] - float(first[i])) for i, p in enumerate(places) if p in noted]
    if errors and not max(errors) <= _TOLERANCE:
        off = f"log-probabilities are off by {max(errors):.2g} nats"
        raise store.refused(run, f"do not give what the model said in this run: {off}")


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

    prompts, steps, positions = (np.repeat(column, each) for column in np.array(places, np.int32).T)
    ids = answers.top.reshape(-1).astype(np.int32)
    following = np.repeat(np.array(targets, np.int32), each)
    no_next = following < 0
    columns = {
        "prompt_id": prompts,
        "step": steps,
        "position": positions,
        "layer": np.tile(np.repeat(np.array(layers, np.int32), k), tokens),
        "rank": np.tile(np.arange(k, dtype=np.int32), len(layers) * tokens),
        "token_id": ids,
        "token": texts.take(pa.array(ids)),
        "logprob": answers.logprobs.reshape(-1),
        "kl": pa.array(np.repeat(answers.kl, k), mask=np.full(len(ids), not has_final)),
        "site": pa.array([site]).take(pa.array(np.zeros(len(ids), np.int32))),
        "next_token_id": pa.array(following, mask=no_next),
        "next_rank": pa.array(np.repeat(answers.next_rank, k), mask=no_next),
        "next_logprob": pa.array(np.repeat(answers.next_logprob, k), mask=no_next),
    }
    return pa.table(columns, schema=lens_schema())
