"""The command `alab`: each command parses, makes one library call, and prints.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

import os
import sys
from pathlib import Path

import click

from warehouse.errors import AlabError


class _Group(click.Group):
    """Tells every `AlabError` in one or two lines on standard error, and keeps tracebacks for `--debug`."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except AlabError as error:
            if ctx.params.get("debug"):
                raise
            message = click.style("error: ", fg="red", bold=True) + str(error).replace("\n", "\n  ")
            click.echo(message, err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing unfinished was kept", err=True)
            sys.exit(130)
        except BrokenPipeError:  # the reader of our output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


def _lake(ctx: click.Context):
    """The lake of the warehouse that the command line or the environment names."""
    from warehouse.lake import Lake

    return Lake(ctx.find_root().params["warehouse"] or "lab")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-w", "--warehouse", envvar="ALAB_WAREHOUSE", type=click.Path(path_type=Path), metavar="DIR",
              help="Directory of the warehouse.  [default: $ALAB_WAREHOUSE, else ./lab]")  # fmt: skip
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="alab", prog_name="alab")
def main(warehouse: Path | None, debug: bool) -> None:
    """alab: an activation warehouse.

    Run a conversation through a language model, keep every internal tensor, and ask questions of it in SQL.
    """


if __name__ == "__main__":
    main()
