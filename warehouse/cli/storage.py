"""The commands about what lies in a warehouse: sizes, soundness, and runs in and out of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from warehouse.cli import completion
from warehouse.cli.shell import FILE, PATH, format_option, main, pass_lake, run_argument

if TYPE_CHECKING:
    from warehouse.lake.lake import Lake


@main.command()
@format_option
@pass_lake
def du(lake: "Lake", fmt: str | None) -> None:
    """Show what each run costs on disk, by dataset, in megabytes.

    \b
    alab du
    """
    from warehouse.cli.output import show

    show(lake, "FROM run_sizes()", fmt=fmt)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", shell_complete=completion.runs)
@click.option(
    "--activations-only", is_flag=True, help="Keep states and metadata: reports go on working."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_lake
def rm(lake: "Lake", runs: tuple[str, ...], activations_only: bool, yes: bool) -> None:
    """Delete runs, or only the tensors of every token.

    \b
    alab rm latest --activations-only
    """
    from warehouse.catalog import removal

    run_ids = removal.resolve(lake, runs)
    what = "activations, attention and outputs" if activations_only else "everything"
    for run_id in run_ids:
        size = removal.size(lake, run_id, activations_only=activations_only)
        click.echo(f"{run_id}: {what}, {removal.readable(size)}", err=True)
    if not yes:
        click.confirm("Delete for good?", abort=True, err=True)
    freed = removal.remove(lake, run_ids, activations_only=activations_only)
    click.echo(f"freed {removal.readable(freed)}")


@main.command()
@click.option(
    "--deep", is_flag=True, help="Read every tensor too: each compressed block has a checksum."
)
@click.option(
    "--fix", is_flag=True, help="Delete folders that belong to no run, and build the catalog anew."
)
@click.option(
    "--model", is_flag=True, help="Read prompts of datasets with their models again, and compare."
)
@pass_lake
def check(lake: "Lake", deep: bool, fix: bool, model: bool) -> None:
    """Verify that catalog, files, row counts and sizes agree, and checksums of metadata and states.

    Exit status 1 where they do not.

    \b
    alab check --fix
    """
    from warehouse.catalog import check as checks

    if fix:
        checks.repair(lake)
    problems = checks.check(lake, deep=deep)
    if model:
        from warehouse.capture.verify import verify
        from warehouse.cli.progress import bar

        with bar() as progress:
            problems += verify(lake, progress)
    for problem in problems:
        click.echo(problem)
    click.echo(f"runs checked: {len(lake.run_ids())}, problems: {len(problems)}", err=True)
    raise click.exceptions.Exit(1 if problems else 0)


@main.command()
@pass_lake
def rebuild(lake: "Lake") -> None:
    """Delete the catalog and build it anew from the lake; tables of your own in it are lost.

    \b
    alab rebuild
    """
    from warehouse.catalog.check import rebuild

    click.echo(f"{len(rebuild(lake))} runs registered")


@main.command("catalog")
@click.option("-o", "--output", type=FILE, required=True, help="The file.")
@pass_lake
def catalog_command(lake: "Lake", output: Path) -> None:
    """Write the catalog of a warehouse at a URL to a file, for the DuckDB command line.

    It has the same tables, macros and analyses, and reads the lake through DuckDB's httpfs. Runs
    that are captured later are not in it.

    \b
    alab catalog -o lab.duckdb
    """
    from warehouse.catalog import catalog

    click.echo(catalog.write(lake, output))


@main.command()
@run_argument
@click.option("-o", "--out", type=PATH, help="Directory to write.  [default: ./<run id>]")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["npz", "npy", "safetensors", "parquet", "arrow"]),
    default="npz",
)
@click.option("--sites", help="Sites to write, such as hidden_out,attention.  [default: all]")
@click.option("--layers", help="Layers to write, such as 0-3,7.  [default: all]")
@click.option("--steps", help="Steps to write.  [default: all]")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@pass_lake
def export(lake: "Lake", run: str, out: Path | None, **options: Any) -> None:
    """Write a run as a directory of arrays or tables, for scripts that know no SQL.

    -o names a directory, in which there are .npz files for instance; the name of one file, such as
    x.npz, is refused. Prints the directory. RUN is an id, a unique prefix of one, `latest`, or
    `latest:SCENARIO`.

    \b
    alab export latest --format npz --layers 0-3 -o exported
    """
    from warehouse.exchange.export import export

    click.echo(export(lake, run, out, **options))


@main.command("import")
@click.argument("directory", type=PATH)
@click.option(
    "--name", help="Begin a new run id with this.  [default: the id that the directory names]"
)
@pass_lake
def import_command(lake: "Lake", directory: Path, name: str | None) -> None:
    """Bring in a directory of arrays, as `alab export` and hook scripts write them.

    Prints the id of the run.

    \b
    alab import exported --name again
    """
    from warehouse.cli.progress import bar
    from warehouse.exchange.importing import import_run

    with bar() as progress:
        run_id = import_run(lake, directory, name=name, progress=progress)
    click.echo(run_id)
