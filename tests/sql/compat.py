"""Runs every example of the SQL library against a warehouse, in whatever DuckDB runs this file.

    python tests/sql/compat.py WAREHOUSE

It needs that DuckDB and the standard library only, so an interpreter with any of the versions that `sql/README.md`
names can run it. Each statement has a connection of its own, as a command line has. A line for each statement that
fails, and exit status 1 where one does.
"""

import argparse
import sys
from pathlib import Path

import duckdb

sys.path.insert(0, str(Path(__file__).parents[2]))
from warehouse.catalog import sqldoc  # which imports no library


def examples() -> list[tuple[str, str]]:
    """Every example of the index and the library, as (name of the object, statement)."""
    library = [*sqldoc.parse(sqldoc.template("index")), *sqldoc.library()]
    return [(item.name, example) for item in library for example in item.examples]


def failures(catalog: Path, statements: list[tuple[str, str]]) -> list[str]:
    """What this DuckDB cannot do with a catalog: a line for each statement that fails or says false."""
    failed = []
    for name, statement in statements:
        try:
            with duckdb.connect(str(catalog), read_only=True) as db:
                rows = db.execute(statement).fetchall()
            problem = "is false" if rows and rows[0] == (False,) else ""
        except Exception as error:
            problem = str(error).strip().splitlines()[0]
        if problem:
            failed.append(f"{name}: {problem}: {' '.join(statement.split())}")
    return failed


def main() -> int:
    """Run all; 1 where something fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("warehouse", type=Path, help="the warehouse's directory")
    statements = examples()
    failed = failures(parser.parse_args().warehouse / "alab.duckdb", statements)
    told = f"duckdb {duckdb.__version__}: {len(statements)} examples, {len(failed)} failed\n"
    sys.stdout.write("".join(f"{line}\n" for line in failed) + told)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
