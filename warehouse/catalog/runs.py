"""Runs by the names that users give them, and what the catalog knows of one."""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from warehouse.assets import query
from warehouse.catalog.catalog import connect, damaged
from warehouse.catalog.library import newest_first
from warehouse.errors import AlabError, NotThereError
from warehouse.lake.lake import Lake
from warehouse.lake.tensors import Source
from warehouse.vocabulary import TABLE, site_of

if TYPE_CHECKING:
    from warehouse.lake.objects import ObjectFile


def find_run(db: duckdb.DuckDBPyConnection, name: str) -> str:
    """The id of the run that is meant by an id, the beginning of one, `latest` or `latest:NAME`.

    Raises:
        AlabError: no run, or more than one, answers to the name.
    """
    runs = newest_first(db)
    ids, broken = [run_id for run_id, _ in runs], damaged(db)
    if not ids and not broken:
        raise NotThereError("the warehouse has no runs yet", "Capture one: alab capture SCENARIO")
    if name == "latest":
        return _latest(ids, broken)
    if name.startswith("latest:"):
        matches = [run_id for run_id, scenario in runs if f"latest:{scenario}" == name][:1]
    else:
        matches = [name] if name in ids else _beginning(ids, name)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise AlabError(
            f"{name!r} could be any of {len(matches)} runs: {', '.join(matches[:5])}",
            "Type more of the id.",
        )
    if lost := _beginning(broken, name):
        raise AlabError(f"the metadata of {', '.join(lost)} is damaged", "What is: alab check")
    unknown = f"there is no run {name!r}; the newest are: {', '.join(ids[:5])}"
    raise NotThereError(unknown, "See them all: alab runs")


def find_runs(db: duckdb.DuckDBPyConnection, names: Iterable[str] = ()) -> list[str]:
    """Ids of the runs that some names mean, each once; of all runs where there are none.

    A name with `*` in it means every run whose id is like it.

    Raises:
        AlabError: as `find_run`, or there is no run like a name.
    """
    if not (names := list(names)):
        find_run(db, "latest")  # tells what to do where there are none
        return [row[0] for row in db.execute("SELECT run_id FROM runs").fetchall()]
    ids = [run_id for run_id, _ in newest_first(db)] if any("*" in name for name in names) else []
    found: list[str] = []
    for name in names:
        some = fnmatch.filter(ids, name) if "*" in name else [find_run(db, name)]
        if not some:
            raise NotThereError(f"there is no run like {name!r}", "See them all: alab runs")
        found += some
    return list(dict.fromkeys(found))


def _beginning(ids: list[str], text: str) -> list[str]:
    return [run_id for run_id in ids if text and run_id.startswith(text)]


def _latest(ids: list[str], broken: list[str]) -> str:
    """The newest of the runs, unless a damaged one is newer."""
    later = [run_id for run_id in broken if not ids or _time(run_id) > _time(ids[0])]
    if later:
        damage = f"the metadata of the latest run, {max(later, key=_time)}, is damaged"
        raise AlabError(damage, "What is: alab check")
    return ids[0]


def _time(run_id: str) -> str:
    """The time in a run's id; empty where it has none.

    >>> _time("joy_20260102T101500Z-2")
    '20260102T101500Z-2'
    """
    match = re.search(r"_(\d{8}T\d{6}Z(?:-\d+)?)$", run_id)
    return match[1] if match else ""


@dataclass(frozen=True)
class Selection:
    """What of a run is wanted; None is everything.

    Attributes:
        sites: names of sites; also `attention`, `embeddings`, `logits`.
        layers: decoder blocks.
        steps: forward passes.
    """

    sites: frozenset[str] | None = None
    layers: frozenset[int] | None = None
    steps: frozenset[int] | None = None

    def step(self, number: int) -> bool:
        """Whether a forward pass is wanted."""
        return self.steps is None or number in self.steps

    def layer(self, number: int) -> bool:
        """Whether a decoder block is wanted."""
        return self.layers is None or number in self.layers

    def site(self, name: str) -> bool:
        """Whether a column of the lake is wanted."""
        return self.sites is None or site_of(name) in map(site_of, self.sites)


