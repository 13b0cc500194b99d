"""A dataset: a table of which each row is a prompt of the run, and what its rows are filled in as.

The table comes from a file, a glob of files, a package or a caller's own table, through a query of
the user's. That query sees the relation `source` alone: files, extensions and settings are out of
its reach. Templates are Jinja's, sandboxed; the values of a row are data, never template.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import pyarrow as pa
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from warehouse import scenario
from warehouse.arrow import for_arrow
from warehouse.errors import AlabError, first_line
from warehouse.extras import needing

#: Names of columns that the lake's own rows have.
RESERVED = ("run_id", "prompt_id")
#: How files are read, by their suffix.
_READERS = {
    ".csv": "read_csv",
    ".tsv": "read_csv",
    ".json": "read_json",
    ".jsonl": "read_json",
    ".ndjson": "read_json",
    ".parquet": "read_parquet",
}
#: What DuckDB takes for more than a character in the name of a file.
_GLOB = re.compile(r"[*?\[]")
#: What is to be done about values that Python has not.
_CAST = "Cast it to text in the query: select … ::VARCHAR as …"
#: Marks around what a field is filled in as: characters that Unicode leaves to private use.
_OPEN, _CLOSE = 0xE000, 0xE800


@dataclass(frozen=True)
class Filled:
    """What one row of a dataset reads.

    Attributes:
        prompt_id: place of the row in the dataset.
        id: its id.
        texts: the text, or the content of each message.
        spans: per field of the template, the text it is in and where there it stands, (text, first
            character, one past the last); of a field that stands in several places, the last.
        error: why the row cannot be read; then there are no texts.
    """

    prompt_id: int
    id: str
    texts: tuple[str, ...] = ()
    spans: dict[str, tuple[int, int, int]] | None = None
    error: str = ""


class Dataset:
    """The rows of a scenario's `prompt.dataset`.

    Attributes:
        labels: an Arrow table with a row per prompt, in the order of `prompt_id`.
        ids: id of each row, as text.
        digest: of the request, the files' bytes and the rows.

    Args:
        request: the scenario's `prompt.dataset`.
        table: the source, where it is a caller's table: Arrow, pandas or polars.

    Raises:
        AlabError: the source is not there or cannot be read, the query fails or gives no rows, a
            column is reserved or nested, ids are missing or stand twice, or a template does not fit
            the columns.
    """

    def __init__(self, request: "scenario.Dataset", table: Any = None):
        self.request = request
        digest = hashlib.sha256(request.model_dump_json().encode())
        self.labels = _rows(request, table, digest)
        _take_down(self.labels, digest)  # a query may give other rows each time, by chance or date
        self.digest = digest.hexdigest()
        self.ids = self._ids()
        if request.group is not None and request.group not in self.labels.column_names:
            raise _lacks(self.labels, "group", request.group)
        _check_fields(self._templates.fields, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fields(self) -> set[str]:
        """Columns that the templates name."""
        return self._templates.fields

    def prompts(self, rows: range | list[int] | None = None) -> Iterator[Filled]:
        """What rows read, in their order; all of them where none are named."""
        chosen = self.labels.select(sorted(self.fields))
        for prompt_id in range(len(self)) if rows is None else rows:
            row_id = self.ids[prompt_id]
            try:
                values = {name: chosen[name][prompt_id].as_py() for name in chosen.column_names}
            except (OverflowError, ValueError) as error:  # such as the year 12026
                yield Filled(prompt_id, row_id, error=f"a field has no value: {first_line(error)}")
            else:
                yield self._templates.fill(prompt_id, row_id, values)

    @cached_property
    def _templates(self) -> "_Templates":
        return _Templates(self.request, self.labels.column_names)

    def _ids(self) -> list[str]:
        if self.request.id is None:
            return [str(n) for n in range(len(self.labels))]
        if self.request.id not in self.labels.column_names:
            raise _lacks(self.labels, "id", self.request.id)
        column = self.labels[self.request.id]
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise _refused(
                f"id: {self.request.id} is NULL in row {row}", "Leave such rows out in the query."
            )
        try:
            ids = [str(value) for value in column.to_pylist()]
        except (OverflowError, ValueError) as error:
            raise _refused(f"id: {self.request.id}: {first_line(error)}", _CAST) from error
        if len(set(ids)) < len(ids):
            first: dict[str, int] = {}
            row, twice = next(
                (n, one) for n, one in enumerate(ids) if first.setdefault(one, n) != n
            )
            raise _refused(
                f"id: {self.request.id} is {twice!r} in row {first[twice]} and in row {row}",
                "Name a column whose values differ, or none: then the id is the row's number.",
            )
        return ids


class _Templates:
    """The templates of a dataset, as they are and with marks around what a field becomes."""

    def __init__(self, request: "scenario.Dataset", columns: list[str]):
        self._environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True
        )
        for name in columns:  # `range` is the column where there is one, not what Jinja calls so
            self._environment.globals.pop(name, None)
        texts = (
            [request.text]
            if request.text is not None
            else [m.content for m in request.messages or []]
        )
        keys = (
            ["text"]
            if request.text is not None
            else [f"messages[{k}].content" for k in range(len(texts))]
        )
        self._sources = list(zip(keys, texts, strict=True))
        trees = [self._parsed(key, text) for key, text in self._sources]
        self.fields = set().union(*map(meta.find_undeclared_variables, trees))
        self._names = sorted(self.fields)
        self._plain = [self._environment.from_string(tree) for tree in trees]
        self._marked = [
            self._environment.from_string(self._with_marks(self._parsed(key, text)))
            for key, text in self._sources
        ]

    def fill(self, prompt_id: int, row_id: str, values: dict[str, Any]) -> Filled:
        """The texts of a row, and where its fields stand in them."""
        if missing := sorted(name for name, value in values.items() if value is None):
            return Filled(prompt_id, row_id, error=f"{missing[0]} is NULL")
        try:
            texts = tuple(template.render(values) for template in self._plain)
            marked = [template.render(values) for template in self._marked]
        except Exception as error:  # whatever a template does with a row's values
            return Filled(prompt_id, row_id, error=f"the template fails: {first_line(error)}")
        if not any(text.strip() for text in texts):
            return Filled(prompt_id, row_id, error="the template gives no words")
        spans: dict[str, tuple[int, int, int]] = {}
        for index, (text, with_marks) in enumerate(zip(texts, marked, strict=True)):
            spans |= {name: (index, *span) for name, span in self._spans(text, with_marks).items()}
        return Filled(prompt_id, row_id, texts, spans)

    def _spans(self, text: str, marked: str) -> dict[str, tuple[int, int]]:
        """Where each field stands in a text; nothing where the marks are not all that differs."""
        opened: dict[int, int] = {}
        spans: dict[str, tuple[int, int]] = {}
        plain: list[str] = []
        for character in marked:
            field = ord(character) - _OPEN
            if 0 <= field < len(self._names):
                opened[field] = len(plain)
            elif 0 <= (field := ord(character) - _CLOSE) < len(self._names):
                spans[self._names[field]] = opened.get(field, len(plain)), len(plain)
            else:
                plain.append(character)
        return spans if "".join(plain) == text else {}

    def _with_marks(self, tree: nodes.Template) -> nodes.Template:
        for output in tree.find_all(nodes.Output):
            parts: list[nodes.Expr] = []
            for node in output.nodes:
                named = {
                    name.name
                    for name in [*node.find_all(nodes.Name), node]
                    if isinstance(name, nodes.Name)
                }
                if len(named & self.fields) == 1 and not isinstance(node, nodes.TemplateData):
                    place = self._names.index(min(named & self.fields))
                    marks = [nodes.TemplateData(chr(start + place)) for start in (_OPEN, _CLOSE)]
                    parts += [marks[0], node, marks[1]]
                else:
                    parts.append(node)
            output.nodes = parts
        return tree

    def _parsed(self, key: str, text: str) -> nodes.Template:
        try:
            return self._environment.parse(text)
        except jinja2.TemplateError as error:
            raise _refused(f"{key} is no template: {first_line(error)}") from error


def _rows(request: "scenario.Dataset", table: Any, digest: Any) -> pa.Table:
    """The rows of a dataset, by one thread: their order is the same every time."""
    with duckdb.connect(config={"threads": 1}) as db:
        try:
            _source(db, request, table, digest).create("source")
        except (OSError, duckdb.Error) as error:
            raise _refused(f"source: cannot read {request.source}: {_why(error)}") from error
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        try:
            answer = db.sql(request.query) if request.query else db.table("source")
            rows = for_arrow(answer, words=True).to_arrow_table() if answer is not None else None
        except duckdb.Error as error:
            raise _refused(
                f"query: {first_line(error)}", "It is DuckDB SQL over the relation source."
            ) from error
    if rows is None:
        raise _refused("query: it is no SELECT", "It is DuckDB SQL over the relation source.")
    if not rows.num_rows:
        raise _refused("query: it gives no rows" if request.query else "source: it has no rows")
    for field in rows.schema:
        if field.name.lower() in RESERVED:
            raise _refused(
                f"a column is called {field.name}, as the lake's own",
                f"Rename it in the query: select {field.name} as …",
            )
        if pa.types.is_nested(field.type) or pa.types.is_interval(field.type):
            kind = "nested type" if pa.types.is_nested(field.type) else "type"
            raise _refused(
                f"the column {field.name} is of the {kind} {field.type}, which no label has",
                "Take it apart in the query, or leave it out.",
            )
    names = [name.lower() for name in rows.column_names]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _refused(f"two columns are called {twice}", "Name them apart in the query.")
    return rows


def _take_down(rows: pa.Table, digest: Any) -> None:
    """Add the names, types and values of rows to a digest."""
    digest.update(str(rows.schema).encode())
    for column in rows.columns:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())  # Python's have no nanoseconds
        elif pa.types.is_date32(column.type):
            column = column.cast(pa.int32())  # Python's end with the year 9999
        for start in range(0, len(column), 1 << 12):
            digest.update(str(column.slice(start, 1 << 12).to_pylist()).encode())


def _source(
    db: duckdb.DuckDBPyConnection, request: "scenario.Dataset", table: Any, digest: Any
) -> duckdb.DuckDBPyRelation:
    if table is not None:
        try:
            db.register("given", table)
            return db.table("given")
        except (duckdb.Error, pa.ArrowException) as error:
            raise _refused(
                f"source: {type(table).__name__} is no table: {first_line(error)}"
            ) from error
    paths = _files(request.source)
    readers = {_READERS.get(_suffix(path)) for path in paths}
    reader = readers.pop() if len(readers) == 1 else None
    if reader is None:
        raise _refused(
            f"source: {request.source} is of no kind that is read, or of several",
            f"Kinds: {', '.join(_READERS)}",
        )
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    names = [_GLOB.sub(r"[\g<0>]", str(path)) for path in paths]
    # Columns by their names, and types by every row: by place and by the first rows are usual.
    every = {} if reader == "read_parquet" else {"sample_size": -1}
    relation: duckdb.DuckDBPyRelation = getattr(db, reader)(names, union_by_name=True, **every)
    return relation


def _why(error: Exception) -> str:
    """What an exception says in a line; of a file of text also where in it, and what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    some = [line for line in lines[:4] if not line.startswith(("Original Line", "Possible"))]
    return ": ".join(some[:2]) if lines and "Line:" in lines[0] else first_line(error)


