"""`python -m warehouse.cli`, where no `alab` was installed."""

from warehouse.cli.commands import main

main()