def numbers(text: str | None, known: list[int], what: str) -> frozenset[int] | None:
    """The numbers that a list such as `0-3,7` means; None for None.

    >>> sorted(numbers("0-2,5", list(range(8)), "layer"))
    [0, 1, 2, 5]

    Raises:
        AlabError: not such a list, or a number that does not exist; names those that do.
    """
    if text is None:
        return None
    asked: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            wrong = f"{part!r} is no {what} or range of them"
            raise AlabError(wrong, "Write for example: 0-3,7", 2)
        asked |= {first, last, *(n for n in known if first <= n <= last)}
    if missing := sorted(asked - set(known)):
        there = ", ".join(map(str, known)) or "none"
        if known and known == list(range(len(known))):
            there = f"{known[0]}-{known[-1]}"
        raise NotThereError(f"there is no {what} {missing[0]} in this run", f"There are: {there}")
    return frozenset(asked)


def names(text: str | None, known: list[str]) -> frozenset[str] | None:
    """The sites that a list such as `q,k,attention` means; None for None.

    Raises:
        AlabError: there is no such site in the run; names those there are.
    """
    if text is None:
        return None
    asked = {name.strip() for name in text.split(",")}
    if unknown := sorted(asked - set(known)):
        there = f"There are: {', '.join(known)}" if known else "It has none; alab inspect says why."
        raise NotThereError(f"there is no site {unknown[0]!r} in this run", there)
    return frozenset(asked)


class Run:
    """What the catalog knows about a run, and where its files are."""

    def __init__(self, lake: Lake, run_id: str, db: duckdb.DuckDBPyConnection):
        self.lake = lake
        self.run_id = run_id
        self.db = db

    def rows(self, table: str) -> list[dict]:
        """Rows of a metadata table that belong to the run, in order, without the run's id."""
        cursor = self.db.execute(query("rows"), {"table": table, "run": self.run_id})
        keys = [column[0] for column in cursor.description]
        return [dict(zip(keys, row, strict=True)) for row in cursor.fetchall()]

    @cached_property
    def files(self) -> "dict[tuple[str, int | None], list[Path | ObjectFile]]":
        """Part files of each dataset and layer, in the order they were written."""
        parts: dict[tuple[str, int | None], list[Path | ObjectFile]] = defaultdict(list)
        for row in sorted(self.rows("files"), key=lambda row: _part_number(row["path"])):
            parts[row["dataset"], row["layer"]].append(self.lake.file(row["path"]))
        return dict(parts)

    def layers(self) -> list[int]:
        """Layers that the run has."""
        return sorted(row["layer"] for row in self.rows("layers"))

    def steps(self) -> list[int]:
        """Steps that the run has, over all its prompts."""
        return sorted({row["step"] for row in self.rows("steps")})

    def site_names(self) -> list[str]:
        """Sites that `--sites` may name."""
        datasets = {dataset for dataset, _ in self.files}
        captured = {row["site"] for row in self.rows("sites") if row["width"] is not None}
        sites = [
            site
            for site in TABLE
            if site.dataset in datasets and (site.dataset != "activations" or site.name in captured)
        ]
        layered = [site.name for site in sites if site.dataset != "outputs"]
        keys = [site.key for site in sites if site.key and site.dataset == "activations"]
        return [*layered, *keys, *(site.name for site in sites if site.dataset == "outputs")]


@contextmanager
def open_run(lake: Lake, name: str) -> Iterator[Run]:
    """Open the catalog, and give the run that a user means, while it is open.

    Raises:
        AlabError: there is no warehouse, or no run, or more than one, answers to the name.
    """
    with connect(lake) as db:
        yield Run(lake, find_run(db, name), db)


def _part_number(path: str) -> tuple[int, str]:
    match = re.search(r"part-(\d+)(?:\.[0-9a-f]{8})?\.parquet$", path)
    return (int(match[1]) if match else 0, path)


def sources(run: Run, wanted: Selection) -> Iterator[tuple[str, int | None, Source]]:
    """The wanted parts of the lake as (dataset, layer, source), opened one after the other."""
    layers: list[int | None] = [n for n in run.layers() if wanted.layer(n)]
    for layer in [None, *layers]:
        for dataset in ("outputs",) if layer is None else ("activations", "attention"):
            if parts := run.files.get((dataset, layer)):
                yield dataset, layer, Source(parts)
