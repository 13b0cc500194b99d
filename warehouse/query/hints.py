"""What to tell of a query that fails, or that names what is not there, and what to do next."""

import difflib
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import duckdb

from warehouse.assets import query
from warehouse.catalog import catalog, library, sqldoc
from warehouse.errors import AlabError, from_inside
from warehouse.lake.lake import Lake
from warehouse.query import readonly

#: Comments, strings, quoted names, numbers, words, and what compares or names an argument.
_TOKEN = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|-?\d+(?:\.\d+)?|\w+|:=|=>|<>|!=|==|\S",
    re.DOTALL,
)
_COMPARISONS = ("=", "==", "<>", "!=")

#: What a name in a query can be of, and the table and column where those that there are stand.
_HOMES = {
    "site": ("sites", "site"),
    "label": ("reference_states", "label"),
    "layer": ("sites", "layer"),
    "step": ("steps", "step"),
    "prompt": ("prompts", "prompt_id"),
    "message": ("snapshots", "message_index"),
    "model": ("runs", "model_id"),
    "selector": ("positions", "selector"),
}
#: Columns whose values are such names. An argument of an analysis may have a longer name, such as
#: `positive_label`; `label_column` is about a dataset, which says itself what columns it has.
_COLUMNS = {column: kind for kind, (_, column) in _HOMES.items()}
_COLUMNS |= dict.fromkeys(("run_id", "run_a", "run_b"), "run")
_COLUMNS |= dict.fromkeys(("layer_a", "layer_b"), "layer")
_ARGUMENT = re.compile(
    r"(?:^|_)(label_column|selector|runs?|sites?|labels?|layers?|steps?|prompts?|message|model)"
    r"(?=_|$)"
)
#: Names that mean something although no run has them: a site's other name.
_ALIASES = {"site": {"mlp_act"}}


@contextmanager
def explained(
    lake: Lake, db: duckdb.DuckDBPyConnection, on: Callable = catalog.here
) -> Iterator[None]:
    """Turn DuckDB's errors into one line of what is wrong and one of what to do next.

    What asks the catalog about it is called through `on`.
    """
    try:
        yield
    except duckdb.Error as error:
        if told := from_inside(error):
            raise told from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        line = next((line for line in lines if line.startswith("LINE ")), "")
        if ambiguous := re.search(r"'.*' could be any of \d+ runs: .*", lines[0]):
            raise AlabError(ambiguous[0], "Type more of the id.") from error
        if type(error) is duckdb.Error or lake.address in lines[0]:  # of a file, not of the query
            hint = "What of the warehouse is damaged: alab check"
        else:
            hint = on(_next_move, db, lines)
        raise AlabError(" ".join(filter(None, [lines[0], line and f"({line})"])), hint) from error


def _next_move(db: duckdb.DuckDBPyConnection, lines: list[str]) -> str:
    unknown = r"(?:Function|Table|View) with name \"?([\w.]+)\"? does not exist"
    if match := re.search(unknown, lines[0]):
        return suggestion(db, match[1])
    if match := re.search(r"the dataset has no column '(.*)'; it has: (.*)", lines[0]):
        return f"{_did_you_mean(match[1], match[2].split(', '))}What they hold: label_columns(RUN)"
    if "read-only" in lines[0]:
        return readonly.OWN
    if "Permission denied" in lines[0] or "create directory" in lines[0]:
        return readonly.OUTPUT
    if "pytz" in lines[0] or "pytz" in lines[-1]:
        return "Cast times with a zone, `…::TIMESTAMP`, or: pip install pytz"
    for line, after in pairwise([*lines[1:], ""]):
        if line.startswith(("Candidate", "Did you mean")):
            return f"{line} {after}".strip() if line.endswith(":") else line
    return "What there is: alab sql --list; how one is used: alab sql --describe NAME"


def suggestion(db: duckdb.DuckDBPyConnection, name: str) -> str:
    """Which objects of the catalog have a name like this one."""
    names = [row[0] for row in db.execute("SELECT name FROM help").fetchall()]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}See them all: alab sql --list"


