"""Captures on many workers: a dataset shard by shard, every other scenario whole."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from warehouse.capture.batches import Share, refuse_undivided
from warehouse.capture.threads import let_threads_sleep
from warehouse.cluster.workers import Each
from warehouse.errors import AlabError
from warehouse.lake.lake import Lake
from warehouse.scenario import Scenario
from warehouse.scenario_files import are_several, files_of, read_file

Progress = Callable[[str, int, int], None]
#: What a worker keeps of the one dataset that it reads.
_KEPT: dict[str, Any] = {}


class _Work(NamedTuple):
    """A scenario, or one shard of it; shard 0 publishes the others. `since` is as of `capture`."""

    scenario: Scenario
    lake: Lake
    force: bool
    since: datetime
    share: Share | None = None


def capture_files(
    paths: Sequence[Path | str],
    warehouse: Path | str | None,
    each: Each,
    *,
    shards: int,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Iterator[str]:
    """Run scenario files, or all those in directories, on many workers.

    Args:
        paths: files and directories.
        warehouse: where the runs go, the same directory or URL for all workers.
        each: the workers.
        shards: into how many shards a dataset is dealt, whatever the number of workers.
        force: run although the disk looks too small.
        progress: told of scenarios and shards.

    Yields:
        Ids of the runs, each as soon as it is published; of several scenarios also of those that
        were runs already.

    Raises:
        AlabError: as `warehouse.capture.runs.capture_files`, or a worker has no such model or does
            not see the warehouse. What was finished is kept.
    """
    if shards < 1:
        raise AlabError(f"--shards: there is no dataset of {shards} shards", "Name 1 or more.", 2)
    # A worker that dies is followed by another, which does not do again what was done.
    since = datetime.min if are_several(paths) else datetime.now(UTC).replace(tzinfo=None)
    work = []
    for scenario in map(read_file, files_of(paths)):
        lake = Lake(warehouse or scenario.output.dir or "lab")
        lake.prepare()
        work.append(_Work(scenario, lake, force, since))
    divided = [one for one in work if one.scenario.is_read_only]
    for one in divided:
        refuse_undivided(one.scenario)
    parts = [one._replace(share=(n, shards)) for one in divided for n in range(1, shards + 1)]
    parts += [one for one in work if one not in divided]
    try:
        for done, (_, ids) in enumerate(each(_run, parts)):
            progress("shards", done + 1, len(parts))
            yield from ids
        for _, ids in each(_run, [one._replace(share=(0, shards)) for one in divided]):
            yield from ids
    except BaseException as error:
        error.add_note("what was finished is kept: give the same command once more")
        raise


def _run(work: _Work) -> list[str]:
    """What a worker does; gives the ids of the runs that it published."""
    let_threads_sleep()  # before torch
    from warehouse.capture import scenarios, shards

    if not (work.lake.remote or work.lake.root.is_dir()):
        raise AlabError(
            f"there is no warehouse at {work.lake.warehouse}",
            "All workers have to see one directory under one path.",
        )
    if work.share is None:
        options: dict[str, Any] = {"force": work.force, "since": work.since}
        return list(scenarios.capture([work.scenario], [work.lake], **options))
    index, count = work.share
    if not index:
        return [shards.finish(_prepared(work), work.lake, _silent, count)]
    shards.read_shard(_prepared(work), work.lake, work.share, _silent)
    return []


def _silent(*_: object) -> None:
    """What becomes of a shard is told by the command, not by its workers."""


def _prepared(work: _Work) -> Any:
    """The model and the dataset's prompts, which a worker keeps from one shard to the next."""
    from warehouse.capture.dataset_run import prepare
    from warehouse.models import loading
    from warehouse.models.sites import discover

    scenario, key = work.scenario, f"{work.lake.warehouse}: {work.scenario.model_dump_json()}"
    if key not in _KEPT:
        _KEPT.clear()  # before the next model comes
        eager = scenario.capture.keeps("attention")
        loaded = loading.load(scenario.model, attention_weights=eager)
        sites = discover(loaded.model, batches=True)
        _KEPT[key] = prepare(scenario, loaded, sites, work.lake, force=work.force)
    return _KEPT[key]
