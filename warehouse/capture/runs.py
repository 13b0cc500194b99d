"""Scenario files, checked as far as can be without a model, and then captured."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from warehouse.capture.batches import is_in, parse_share, refuse_undivided
from warehouse.capture.threads import let_threads_sleep
from warehouse.lake.lake import Lake
from warehouse.models.loading import check
from warehouse.scenario_files import are_several, files_of, read_file


def capture_files(
    paths: Sequence[Path | str],
    warehouse: Path | str | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    shard: str | None = None,
    finish: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
    watch: Callable[..., None] = lambda *_, **__: None,
) -> Iterator[str]:
    """Run scenario files, or all those in a directory, one after the other.

    All of them are read and checked before the first model is loaded.

    Args:
        paths: files and directories.
        warehouse: where the runs go; else each scenario's `output.dir`, else `./lab`.
        force: run although the disk looks too small.
        resume: go on with the newest captures of these datasets that were stopped.
        shard: such as `3/16`: read the third of sixteen shards of one dataset, or of several
            scenarios those whose names fall into it and that are no run yet.
        finish: publish datasets whose shards are all there.
        progress: told of each forward pass, as `capture` says.
        tell: told each reply and where it ended, after its run's id was given, and what to do next.
        watch: told when a run begins, and each token of a reply: `session.Watch`.

    Yields:
        Ids of the new runs, each as soon as it is published.

    Raises:
        AlabError: a scenario is invalid or cannot be run; nothing of it is kept, earlier ones are.
    """
    let_threads_sleep()
    share = None if shard is None else parse_share(shard)
    files = files_of(paths)
    scenarios = [read_file(path) for path in files]
    for path, scenario in zip(files, scenarios, strict=True):
        check(scenario.model, str(path))
        if scenario.output.format != "parquet" and progress:
            other = "alab export --format npz gives the json+npz layout"
            progress(f"output.format: alab writes Parquet; {other}", 0, 0)
    pairs = [(one, Lake(warehouse or one.output.dir or "lab")) for one in scenarios]
    several = share is not None and are_several(paths)
    if share and several:
        pairs = [pair for pair in pairs if is_in(pair[0], share)]
        if progress and not pairs:
            progress(f"none of the {len(files)} scenarios is in shard {shard}", 0, 0)
        share = None
    for scenario, _ in pairs if share or finish else ():
        refuse_undivided(scenario)
    if pairs:
        # It imports torch: two seconds, after what is wrong was told.
        from warehouse.capture.scenarios import capture

        options: dict[str, Any] = {"force": force, "resume": resume, "watch": watch}
        options |= {"share": share, "finish": finish, "since": datetime.min if several else None}
        options |= {"progress": progress, "tell": tell}
        yield from capture([one for one, _ in pairs], [lake for _, lake in pairs], **options)