def about(db: duckdb.DuckDBPyConnection, sql: str, empty: bool) -> list[str]:
    """Why rows may be missing: damaged runs, and names in the query that nothing has.

    `empty` says that the query gave none.
    """
    left_out = "is damaged, it is left out: alab check"
    hints = [f"the metadata of {run_id} {left_out}" for run_id in catalog.damaged(db)]
    runs = [run_id for run_id, _ in library.newest_first(db)]
    if not runs:
        return hints + ["the warehouse has no runs yet; capture one: alab capture SCENARIO"] * empty
    names = list(dict.fromkeys(names_in(sql)))
    meant: list[str] = []
    for kind, value, is_column in names:
        if kind == "run" and isinstance(value, str):
            run_id = value if is_column or value in runs else _resolved(db, value)
            if run_id is not None and run_id in runs:
                meant.append(run_id)
            else:
                hints.append(_about_run(db, value, is_column, runs))
    given = {"few": bool(meant), "empty": empty}
    for kind, value, _ in names:
        hints += _about_name(db, kind, value, meant or runs, **given) if kind != "run" else []
    return list(dict.fromkeys(hints))


def _resolved(db: duckdb.DuckDBPyConnection, name: str) -> str | None:
    """The id of the run that a name in SQL stands for; None where it is that of several."""
    try:
        row = db.execute("SELECT resolve_run(?::VARCHAR)", [name]).fetchone()
    except duckdb.Error:
        return None
    return row[0] if row else None


def _about_run(db: duckdb.DuckDBPyConnection, name: str, is_column: bool, runs: list[str]) -> str:
    longer = [run_id for run_id in runs if name and run_id.startswith(name)]
    if is_column and _resolved(db, name) in runs:
        call = f"resolve_run({library.literal(name)})"
        return f"a column has whole run ids, none is {name!r}; write {call}"
    return f"there is no run {name!r}; the newest are: {', '.join((longer or runs)[:5])}"


def _about_name(
    db: duckdb.DuckDBPyConnection,
    kind: str,
    value: str | float,
    runs: list[str],
    *,
    few: bool,
    empty: bool,
) -> list[str]:
    """Nothing where some run has the name, else a hint."""
    if kind in ("label", "label_column"):
        if few and db.execute(query("datasets"), {"runs": runs}).fetchall():
            # Of a column that is not there the query itself says so.
            return _about_label(db, str(value), runs) if kind == "label" and empty else []
        if kind == "label_column":
            return [f"{runs[0]} is no dataset run, it has no columns"] if few else []
    known = _known(db, kind, runs)
    if value in known or value in _ALIASES.get(kind, ()):
        return []
    where = f" in {runs[0]}" if few and len(runs) == 1 else ""
    if not known:
        lacking = f"there is no {kind} {value!r}{where}: it has no reference states"
        return [lacking] if kind == "label" and few else []
    if isinstance(value, str) != isinstance(known[0], str):
        return []  # compared with something else of that name
    meant = _did_you_mean(value, known).replace("D", "d", 1) if isinstance(value, str) else ""
    return [f"there is no {kind} {value!r}{where}; {meant}the {kind}s are: {_listed(known)}"]


def _about_label(db: duckdb.DuckDBPyConnection, value: str, runs: list[str]) -> list[str]:
    """Nothing where some column of a dataset has the label, else a hint with labels like it."""
    rows = db.execute(query("labels"), {"runs": runs}).fetchall()
    known = list(dict.fromkeys(label for (label,) in rows))
    if value in known:
        return []
    meant = _did_you_mean(value, known)
    return [f"no column of the dataset has the label {value!r}; {meant}See: label_columns(RUN)"]


def _known(db: duckdb.DuckDBPyConnection, kind: str, runs: list[str]) -> list:
    """The names of a kind that some runs have."""
    if kind == "selector":
        rows = db.execute(query("selectors"), {"runs": runs}).fetchall()
    else:
        table, column = _HOMES[kind]
        values = {"table": table, "column": column, "runs": runs}
        rows = db.execute(query("names"), values).fetchall()
    return [row[0] for row in rows if row[0] is not None]


