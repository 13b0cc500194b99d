"""What every command of `alab` shares: options, standard streams, and how errors are told."""

import functools
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from warehouse.cli import completion
from warehouse.errors import explain


def _keep(ctx: click.Context, option: click.Option, value: object) -> None:
    """Keep an option of `alab` itself that was given after a command's name."""
    if value:
        ctx.find_root().params[option.name] = value


class _Place(click.Path):
    """A directory, or the URL of one."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """A URL stays as it is."""
        return value if "://" in str(value) else super().convert(value, param, ctx)


class _Local(click.Path):
    """A file or directory of this machine."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """A URL would become the name of a folder here."""
        if "://" in str(value):
            self.fail(f"{str(value)!r} is a URL; only a warehouse can be at one", param, ctx)
        return super().convert(value, param, ctx)


#: Types of options.
PATH = _Local(path_type=Path)
FILE = _Local(path_type=Path, dir_okay=False)
FOLDER = _Local(path_type=Path, file_okay=False)
TEXT = click.Choice(["table", "csv", "json", "jsonl", "md"])
#: Options of `alab` itself, which every command takes too.
WAREHOUSE: dict[str, Any] = {
    "type": _Place(path_type=Path),
    "metavar": "DIR",
    "help": "Directory of the warehouse, or a URL such as s3://bucket/lab.  "
    "[default: $ALAB_WAREHOUSE, else ./lab]",
}
DEBUG: dict[str, Any] = {"is_flag": True, "help": "Show the traceback of an error."}
#: What several commands take.
run_argument = click.argument("run", shell_complete=completion.runs)
format_option = click.option(
    "--format", "fmt", type=TEXT, help="[default: table on a terminal, else csv]"
)
_SHARED = (
    click.Option(["-w", "--warehouse"], expose_value=False, callback=_keep, **WAREHOUSE),
    click.Option(["--debug"], expose_value=False, callback=_keep, **DEBUG),
)


def _prepare_streams() -> None:
    """Let a standard stream that was closed give and take nothing, and be no file of ours."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show


class Group(click.Group):
    """Tells errors in one or two lines on standard error, and keeps tracebacks for `--debug`.

    Its own options are accepted by each of its commands too.
    """

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        """Let a command take the shared options too."""
        command.params += _SHARED
        super().add_command(command, name)

    def invoke(self, ctx: click.Context):
        """Run a command; what goes wrong in it is told here."""
        _prepare_streams()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, so that a full disk is told of
            return result
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except KeyboardInterrupt as error:
            kept = getattr(error, "__notes__", ["nothing unfinished was kept"])
            click.echo(f"interrupted; {kept[0]}", err=True)
            sys.exit(130)
        except BrokenPipeError:  # the reader of our output has gone, as `| head` does
            _drop_output()
            sys.exit(0)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            _tell(error)

    def main(self, *arguments, **options):
        """Do everything, parsing and help included."""
        try:
            return super().main(*arguments, **options)
        except OSError as error:  # as help may meet on its way to a full disk
            _tell(error)


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.option("-w", "--warehouse", envvar="ALAB_WAREHOUSE", **WAREHOUSE)
@click.option("--debug", **DEBUG)
@click.version_option(package_name="alab", prog_name="alab")
def main(warehouse: Path | None, debug: bool) -> None:
    """alab: an activation warehouse.

    Run a conversation through a language model, keep every internal tensor, and ask questions of it
    in SQL.
    """


def pass_lake(command: Callable) -> Callable:
    """Give a command the lake of the warehouse that the command line or the environment names."""

    @click.pass_context
    @functools.wraps(command)
    def with_lake(ctx: click.Context, /, *arguments: Any, **options: Any) -> Any:
        from warehouse.lake.lake import Lake

        return command(Lake(ctx.find_root().params["warehouse"] or "lab"), *arguments, **options)

    return with_lake


def only_one(ctx: click.Context, *names: str) -> None:
    """Refuse options of a command that exclude one another."""
    given = [f"--{name}" for name in names if ctx.params[name] not in (None, False)]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} exclude one another")


def _tell(error: Exception) -> None:
    """End with what an exception means to a user; raise it anew where it is a defect."""
    told = explain(error)
    if told is None:
        raise error
    click.echo(
        click.style("error: ", fg="red", bold=True) + str(told).replace("\n", "\n  "), err=True
    )
    _drop_output()
    sys.exit(told.exit_code)


def _drop_output() -> None:
    """Keep what standard output no longer takes from failing once more at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
