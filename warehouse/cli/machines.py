"""The command that asks each of many runs, and the options of those that other machines help."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from warehouse.cli import completion
from warehouse.cli.shell import FILE, TEXT, main, pass_lake

if TYPE_CHECKING:
    from warehouse.lake.lake import Lake

_RAY = click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Spread the work over a Ray; without an address one is started here.",
)
_WORKERS = click.option(
    "--workers", type=click.IntRange(1), help="Of a Ray that is started.  [default: processors]"
)


def ray_options(command: Callable) -> Callable:
    """Let a command name a Ray."""
    return _RAY(_WORKERS(command))


@main.command("map")
@click.argument("query")
@click.option(
    "--runs",
    multiple=True,
    metavar="RUN",
    shell_complete=completion.runs,
    help="An id, a unique prefix, a pattern such as 'joy_*', or latest.  [default: all]",
)
@ray_options
@click.option("-o", "--output", type=FILE, help="Write to a file: .parquet, .csv, .jsonl …")
@click.option("--format", "fmt", type=TEXT, help="[default: table on a terminal, else csv]")
@pass_lake
def map_command(
    lake: "Lake",
    query: str,
    runs: tuple[str, ...],
    ray: str | None,
    workers: int | None,
    **options: Any,
) -> None:
    """Run a query for each of many runs, `$run` in it, and give one table.

    \b
    alab map 'FROM intra_run_summary($run)' --runs 'joy_*' -o summary.parquet
    """
    from warehouse.cli.output import put
    from warehouse.cli.progress import bar
    from warehouse.cluster import queries
    from warehouse.cluster import workers as machines

    with bar() as progress, machines.workers(ray, count=workers) as each:
        table = queries.ask_each(lake, query, runs, each, progress)
    put(table, **options)
