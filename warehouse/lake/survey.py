"""What a lake at a URL holds, by a listing, against what its index says: for `alab check`."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from warehouse.lake.objects import Entry, each
from warehouse.lake.remote import (
    GRAVE,
    INDEX,
    Leftover,
    Remote,
    by_run,
    index_in,
    is_whole,
    manifest_name,
    request_of,
)

#: Seconds after which what nobody has published was left behind by a process that died.
GRACE = 24 * 3600
#: The same of what somebody was deleting.
DELETING = 600


class Manifests(NamedTuple):
    """Manifests by their runs: versions of those that are whole, and of claims and graves.

    Of claims for runs that are read in shards also what they were begun with; and which are graves.
    """

    runs: dict[str, str]
    claims: dict[str, str]
    begun: dict[str, dict]
    graves: set[str]


class Survey(NamedTuple):
    """What the index lacks or has wrongly, and what belongs to no run.

    Attributes:
        wrong: runs with the version that it should have, None where it should not have the run.
        lost: runs that are read in shards and that it lacks.
        left: what nobody has published for a day.
    """

    wrong: dict[str, str | None]
    lost: dict[str, dict]
    left: list[Leftover]


def survey(remote: Remote) -> Survey:
    """List the lake."""
    index, found = remote.pull(), remote.objects.listing("lake")
    known = index["runs"]
    for run_id in known:  # what is damaged here is not told of the lake
        remote.mend(run_id)
    remote.objects.sizes = {name: entry.size for name, entry in found.items()}
    runs, claims, begun, graves = _manifests(remote, found)
    expected = known.keys() | index["begun"].keys() - begun.keys()
    gone = [run_id for run_id in expected if run_id not in runs and not remote.refresh(run_id)]
    wrong = {run_id: at for run_id, at in runs.items() if known.get(run_id) != at}
    left = []
    for run_id, own in by_run(found).items():
        named = remote.names(run_id) if run_id in runs else set()
        if run_id in wrong or named is None:  # who knows what belongs to it
            continue
        if run_id in begun:  # its shards may take as long as they do
            continue
        names = own.keys() - named - ({manifest_name(run_id)} if run_id in runs else set())
        grace = DELETING if run_id in graves else GRACE
        if names and max(own[name].at for name in names) <= time.time() - grace:
            data = sorted(names - {manifest_name(run_id)})
            left.append(Leftover(run_id, claims.get(run_id), data))
    lost = {run_id: begun[run_id] for run_id in begun.keys() - index["begun"].keys()}
    return Survey({**wrong, **dict.fromkeys(gone)}, lost, left)


def problems(remote: Remote) -> Iterator[tuple[str, str, str]]:
    """Kind, place and words of what is wrong."""
    wrong, lost, left = survey(remote)
    fix = "alab check --fix mends it"
    data, _ = remote.objects.get(INDEX) or (b"", None)
    if index_in(data) is None:
        yield "damaged", INDEX, f"the lake's index is {'no index' if data else 'not there'}; {fix}"
    for run_id, version in sorted(wrong.items()):
        what = "lacks this run, or has an older one" if version else "has it, and it is gone"
        yield "unregistered", run_id, f"the lake's index {what}; {fix}"
    for run_id in sorted(lost):
        yield "unregistered", run_id, f"the lake's index lacks that it is read in shards; {fix}"
    for run_id, _, names in left:
        yield "orphan", f"run={run_id}", f"nobody published it: {len(names)} objects; {fix}"


def repair(remote: Remote) -> None:
    """Mend the index by a listing, and delete what belongs to no run."""
    remote.change(lambda index: None)  # makes one where there is none
    wrong, lost, _ = survey(remote)
    if wrong:
        remote.enlist(wrong)
    if lost:
        remote.change(lambda index: index.setdefault("begun", {}).update(lost))
    for left in survey(remote).left:
        remote.bury(left)


def index_of(remote: Remote) -> dict:
    """The index that a lake should have."""
    found = remote.objects.listing("lake")
    models = {name.split("/")[2] for name in found if name.startswith("lake/models/")}
    runs, _, begun, _ = _manifests(remote, found)
    return {"runs": runs, "models": sorted(models), "begun": begun}


def _manifests(remote: Remote, found: dict[str, Entry]) -> Manifests:
    """The manifests of a listing; those that are known by their version are not asked for."""
    known = remote.known()["runs"]
    all_of_them = Manifests({}, {}, {}, set())

    def look(run_id: str) -> None:
        entry = found[manifest_name(run_id)]
        if entry.version and known.get(run_id) == entry.version:
            all_of_them.runs[run_id] = entry.version
        elif got := remote.objects.get(manifest_name(run_id)):
            data, version = got
            (all_of_them.runs if is_whole(data) else all_of_them.claims)[run_id] = version
            if request := request_of(data):
                all_of_them.begun[run_id] = request
            if data == GRAVE:
                all_of_them.graves.add(run_id)

    each(look, [run_id for run_id, own in by_run(found).items() if manifest_name(run_id) in own])
    return all_of_them
