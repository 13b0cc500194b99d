"""Names of states in addresses: `states_by_ref` of the SQL library says what they mean."""

import re

import duckdb

from warehouse.catalog.runs import find_run

#: The run of a ref; after `latest:` a scenario's name, unless what stands there names a state.
_RUN = re.compile(r"latest:(?!(?:\d+|reference|example|row(?:@[^:]*)?)(?::|$))[^:]+|[^:]*")


def whole(db: duckdb.DuckDBPyConnection, ref: str) -> str:
    """The ref with the whole id of its run, so that it means the same tomorrow.

    Raises:
        AlabError: no run, or more than one, answers to its name.
    """
    match = _RUN.match(ref)
    assert match is not None  # it matches the empty text
    return find_run(db, match[0]) + ref[match.end() :]


def letter(place: int) -> str:
    """What the state at a place of a comparison is called.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', 'AA')
    """
    text = ""
    while place >= 0:
        place, rest = divmod(place, 26)
        text = chr(65 + rest) + text
        place -= 1
    return text


def words(row: dict) -> str:
    """Which state of its run a row of `compare_refs` is about."""
    kind, number = row["kind"], row["number"]
    if -1 in (number, row["prompt"]):  # further than numbers go: as it was written
        return row["ref"].removeprefix(f"{row['run_id']}:")
    if kind == "row":
        return f"row {row['row_id']}" + (
            "" if row["selector"] == "last" else f", {row['selector']}"
        )
    if kind in ("reference", "example"):
        return f"{kind} {row['label'] if kind == 'reference' else number}"
    text = {
        "initial": "before the reply",
        "final": "end of the reply",
        "snapshot": f"after message {number}",
        "token": f"token {number}",
    }[kind]
    return f"conversation {row['prompt']}, {text}" if row["prompt"] else text
