"""The command line: one command parses, makes one library call, and prints.

Nothing heavy is imported here; a command imports what it needs when it runs.
"""

from warehouse.cli.commands import main

__all__ = ["main"]
