"""A dataset's capture that many processes and machines share, over one lake and without a word.

request ─→ id of the run, the same for all of them ─→ a staged run that whoever comes first begins
shard i of n ─→ the parts of the batch plan that are its own ─→ there whole or not at all
all are there ─→ anybody publishes them as one run
"""

import hashlib
import json
from datetime import datetime
from typing import Any

from warehouse.capture.batches import Share, refuse_undivided
from warehouse.capture.dataset import Dataset
from warehouse.capture.dataset_run import (
    Prepared,
    _publish,
    _Shards,
    batches_of,
    keeping,
    prepare,
    trees_of,
)
from warehouse.capture.request import refuse_changes
from warehouse.capture.session import Progress
from warehouse.catalog import catalog
from warehouse.errors import AlabError, ConflictError
from warehouse.lake.lake import Lake
from warehouse.models.loading import Loaded
from warehouse.models.ports import ModelSites
from warehouse.scenario import Scenario


def published(
    scenario: Scenario, loaded: Loaded, lake: Lake, since: datetime = datetime.min
) -> str | None:
    """The run that a scenario is in a lake since then, of the same weights and data, or None."""
    asked = [scenario.model_dump_json(), loaded.weights_hash]
    digest: str | None = None  # read once, and only where some run may be of the same rows
    for run_id in lake.run_ids():
        if run_id.startswith(f"{scenario.name}_"):
            run = lake.metadata(run_id, "runs").to_pylist()[0]
            if [run["scenario_json"], run["weights_hash"]] == asked and run["created_at"] >= since:
                if digest is None and scenario.dataset is not None:
                    digest = Dataset(scenario.dataset).digest
                if run.get("dataset_hash") == digest:
                    return run_id
    return None


def capture_share(
    scenario: Scenario,
    loaded: Loaded,
    sites: ModelSites,
    lake: Lake,
    share: Share | None,
    *,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> str | None:
    """Read a shard of a dataset, or publish all of them.

    Args:
        scenario: the request.
        loaded: the model.
        sites: where its sites are.
        lake: where the run goes.
        share: which shard; None to publish them all.
        progress: told of prompts, and of what is there already.
        options: `source` and `force`, as `capture_dataset` takes them.

    Returns:
        Id of the run that was published; None for a shard.

    Raises:
        AlabError: as `capture_dataset`; another process is at the shard, or some are missing.
    """
    refuse_undivided(scenario)
    prepared = prepare(scenario, loaded, sites, lake, progress=progress, **options)
    if share is None:
        return finish(prepared, lake, progress)
    read_shard(prepared, lake, share, progress)
    return None


def read_shard(prepared: Prepared, lake: Lake, share: Share, progress: Progress) -> None:
    """Read one shard where nobody has; see `capture_share`."""
    plan, prompts, asked = prepared
    index, count = share
    run_id = f"{_stem(asked)}{count}"
    begun = {k: run for k, run in _begun(lake, asked) if run["shards"] == count}
    for other, run in begun.items():
        refuse_changes(other, run, asked, "Give the scenario another name")
    if run_id not in begun:
        if done := _done(lake, asked):
            progress(f"{done} is published already", 0, 0)
            return
        asked = asked | {"trees": trees_of(plan, prompts, asked)}
    asked = asked | {"shards": count}
    asked["parts"] = len(batches_of(plan, prompts, asked).shards)
    name = f"shard {index}/{count} of {run_id}"
    staged = lake.join(run_id, asked, index)
    if staged is None:
        progress(f"{_done(lake, asked) or run_id} is published already", 0, 0)
        return
    with keeping(staged, lake, "the same command"):
        asked = staged.request or asked
        there = index not in lake.missing(run_id, asked)
        if not there:
            mine = range(index - 1, asked["parts"], count)
            _Shards(plan, prompts, batches_of(plan, prompts, asked), staged, progress).read(mine)
        staged.release()
    if run_id in lake.run_ids():
        progress(f"{run_id} is published already", 0, 0)
        return
    missing = lake.missing(run_id, asked)
    rest = f"missing yet: {_listed(missing)}" if missing else "all are there: --finish publishes"
    progress(f"{name} {'was there already' if there else 'is there'}; {rest}", 0, 0)


def finish(prepared: Prepared, lake: Lake, progress: Progress, count: int | None = None) -> str:
    """Publish the run whose shards, so many or any number, are there; see `capture_share`."""
    plan, prompts, asked = prepared
    name, begun = asked["scenario"]["name"], _begun(lake, asked)
    begun = [one for one in begun if count in (None, one[1]["shards"])]
    if not begun and (done := _done(lake, asked)):
        progress(f"{done} is published already", 0, 0)
        return done
    if not begun:
        raise AlabError(f"there are no shards of {name}", "Read them: alab capture --shard 1/8 …")
    if len(begun) > 1:
        ids = ", ".join(run_id for run_id, _ in begun)
        raise AlabError(f"shards of {name} are there for several runs: {ids}", "Delete: alab rm")
    run_id, request = begun[0]
    refuse_changes(run_id, request, asked, "Put it back as it was")
    if missing := lake.missing(run_id, request):
        raise AlabError(
            f"{run_id} lacks {len(missing)} of its {request['shards']} shards: {_listed(missing)}",
            f"Read them: alab capture --shard {missing[0]}/{request['shards']} …",
        )
    try:
        staged = lake.resume(run_id)
    except ConflictError:
        if run_id not in lake.run_ids():
            raise
        progress(f"{run_id} is published already", 0, 0)
        return run_id
    with keeping(staged, lake, "--finish"):
        request = staged.request or request
        refuse_changes(run_id, request, asked, "Put it back as it was")
        staged.collect(range(request["parts"]))
        began = datetime.fromisoformat(request["began"])
        _publish(plan, prompts, batches_of(plan, prompts, request), staged, began)
    catalog.Catalog(lake).add(run_id, progress)
    return run_id


def _begun(lake: Lake, asked: dict) -> list[tuple[str, dict]]:
    """Runs of a scenario's name that are begun and shared, and what each was asked for."""
    name = asked["scenario"]["name"]
    runs = lake.unfinished().items()
    return [(k, run) for k, run in runs if "shards" in run and run["scenario"]["name"] == name]


def _stem(asked: dict) -> str:
    """What the id of a run begins with, on every machine: it ends with the number of shards."""
    request = json.dumps([asked["scenario"], asked["dataset"]], sort_keys=True)
    return f"{asked['scenario']['name']}_{hashlib.sha256(request.encode()).hexdigest()[:12]}-of-"


def _done(lake: Lake, asked: dict) -> str | None:
    """The run that shards of the same request, however many, were published as; None before.

    Raises:
        AlabError: it is of other weights.
    """
    done = [run_id for run_id in lake.run_ids() if run_id.startswith(_stem(asked))]
    for run_id in done:
        if lake.metadata(run_id, "runs")["weights_hash"].to_pylist() != [asked["weights"]]:
            raise AlabError(
                f"the model's weights are not those of {run_id}, which is published",
                "Give the scenario another name.",
            )
    return done[-1] if done else None


def _listed(shards: list[int]) -> str:
    return ", ".join(map(str, shards[:20])) + (" …" if len(shards) > 20 else "")
