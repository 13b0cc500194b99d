"""Reads prompts of a dataset's run with its model again: `alab check --deep --model`."""

import json

import numpy as np
import torch
from torch import Tensor

from warehouse.assets import query
from warehouse.capture.batches import shard_of
from warehouse.capture.hooks import LayerTensors, Recorder
from warehouse.capture.session import Progress
from warehouse.catalog.check import Problem
from warehouse.catalog.runs import Run, open_run
from warehouse.lake.lake import Lake
from warehouse.lake.tensors import Source
from warehouse.models import loading
from warehouse.models.batch import Batch
from warehouse.models.reader import Reader
from warehouse.models.sites import discover
from warehouse.vocabulary import SITES

#: Prompts of a run that are read again.
SAMPLE = 16


def verify(lake: Lake, progress: Progress = lambda *_: None) -> list[Problem]:
    """Compare some prompts of each dataset's run with what its model gives for them now.

    The tokens are those that the run stored; a prompt is read alone. What differs by more than the
    rounding of the stored precision, and the difference to a batch that the run measured, is told.

    Args:
        lake: the warehouse's lake.
        progress: told of what is happening.

    Raises:
        AlabError: a model cannot be loaded as it was.
    """
    problems: list[Problem] = []
    for run_id in lake.run_ids():
        with open_run(lake, run_id) as run:
            if ("labels", None) in run.files:
                problems += _verify_run(run, progress)
    return problems


def _verify_run(run: Run, progress: Progress) -> list[Problem]:
    (row,) = run.rows("runs")
    spec = json.loads(row["scenario_json"])["model"]
    model = loading.load_again(run.run_id, row, spec, progress).model
    sites, layers = discover(model, sharing=False), run.layers()
    tokens: dict[int, list[int]] = {}
    for token in run.rows("tokens"):
        if token["step"] == 0:
            tokens.setdefault(token["prompt_id"], []).append(token["token_id"])
    # Always the same prompts of a run, spread over it.
    sample = sorted(tokens, key=lambda prompt: shard_of(f"{run.run_id} {prompt}", 1 << 32))[:SAMPLE]
    places: dict[int, set[int]] = {prompt: set() for prompt in sample}
    for position in run.rows("positions"):
        places.get(position["prompt_id"], set()).add(position["position"])
    limit = _limit(row["store_dtype"], run)
    kept = [layer for layer in layers if ("activations", layer) in run.files]
    sources = {layer: Source(run.files["activations", layer]) for layer in kept}
    names = {site for source in sources.values() for site in source.columns} & set(SITES)
    means = _means(run, sample)
    averaged = {(layer, site) for _, layer, site in means}
    names |= {site for _, site in averaged}
    reader = Reader(model)
    worst: dict[int, float] = {}
    hooked = sorted({*kept, *(layer for layer, _ in averaged)})
    with torch.inference_mode(), Recorder(model, sites, sites=names, layers=hooked) as recorder:
        for number, prompt in enumerate(sample):
            given: list[LayerTensors] = []
            batch = Batch([tokens[prompt]], [sorted(places[prompt])])
            with recorder.recording(given.append, batch, frozenset(averaged)):
                reader.read_batch(batch)
            for layer in given:
                errors = [
                    _apart(means[prompt, layer.layer, site], now)
                    for site, now in layer.means.items()
                    if (prompt, layer.layer, site) in means
                ]
                if places[prompt] and layer.layer in sources:
                    stored = sources[layer.layer]
                    errors += [
                        _apart(_stored(stored, site, prompt), layer.sites[site])
                        for site in stored.columns
                        if site in layer.sites
                    ]
                worst[prompt] = max([worst.get(prompt, 0.0), *errors])
            progress(f"reading prompts of {run.run_id} again", number + 1, len(sample))
    return [
        Problem(
            "changed",
            f"run={run.run_id}",
            f"prompt {prompt} is not what the model gives: off by {error:.1e} of a vector's length",
        )
        for prompt, error in worst.items()
        if not error <= limit
    ]


def _limit(store_dtype: str, run: Run) -> float:
    """What rounding, and the batch that a prompt was read in, explain."""
    batch = max((row["batch_error"] or 0.0 for row in run.rows("layers")), default=0.0)
    return 2 * torch.finfo(getattr(torch, store_dtype)).eps + 4 * batch + 1e-5


def _means(run: Run, prompts: list[int]) -> dict[tuple[int, int, str], np.ndarray]:
    """The stored means over tokens of some prompts, by prompt, layer and site."""
    rows = run.db.execute(query("means"), {"run": run.run_id, "prompts": prompts}).fetchall()
    return {tuple(at): np.asarray(vector, np.float32) for *at, vector in rows}


def _stored(source: Source, site: str, prompt: int) -> np.ndarray:
    """A prompt's stored vectors at a site, one after the other; none where it has none."""
    if (prompt, 0) not in source.span:
        return np.empty(0, np.float32)
    parts = [part.flatten().to_numpy() for _, part in source.read(site, {(prompt, 0)})]
    return np.concatenate(parts)


def _apart(values: np.ndarray, rows: Tensor) -> float:
    """The largest ‖stored − now‖ / ‖now‖ of vectors; infinite where there are more or fewer."""
    now = np.atleast_2d(rows.float().cpu().numpy())
    stored = values.reshape(-1, now.shape[1])
    if stored.shape != now.shape:
        return float("inf")
    size = np.maximum(np.linalg.norm(now, axis=1), 1e-30)
    return float((np.linalg.norm(stored - now, axis=1) / size).max())
