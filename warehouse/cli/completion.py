"""What the shell offers when the tab key is pressed: run ids, and names of the SQL library.

Both are read from folders and files, without a database, and nothing here raises: a shell has no
place for errors.
"""

import click
from click.shell_completion import CompletionItem

from warehouse.errors import AlabError


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the warehouse's runs, newest first, and `latest`, but those on the line already.

    The group of the command knows `--warehouse` and `$ALAB_WAREHOUSE`.
    """
    from warehouse.lake.lake import Lake

    try:
        folder = Lake(ctx.find_root().params.get("warehouse") or "lab").root / "metadata"
        found = sorted(folder.glob("run=*"), key=lambda path: path.stat().st_mtime, reverse=True)
    except (OSError, AlabError):
        return []
    given = ctx.params.get(param.name) or ()
    names = ["latest", *(path.name.removeprefix("run=") for path in found)] if found else []
    return [name for name in names if name.startswith(incomplete) and name not in given]


def objects(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Objects of the SQL library whose name begins with `incomplete`, with a line on each."""
    from warehouse.catalog import sqldoc

    return [
        CompletionItem(item.name, help=item.summary)
        for item in sqldoc.library()
        if item.name.startswith(incomplete) and not item.name.startswith("_")
    ]
