"""Reads a directory of arrays, as `warehouse.exchange.layout` has them, into a run: `alab import`.

Only `tensors/` has to be there. What `run.json` and `steps.json` do not say is told from the arrays
or left NULL, and snapshots may hold every token: their last one is the state. Nothing in the
directory is executed, and nothing outside it is read.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from warehouse.catalog import catalog
from warehouse.errors import AlabError
from warehouse.exchange import lens_json
from warehouse.exchange.directory import Directory
from warehouse.exchange.import_metadata import metadata
from warehouse.exchange.import_states import ImportedStates
from warehouse.exchange.import_tensors import write_layer
from warehouse.lake.lake import Lake
from warehouse.lake.parquet import open_parquet
from warehouse.lake.schemas import lens_schema
from warehouse.lake.staging import StagedRun

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}")


def import_run(
    lake: Lake,
    folder: Path | str,
    *,
    name: str | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> str:
    """Bring a directory into a warehouse.

    Args:
        lake: the warehouse's lake.
        folder: the directory.
        name: give the run a new id that begins with this; None keeps the id that the directory
            names.
        progress: told where the catalog is in use.

    Returns:
        Id of the run.

    Raises:
        AlabError: the directory is damaged, hostile or of another layout, or the run is there
            already. Nothing is written then.
    """
    folder = Path(folder)
    try:
        source = Directory(folder)
        run_id = source.record.get("run_id") if name is None else None
        if run_id is not None and not (isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)):
            raise source.refused(f"run.json has the run_id {run_id!r}, which is no id")
        scenario = name or source.text("scenario", "name") or folder.resolve().name
        staged = lake.stage(re.sub(r"[^A-Za-z0-9_-]+", "-", scenario), run_id=run_id)
        try:
            _write(staged, source, scenario)
        except BaseException:
            staged.discard()
            raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError) as error:
        raise AlabError(
            f"cannot import {folder}: not of the layout: {error!r}", "Nothing was written."
        ) from error
    except OSError as error:
        raise AlabError(
            f"cannot write to the warehouse {lake.warehouse}: {error.strerror or error}",
            "Nothing of the run was kept. Free some space, or name another warehouse with "
            "--warehouse.",
        ) from error
    catalog.Catalog(lake).add(staged.run_id, progress)
    return staged.run_id


def _write(staged: StagedRun, source: Directory, scenario: str) -> None:
    for layer in [None, *source.layers]:
        write_layer(staged, source, layer)
    states = ImportedStates(source)
    states.write(staged)
    if "logit_lens" in source.folders:
        _write_lens(staged, source)
    staged.publish(metadata(source, staged, scenario, states))


def _write_lens(staged: StagedRun, source: Directory) -> None:
    """Write the rows of the logit lens, a file for each stream that there is."""
    lenses = {stream: source.json(f"logit_lens/{stream}.json") for stream in lens_json.STREAMS}
    if not any(lenses.values()):
        raise source.refused("the folder logit_lens is missing or has no lens")
    for stream, lens in lenses.items():
        if lens is not None:
            rows = pa.Table.from_pylist(list(lens_json.read(lens)), lens_schema())
            with open_parquet(staged.path("logit_lens", f"{stream}.parquet"), rows.schema) as file:
                file.write_table(rows)
