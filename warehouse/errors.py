"""The one exception that alab raises on purpose, and the words for those from below."""

import re


class AlabError(Exception):
    """A request that could not be met, told in words a user can act on.

    Attributes:
        message: what is wrong and where (file, key, run id).
        hint: what to do next; may be empty.
        exit_code: 1 when the request could not be met, 2 for wrong usage or an invalid scenario.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 1):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class NotThereError(AlabError):
    """What is named does not exist: a run, a layer, a page."""


class ConflictError(AlabError):
    """What is named is in another state than the request needs: in use, ended, there already."""


class DefectError(AlabError):
    """Something went wrong that is no user's fault: a defect of alab."""


#: The kinds of errors by name, as other processes are told; a kind before what it is one of.
KINDS: dict[str, type[AlabError]] = {
    kind.__name__: kind for kind in (NotThereError, ConflictError, DefectError, AlabError)
}


def first_line(error: Exception) -> str:
    r"""What an exception says, in one line; its name where it says nothing.

    >>> first_line(ValueError("short\nand long")), first_line(MemoryError())
    ('short', 'MemoryError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def from_inside(error: Exception) -> AlabError | None:
    """The one that a library's error is about: reading a lake at a URL, or a file that is gone.

    Who had begun to read when another process deleted a run, or some of its data, meets the latter.
    """
    if match := re.search(r"^(?:[\w.]+\.)?AlabError: (.*)\n?(.*)", str(error), re.MULTILINE):
        return AlabError(match[1], match[2].strip())
    path = re.search(r"""[^"'\n]*/run=([^/"'\n]+)/[^"'\n]*""", str(error))
    missed = re.search("no such file|no files found", str(error), re.IGNORECASE)
    if path is None or not (missed or isinstance(error, FileNotFoundError)):
        return None
    return NotThereError(
        f"there is no {path[0].strip()}",
        f"{path[1]} or some of its data was deleted meanwhile, or is damaged: alab check",
    )


def explain(error: Exception) -> AlabError | None:
    """An exception as an error for the user: what was asked cannot be done; None for a defect.

    >>> print(explain(FileNotFoundError(2, "No such file or directory", "lab/lake/x.parquet")))
    cannot use lab/lake/x.parquet: No such file or directory
    What of the warehouse is damaged: alab check
    """
    if isinstance(error, AlabError):
        return error
    if told := from_inside(error):
        return told
    library = type(error).__module__.lstrip("_").split(".")[0]
    if isinstance(error, MemoryError):
        return AlabError("there is not enough memory for this", "Ask for less at once.")
    hint = "What of the warehouse is damaged: alab check"
    if isinstance(error, OSError) and error.errno:
        what = error.strerror or str(error)
        if error.filename:
            what = f"cannot use {error.filename}: {error.strerror}"
        return AlabError(what, hint if ".parquet" in what or ".duckdb" in what else "")
    if isinstance(error, UnicodeError):
        return AlabError(f"this is not text in UTF-8: {error}", exit_code=2)
    if isinstance(error, OSError) or library in ("duckdb", "pyarrow"):
        return AlabError(first_line(error), hint)
    return None