def _files(source: str | None) -> list[Path]:
    """The files that a source means.

    Raises:
        AlabError: there are none.
    """
    if source is None:
        raise _refused(
            "it has no source", "Name one, or give a table: lab.capture(scenario, source=table)"
        )
    if source.startswith("vega:"):
        return [_vega(source.removeprefix("vega:"))]
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return [path]
        start = Path(path.anchor or ".")
        paths = sorted(p for p in start.glob(str(path.relative_to(path.anchor))) if p.is_file())
    except (OSError, RuntimeError, ValueError, IndexError):  # no name that a file can have
        paths = []
    if not paths:
        raise _refused(
            f"source: there is no file {source}", "It is vega:NAME, a file, or a glob of files."
        )
    return paths


def _vega(name: str) -> Path:
    with needing("datasets", f"vega:{name}"):
        import vega_datasets
    folder = Path(vega_datasets.__file__).parent / "_data"
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in _READERS}
    if name not in files:
        raise _refused(
            f"source: vega-datasets brings no dataset {name!r} with it",
            f"There are: {', '.join(files)}",
        )
    return files[name]


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _check_fields(fields: set[str], labels: pa.Table) -> None:
    if unknown := sorted(fields - set(labels.column_names)):
        raise _lacks(labels, "the template", unknown[0])


def _lacks(labels: pa.Table, what: str, name: str) -> AlabError:
    return _refused(
        f"{what}: the rows have no column {name!r}", f"They have: {', '.join(labels.column_names)}"
    )


def _refused(why: str, hint: str = "") -> AlabError:
    return AlabError(f"prompt.dataset: {why}", hint, 2)