def _did_you_mean(value: str, known: list[str]) -> str:
    """A question for the name that is nearest, with a space after it; empty where none is near.

    >>> _did_you_mean("Mood", ["id", "mood"])
    "Did you mean 'mood'? "
    """
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(value.lower(), lower, n=1)
    return f"Did you mean {lower[close[0]]!r}? " if close else ""


def _listed(values: list) -> str:
    """Names as a list, and numbers as ranges.

    >>> _listed([0, 1, 2, 5]), _listed(["fear", "joy"])
    ('0-2, 5', 'fear, joy')
    """
    if isinstance(values[0], str):
        return ", ".join(values[:20]) + ", …" * (len(values) > 20)
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in spans]
    return ", ".join(texts[:20]) + ", …" * (len(spans) > 20)


def names_in(sql: str) -> Iterator[tuple[str, str | float, bool]]:
    """What a query names, as (kind of the name, value, whether it is compared with a column).

    >>> list(names_in("FROM reference_shift('latest') WHERE label = 'feer' AND layer IN (3, 99)"))
    [('run', 'latest', False), ('label', 'feer', True), ('layer', 3, True), ('layer', 99, True)]
    """
    tokens = [token for token in _TOKEN.findall(sql) if not token.startswith(("--", "/*"))]
    for at, token in enumerate(tokens):
        after = tokens[at + 1] if at + 1 < len(tokens) else ""
        word = token.strip('"').lower()
        if after == "(" and word in _arguments():
            yield from _in_call(_arguments()[word], tokens, at + 2)
        if word in _COLUMNS and not token.startswith("'"):
            for value in _compared(tokens, at):
                yield _COLUMNS[word], value, True


@functools.cache
def _arguments() -> dict[str, list[str]]:
    """Names of the arguments of each analysis and macro; `a` and `b` beside a column are labels."""
    macros = [item for item in sqldoc.library() if item.kind in ("analysis", "macro")]
    return {
        item.name: [
            f"label_{name}" if name in "ab" and "label_column" in item.arguments else name
            for name in item.arguments
        ]
        for item in macros
    }


def _in_call(
    arguments: list[str], tokens: list[str], start: int
) -> Iterator[tuple[str, str | float, bool]]:
    """Literals among the arguments of a call, of which the first token is given."""
    for position, (name, inside) in enumerate(_split(tokens, start)):
        name = name or (arguments[position] if position < len(arguments) else "")
        kind = _ARGUMENT.search(name)
        values = [_value(token) for token in inside if token not in ("[", "]", ",")]
        literals = [value for value in values if value is not None]
        if kind and len(literals) == len(values):
            yield from ((kind[1].rstrip("s"), value, False) for value in literals)


def _split(tokens: list[str], start: int) -> Iterator[tuple[str, list[str]]]:
    """The arguments of a call, each with its name where it is given one."""
    depth = 0
    part: list[str] = []
    for token in tokens[start:]:
        if depth == 0 and token in (",", ")"):
            named = len(part) > 2 and part[1] in (":=", "=>")
            yield (part[0].lower(), part[2:]) if named else ("", part)
            part = []
            if token == ")":
                return
            continue
        depth += (token in "([{") - (token in ")]}")
        part.append(token)


def _compared(tokens: list[str], at: int) -> list[str | float]:
    """Literals that a column is compared with."""
    sign, after = [*tokens[at + 1 : at + 3], "", ""][:2]
    if sign in _COMPARISONS:
        values = [_value(after)]
    elif sign.lower() == "in" and after in ("(", "["):
        end = next((i for i in range(at + 3, len(tokens)) if tokens[i] in (")", "]")), len(tokens))
        values = [_value(token) for token in tokens[at + 3 : end] if token != ","]
    else:
        # A column may stand after its table.
        before = at - 2 if at > 1 and tokens[at - 1] == "." else at
        is_compared = before > 1 and tokens[before - 1] in _COMPARISONS
        values = [_value(tokens[before - 2])] if is_compared else []
    return [value for value in values if value is not None]


def _value(token: str) -> str | float | None:
    """What a literal says; None for anything else."""
    if token.startswith("'"):
        return token[1:-1].replace("''", "'")
    return float(token) if "." in token else int(token) if re.fullmatch(r"-?\d+", token) else None
