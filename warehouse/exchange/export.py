"""Writes a run as a directory of arrays or tables, a block of rows at a time: `alab export`.

The formats `npz`, `npy` and `safetensors` have the layout of `warehouse.exchange.layout`, which
`alab import` reads back.

The formats `parquet` and `arrow` have the lake's rows, float32: a table per dataset and layer, and
the states, the labels of a dataset, the logit lens and the metadata whole, whichever steps and
layers are wanted. A dataset run has no other formats: a file for each prompt is of no use.
"""

import shlex
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from warehouse import advice
from warehouse.catalog import catalog
from warehouse.catalog.runs import Run, Selection, names, numbers, open_run, sources
from warehouse.errors import AlabError
from warehouse.exchange import layout
from warehouse.lake import store
from warehouse.lake.lake import Lake
from warehouse.lake.parquet import open_parquet
from warehouse.lake.tensors import Source

#: What `export` writes.
FORMATS = ("npz", "npy", "safetensors", "parquet", "arrow")
#: Those of them that are tables, as the lake has them.
TABLES = ("parquet", "arrow")
#: Suffixes of single files, whatever is in them.
_FILES = """
    feather ipc pt pth bin pkl pickle h5 hdf5 mat csv tsv json jsonl yaml txt db duckdb sqlite
    zip tar gz tgz bz2 xz zst
"""
ONE_FILE = {f".{name}" for name in (*FORMATS, *_FILES.split())}


def export(
    lake: Lake,
    name: str,
    out: Path | None = None,
    *,
    fmt: str = "npz",
    sites: str | None = None,
    layers: str | None = None,
    steps: str | None = None,
    force: bool = False,
) -> Path:
    """Write a run to a directory.

    Args:
        lake: the warehouse's lake.
        name: a run id, a unique prefix of one, or `latest`.
        out: the directory; None is one named like the run, here.
        fmt: npz, npy, safetensors, parquet or arrow.
        sites: the sites to write, such as `hidden_out,attention`; None is all.
        layers: the layers to write, such as `0-3,7`; None is all.
        steps: the steps to write; None is all.
        force: replace an earlier export; no other directory is ever replaced.

    Returns:
        The directory.

    Raises:
        AlabError: no such run, site, layer or step; the directory exists, or has a file's name; a
            dataset run in a format that is not a table.
    """
    _check_name(lake, out, name, fmt)
    with open_run(lake, name) as run:
        _check_format(run, fmt)
        selection = Selection(
            names(sites, run.site_names()),
            numbers(layers, run.layers(), "layer"),
            numbers(steps, run.steps(), "step"),
        )
        out = Path(out or run.run_id).absolute()
        if out.exists() and not force:
            raise AlabError(f"{out} exists", "Name another directory, or replace it with --force.")
        if out.exists() and not _is_export(out):
            hint = "Name another; --force replaces only earlier exports."
            raise AlabError(f"{out} exists and is no export", hint)
        draft = out.with_name(f".{out.name}.unfinished")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            if fmt in TABLES:
                write_tables(run, draft, fmt, selection)
            else:
                layout.write(run, draft, fmt, selection)
            if out.exists():
                shutil.rmtree(out)
            draft.rename(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return out


def _check_name(lake: Lake, out: Path | None, run: str, fmt: str) -> None:
    """Refuse a directory whose name promises one file, as `x.npz` does: readers would find none."""
    if out is None or (suffix := Path(out).suffix.lower()) not in ONE_FILE:
        return
    fmt = suffix[1:] if suffix[1:] in FORMATS else fmt
    plain = Path(out)
    while plain.suffix.lower() in ONE_FILE:  # x.tar.gz
        plain = plain.with_suffix("")
    command = f"{advice.alab(lake.warehouse)} export {shlex.quote(run)} --format {fmt}"
    raise AlabError(
        f"an export is a directory of files, and {Path(out).name} is the name of one file",
        f"{command} -o {advice.quoted(plain)}",
        2,
    )


def _check_format(run: Run, fmt: str) -> None:
    """Refuse arrays of a dataset run, whose prompts have no passes of their own to be files."""
    if fmt in TABLES or ("labels", None) not in run.files:
        return
    command = f"{advice.alab(run.lake.warehouse)} export {run.run_id} --format parquet"
    raise AlabError(
        f"{run.run_id} is a dataset run, which {fmt} has no layout for",
        f"As tables: {command} (or arrow); as arrays in Python: lab.matrix(run, site, layer)",
    )


def _is_export(path: Path) -> bool:
    """Whether a directory is one that `export` wrote, or empty; anything else is somebody's."""
    if not path.is_dir():
        return False
    return (path / "run.json").is_file() or (path / "metadata").is_dir() or not any(path.iterdir())


def write_tables(run: Run, out: Path, fmt: str, selection: Selection) -> None:
    """Write a file per dataset and layer, states, labels and lens, and the metadata tables."""
    for dataset, layer, source in sources(run, selection):
        file = source.open[0]
        columns = [
            field.name
            for field in file.schema_arrow
            if not pa.types.is_nested(field.type)
            or (field.name in source.columns and selection.site(field.name))
        ]
        if any(column in source.columns for column in columns):
            path = out / dataset / ("part-0" if layer is None else f"layer_{layer:02d}")
            _write_table(path, fmt, _batches(source, columns, selection))
    for table in catalog.table_names():
        rows = run.lake.metadata(run.run_id, table)
        _write_table(out / "metadata" / table, fmt, iter(rows.to_batches()))
    for dataset in ("states", "labels", "logit_lens"):
        for number, file in enumerate(run.files.get((dataset, None), [])):
            _write_table(out / dataset / f"part-{number}", fmt, store.parquet(file).iter_batches())


def _batches(source: Source, columns: list[str], selection: Selection) -> Iterator[pa.RecordBatch]:
    for file in source.open:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            if selection.steps is not None:
                table = table.filter([*map(selection.step, table["step"].to_pylist())])
            yield from table.combine_chunks().to_batches()


def _write_table(path: Path, fmt: str, batches: Iterator[pa.RecordBatch]) -> None:
    first = next(batches, None)
    if first is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f"{path.name}.{fmt}")
    open_file = open_parquet if fmt == "parquet" else pa.ipc.new_file
    with open_file(path, first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)
