"""Runs scenarios one after the other: each on its model, each read the way that it asks for."""

import gc
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import groupby
from typing import Any

import torch

from warehouse.capture.conversation import capture_one
from warehouse.capture.dataset_run import capture_dataset
from warehouse.capture.ending import ending, next_command
from warehouse.capture.plan import refusal
from warehouse.capture.session import Progress, Watch
from warehouse.capture.shards import Share, capture_share, published
from warehouse.lake.lake import Lake
from warehouse.models import loading
from warehouse.models.loading import Loaded
from warehouse.models.sites import discover
from warehouse.prefixes import at_each_message
from warehouse.scenario import Scenario


def capture(
    scenarios: list[Scenario],
    lakes: list[Lake],
    *,
    source: Any = None,
    force: bool = False,
    resume: bool = False,
    share: Share | None = None,
    finish: bool = False,
    since: datetime | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    watch: Watch = lambda *_, **__: None,
) -> Iterator[str]:
    """Run scenarios and publish their runs.

    Models are loaded once for neighbouring scenarios that share one, and freed before the next.

    Args:
        scenarios: what to run.
        lakes: where each goes.
        source: the source of a dataset, where it is a caller's table.
        force: run although the disk looks too small.
        resume: go on with the newest captures of these datasets that were stopped.
        share: read this shard of these datasets alone.
        finish: publish the datasets whose shards are all there.
        since: a scenario is not run again that is a run since then; that run's id is given.
        progress: told of each forward pass.
        tell: told each reply and where it ended, after its run's id was given, and what to do next.
        watch: told when a run begins, and each token of a reply.

    Yields:
        Ids of the runs, each as soon as it is published.

    Raises:
        AlabError: a scenario cannot be run; nothing of it is kept, earlier ones are.
    """
    pairs = list(zip(scenarios, lakes, strict=True))
    report = progress or (lambda *_: None)
    runs: list[tuple[Lake, str]] = []
    for (spec, eager), group in groupby(
        pairs, key=lambda pair: (pair[0].model, pair[0].capture.keeps("attention"))
    ):
        report(f"loading {spec.id}", 0, 0)
        loaded = loading.load(spec, attention_weights=eager)
        some = list(group)
        sites = discover(loaded.model, batches=any(scenario.dataset for scenario, _ in some))
        for scenario, lake in some:
            for single in _singles(scenario, loaded, report):
                options: dict[str, Any] = {"force": force, "progress": report, "source": source}
                if since and (found := published(single, loaded, lake, since)):
                    report(f"{single.name} is there already: {found}", 0, 0)
                    yield found
                    continue
                if share or finish:
                    shared = capture_share(single, loaded, sites, lake, share, **options)
                    if shared is None:
                        continue  # others are missing, or nobody has published them yet
                    run_id = shared
                elif resume or single.is_read_only:
                    options |= {"resume": resume or (None if since else False), "watch": watch}
                    run_id = capture_dataset(single, loaded, sites, lake, **options)
                else:
                    run_id = capture_one(single, loaded, sites, lake, watch=watch, **options)
                runs.append((lake, run_id))
                yield run_id
                if tell:
                    tell(ending(lake, run_id))
        del loaded, sites
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if tell and runs:
        tell(next_command(runs))


def _singles(scenario: Scenario, loaded: Loaded, report: Progress) -> Iterator[Scenario]:
    """The runs of a scenario; of those at each message, the ones that the template takes."""
    runs = at_each_message(scenario)
    reasons = [None if run.name == scenario.name else refusal(run, loaded) for run in runs]
    for run, reason in zip(runs, reasons, strict=True):
        if reason is None or all(reasons):  # which then says so itself
            yield run
        else:
            report(f"{run.name} is left out: {reason}", 0, 0)
