"""Recognises statements that write, so that `alab sql` can say at once what to do instead.

This is for the message. It cannot be for safety: SQL has too many ways to write, and new ones come;
what holds is that the thread of a query has no right to (`warehouse.query.landlock`).
"""

import re

import duckdb

from warehouse.errors import AlabError

OUTPUT = "alab sql only reads. To write the rows to a file: alab sql QUERY -o FILE"
OWN = (
    "alab sql only reads. "
    "To keep tables or views of your own, open alab.duckdb in the DuckDB shell."
)
ATTACH = "alab sql only reads. Attach it for reading: ATTACH 'FILE' AS name (READ_ONLY)"
INSTALL = "alab sql only reads. Install extensions in the DuckDB shell."
SETTINGS = "alab sql only reads, and its settings of files stay as they are."

#: Settings that decide where DuckDB writes, what it loads, or what it may do.
_SETTING = (
    r"temp_directory|home_directory|secret_directory|profil\w*_output|\w*logging\w*|log_query_path|\w*extension\w*|"
    r"allow\w*|enable_external_access|lock_configuration|access_mode|default_secret_storage"
)
_SCOPE = r"(?:global\s+|session\s+|local\s+)?"
#: What a statement looks like in lower case, its comments gone and its strings empty; and what to
#: do instead. `copy` and the like may be names of columns too: they count where a statement can
#: begin.
_START = r"(?:^|[(;]|\bas\b|\bas (?:not )?materialized|\banalyze|\bexplain|\))\s*"
_WRITING = (
    (re.compile(_START + r"(copy)\b(?!\s*[,.)=]|\s+(?:from|order)\b).*\bto\b", re.DOTALL), OUTPUT),
    (re.compile(_START + r"(export)\s+database\b"), OUTPUT),
    (re.compile(_START + r"(copy)\s+from\s+database\b"), OUTPUT),
    (re.compile(_START + r"(import)\s+database\b"), OWN),
    (
        re.compile(
            r"^(?:explain\s+(?:analyze\s+)?)?(attach)\b(?!.*\bread_only\b(?!\s*=?\s*(?:false|0|'')))"
        ),
        ATTACH,
    ),
    (re.compile(_START + r"((?:force\s+)?install)\s+\w"), INSTALL),
    (re.compile(rf"^(?:set|reset|pragma)\s+{_SCOPE}({_SETTING})\b"), SETTINGS),
    (re.compile(r"\b(enable_logging|write_log)\s*\("), SETTINGS),
    (re.compile(r"^(create\s+(?:or\s+replace\s+)?persistent\s+secret)\b"), OWN),
)


def refuse(sql: str) -> None:
    """Refuse what is known to write.

    Raises:
        UnicodeEncodeError: the query is no text for DuckDB.
        AlabError: a statement writes a file, or changes where files are written.
    """
    sql.encode()
    try:
        statements = [statement.query for statement in duckdb.extract_statements(sql)]
    except duckdb.Error:
        return  # no SQL at all, which running it explains better
    for text in map(_plain, statements):
        for pattern, hint in _WRITING:
            if match := pattern.search(text):
                writes = " ".join(match[1].upper().split())
                raise AlabError(f"{writes} would write, or change what is written", hint)


def _plain(sql: str) -> str:
    r"""A statement in lower case, without comments, and with nothing in its strings.

    >>> _plain("SELECT 'copy x' -- to y\nFROM t")
    "select ''  from t"
    """
    tokens, data = duckdb.tokenize(sql), sql.encode()
    ends = [*(start for start, _ in tokens[1:]), len(data)]
    parts = []
    for (start, kind), end in zip(tokens, ends, strict=True):
        text = data[start:end].decode(errors="replace")
        if kind == duckdb.token_type.comment:
            text = " "
        elif kind == duckdb.token_type.string_const:
            text = "'' "
        parts.append(text.lower())
    return "".join(parts).strip()
