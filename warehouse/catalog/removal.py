"""What runs cost on disk, and giving it back: `alab rm`."""

from collections.abc import Iterable

from warehouse.catalog import runs
from warehouse.catalog.catalog import Catalog
from warehouse.lake import store
from warehouse.lake.lake import Lake
from warehouse.vocabulary import BULK


def resolve(lake: Lake, names: Iterable[str]) -> list[str]:
    """Ids of the runs that a user means, each once; a damaged one answers to its whole id.

    Raises:
        AlabError: no run, or more than one, answers to a name.
    """
    whole = {*lake.run_ids(), *lake.unfinished()}
    with Catalog(lake).connect() as db:
        return list(dict.fromkeys(n if n in whole else runs.find_run(db, n) for n in names))


def stopped(lake: Lake) -> tuple[list[str], list[tuple]]:
    """Columns and rows about captures of datasets that were stopped and can be gone on with."""
    rows = [
        (
            run_id,
            asked["scenario"]["name"],
            asked["prompts"],
            asked["began"],
            _shards(lake, run_id, asked),
        )
        for run_id, asked in sorted(lake.unfinished().items())
    ]
    columns = ["run_id", "scenario", "prompts", "began"]
    if any(row[-1] for row in rows):
        return [*columns, "shards"], rows
    return columns, [row[:-1] for row in rows]


def _shards(lake: Lake, run_id: str, asked: dict) -> str | None:
    """Which shards, from 1, of a run that several processes read are there; None of others."""
    if "shards" not in asked:
        return None
    missing = lake.missing(run_id, asked)
    there = [str(index) for index in range(1, asked["shards"] + 1) if index not in missing]
    return f"{len(there)} of {asked['shards']}: {', '.join(there)}".rstrip(": ")


def readable(size: int) -> str:
    """A number of bytes for a person.

    >>> readable(999), readable(12_345), readable(2_500_000_000)
    ('999 bytes', '12.3 kB', '2.5 GB')
    """
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def size(lake: Lake, run_id: str, *, activations_only: bool = False) -> int:
    """Bytes that removing a run, or its bulky datasets alone, would free."""
    if run_id in lake.unfinished():
        return 0 if activations_only else _unfinished_size(lake, run_id)
    sizes = lake.sizes(run_id)
    return sum(size for dataset, size in sizes if not activations_only or dataset in BULK)


def _unfinished_size(lake: Lake, run_id: str) -> int:
    """Bytes of a run that is being written, here and at the URL."""
    here = [path for path in store.paths(lake.staging / run_id, "**/*") if path.is_file()]
    is_shared = lake.remote and run_id in lake.remote.known()["begun"]
    far = lake.remote.of_run(run_id) if lake.remote and is_shared else {}
    return sum(map(store.size, here)) + sum(entry.size for entry in far.values())


def remove(lake: Lake, run_ids: list[str], *, activations_only: bool = False) -> int:
    """Delete runs from the lake and the catalog.

    The catalog is held meanwhile, so that no query of another process loses its files half-way.
    With `activations_only` just the tensors of every token go; states, metadata and what is
    computed from them stay.

    Returns:
        Bytes that were freed.

    Raises:
        CatalogBusyError: another process has the catalog open; nothing was removed.
        AlabError: another process is changing one of the runs.
    """
    unfinished = set() if activations_only else set(lake.unfinished())
    before = sum(size(lake, run_id) for run_id in run_ids)

    def change() -> None:
        for run_id in run_ids:
            if run_id in unfinished:
                lake.resume(run_id).discard()
            else:
                lake.drop(run_id, BULK) if activations_only else lake.remove(run_id)

    Catalog(lake).sync(change=change)
    return before - sum(size(lake, run_id) for run_id in run_ids)
