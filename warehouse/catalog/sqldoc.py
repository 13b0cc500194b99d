"""Reads the SQL library: the statements of `sql/` with the comments that document them.

A comment block stands directly above its `CREATE` statement. Its first paragraph is the summary;
lines that begin with `@param NAME`, `@column NAME`, `@returns` or `@example` document the parts.
Columns of a table are documented by the comment at the end of their line.

`python -m warehouse.catalog.sqldoc > sql/README.md` writes the same documentation as one page.
"""

import hashlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from warehouse.assets import asset_dir

#: Load order: tables first, then scalar macros, views over the lake, and analyses on top of all
#: three.
FOLDERS = ("tables", "macros", "views", "analyses")

_CREATE = re.compile(
    r"CREATE\s+(?:OR\s+REPLACE\s+)?(?P<kind>TABLE|VIEW|MACRO)\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<name>\w+)"
    r"\s*(?P<args>\([^)]*\))?\s*(?P<table>AS\s+TABLE\b)?",
    re.IGNORECASE,
)
_COLUMN = re.compile(r"^\s+(?P<name>\w+)\s+[A-Z][A-Z\[\] ]*?,?\s*--\s*(?P<doc>.+)$")
_TAG = re.compile(r"^@(?P<tag>param|column|returns|example)\s*(?P<rest>.*)$")


@dataclass
class SqlObject:
    """One object of the SQL library.

    Attributes:
        kind: `table`, `view`, `macro` (scalar) or `analysis` (table macro).
        name: its name in the catalog; names that begin with `_` are private.
        file: path of its file below `sql/`.
        statement: the CREATE statement.
        doc: its documentation, summary first.
        params: documentation of each argument, by name.
        columns: documentation of each output column, by name.
        returns: what a scalar macro gives.
        examples: queries that run as they stand.
    """

    kind: str
    name: str
    file: str
    statement: str
    doc: str
    params: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    returns: str = ""
    examples: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The first paragraph of the documentation, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def arguments(self) -> list[str]:
        """Names of a macro's arguments, in order, without their defaults."""
        parts = self._parentheses[1:-1].split(",")
        return [part.split(":=")[0].strip() for part in parts if part.strip()]

    @property
    def signature(self) -> str:
        """How the object is written in a query, defaults of arguments included."""
        return self.name + " ".join(self._parentheses.split())

    @property
    def _parentheses(self) -> str:
        """The arguments of a macro as they stand in its statement; empty for anything else."""
        match = _CREATE.search(self.statement)
        own = match["args"] if match and self.kind in ("macro", "analysis") else None
        return (own or "").replace('"', "")

    @property
    def comment(self) -> str:
        """The whole documentation as one text, the way it is kept in the catalog."""
        parts = [f"argument {name}: {doc}" for name, doc in self.params.items()]
        parts += [f"returns: {self.returns}"] if self.returns else []
        if self.kind != "table":
            parts += [f"column {name}: {doc}" for name, doc in self.columns.items()]
        parts += [f"example: {example}" for example in self.examples]
        return "\n\n".join(filter(None, [self.doc, "\n".join(parts)]))


def parse(text: str, file: str = "") -> list[SqlObject]:
    """Split the text of one SQL file into its documented objects."""
    objects: list[SqlObject] = []
    comment: list[str] = []
    code: list[str] = []
    for line in text.splitlines():
        if not code and line.startswith("--"):
            comment.append(line[2:].removeprefix(" "))
        elif not code and not line.strip():
            comment = []
        else:
            code.append(line)
            if re.sub(r"\s--\s.*$", "", line).rstrip().endswith(";"):
                objects.append(_object("\n".join(code), comment, file))
                comment, code = [], []
    if code:
        raise ValueError(f"{file}: the last statement has no semicolon at the end of its line")
    return objects


def _object(statement: str, comment: list[str], file: str) -> SqlObject:
    match = _CREATE.search(statement)
    if match is None:
        raise ValueError(f"{file}: not a CREATE TABLE, VIEW or MACRO: {statement[:60]!r}")
    kind = "analysis" if match["table"] else match["kind"].lower()
    prose: list[str] = []
    tags: list[tuple[str, list[str]]] = []
    for line in comment:
        if tag := _TAG.match(line):
            tags.append((tag["tag"], [tag["rest"]]))
        else:
            (tags[-1][1] if tags else prose).append(line)
    item = SqlObject(kind, match["name"], file, statement, doc="\n".join(prose).strip())
    for name, lines in tags:
        _store(item, name, lines)
    if kind == "table":
        columns = filter(None, map(_COLUMN.match, statement.splitlines()))
        item.columns = {column["name"]: column["doc"].strip() for column in columns}
    return item


def _store(item: SqlObject, tag: str, lines: list[str]) -> None:
    """File what one tag says under the object."""
    text = " ".join(" ".join(lines).split())
    if tag in ("param", "column"):
        name, _, doc = text.partition(" ")
        (item.params if tag == "param" else item.columns)[name] = doc
    elif tag == "returns":
        item.returns = text
    else:
        item.examples.append("\n".join(lines).strip())


def library(root: Path | None = None) -> list[SqlObject]:
    """Every object of the SQL library in load order, without the generated index of `index.sql`.

    Folders come in the order of `FOLDERS`; within one, an object comes after those that its
    statement uses.
    """
    root = root or asset_dir("sql")
    return [
        item
        for folder in FOLDERS
        for item in _in_order(
            item
            for path in sorted((root / folder).glob("*.sql"))
            for item in parse(path.read_text(encoding="utf-8"), f"{folder}/{path.name}")
        )
    ]


def _in_order(items: Iterable[SqlObject]) -> list[SqlObject]:
    """Sort objects so that each comes after those that it calls, and else stays where it is."""
    by_name = {item.name: item for item in items}
    ordered: dict[str, SqlObject] = {}

    def place(item: SqlObject, above: tuple[str, ...] = ()) -> None:
        if item.name in above:
            raise ValueError(f"{item.file}: {' → '.join([*above, item.name])} call each other")
        for name in re.findall(r"\b(\w+)\(", item.statement):
            if name in by_name and name != item.name and name not in ordered:
                place(by_name[name], (*above, item.name))
        ordered.setdefault(item.name, item)

    for item in by_name.values():
        place(item)
    return list(ordered.values())


def template(name: str, root: Path | None = None) -> str:
    """Text of one of the index's files, whose placeholders the catalog fills."""
    return ((root or asset_dir("sql")) / f"{name}.sql").read_text(encoding="utf-8")


def digest(root: Path | None = None) -> str:
    """A short hash of the whole SQL library: it changes whenever one of its files does."""
    root = root or asset_dir("sql")
    index = (template(name, root) for name in ("index", "index_by_name", "index_at_url"))
    state = hashlib.sha256("".join(index).encode())
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.sql")):
            state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


_TITLES = {"analysis": "Analyses", "macro": "Macros", "view": "Views", "table": "Tables"}
_INTRODUCTION = """# The SQL library

What a warehouse's `alab.duckdb` offers, in `alab sql` and in the plain DuckDB command line alike:
every example here runs in DuckDB 1.2 to 2.0 (alab itself needs 1.5 or newer), but for 1.4.0 and
1.4.1. `from help` lists it there.

An argument that names a run is its id, the beginning of just one id, `latest`, or `latest:NAME`
for the newest run of a scenario; a column holds whole ids: `where run_id = resolve_run('latest')`.
Most analyses take a list of runs: `intra_run(['one', 'another'])`. An argument with `:=` has a
default and is given by name. In an analysis of a run that does not exist there are no rows.

To use a warehouse beside another database: `attach '/full/path/alab.duckdb' as l (read_only)`,
then `use l`, without which tables and views answer, but no macros and analyses. A warehouse that
was copied or moved says so until alab opens it once, or `set variable alab_lake =
'/its/folder/lake'` names its lake.

This page is generated from the comments of the files beside it: `python -m
warehouse.catalog.sqldoc > sql/README.md`
"""


def page() -> str:
    """The documentation of every public object, as Markdown."""
    parts = [_INTRODUCTION]
    for kind, title in _TITLES.items():
        items = [item for item in library() if item.kind == kind and not item.name.startswith("_")]
        items.sort(key=lambda item: item.name)
        parts += [f"## {title}", ", ".join(f"[{item.name}](#{item.name})" for item in items)]
        parts += [_section(item) for item in items]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _section(item: SqlObject) -> str:
    parts = [f'### <a id="{item.name}"></a>`{item.signature}`', item.doc]
    for title, names in (("argument", item.params), ("column", item.columns)):
        if names:
            rows = [
                f"| `{name}` | {doc.replace('|', chr(92) + '|')} |" for name, doc in names.items()
            ]
            parts.append("\n".join([f"| {title} | |", "| --- | --- |", *rows]))
    if item.returns:
        parts.append(f"Gives {item.returns}.")
    if item.examples:
        parts.append("```sql\n" + "\n".join(f"{example};" for example in item.examples) + "\n```")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
