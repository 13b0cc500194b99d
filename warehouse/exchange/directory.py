"""A directory of arrays that is being imported: what is in it, checked before anything is believed."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from warehouse.errors import AlabError
from warehouse.exchange.arrays import SUFFIXES, ArrayReader
from warehouse.exchange.counts import Counts
from warehouse.exchange.layout import KEYS
from warehouse.vocabulary import SITES

_KEY = re.compile(r"(?:layer_(\d{1,4})/)?(\w+)")
_COLUMNS = {key: column for column, key in KEYS.items() if column in SITES}


class Pass:
    """One forward pass of the directory.

    Attributes:
        row: what steps.json says about it.
        path: its file of arrays.
        tokens: tokens that it read.
        first: position of the first of them.
        keys: key of each (layer or None, column).
        widths: width of each (layer or None, column) but attention.
        left_out: key of each array that is no site, and why.
    """

    def __init__(self, row: dict, path: Path, reader: ArrayReader):
        self.row, self.path = row, path
        self.prompt_id, self.step = int(row.get("prompt_id") or 0), int(row["step"])
        self.keys: dict[tuple[int | None, str], str] = {}
        self.widths: dict[tuple[int | None, str], int] = {}
        self.left_out: dict[str, str] = {
            key: f"it holds {dtype}, not floating-point numbers"
            for key, dtype in reader.others.items()
        }
        tokens, ends = set(), set()
        for key, spec in reader.specs.items():
            match = _KEY.fullmatch(key)
            column = match and _COLUMNS.get(match[2], match[2])
            layer = int(match[1]) if match and match[1] else None
            attention = layer is not None and column == "attn_weights"
            if not attention and column not in (
                ("embeddings", "logits") if layer is None else SITES
            ):
                self.left_out[key] = "alab has no place for it"
                continue
            rank = 3 if attention else 2
            if (
                len(spec.shape) < rank
                or any(length != 1 for length in spec.shape[:-rank])
                or 0 in spec.shape
            ):
                expected = "(1, heads, tokens, keys)" if attention else "(1, tokens, width)"
                raise AlabError(
                    f"cannot import {path}: {key} is shaped {spec.shape}, expected {expected}"
                )
            if (layer, column) in self.keys:
                where = "" if layer is None else f" of layer {layer}"
                twice = f"{self.keys[layer, column]} and {key} are both {column}{where}"
                raise AlabError(
                    f"cannot import {path}: {twice}", "Leave one of them; nothing was written."
                )
            tokens.add(spec.shape[-2])
            if attention:
                ends.add(spec.shape[-1])
            else:
                self.widths[layer, column] = spec.shape[-1]
            self.keys[layer, column] = key
        if not self.keys:
            others = (
                "; ".join(f"{key}: {why}" for key, why in sorted(self.left_out.items())[:3])
                or "it is empty"
            )
            raise AlabError(
                f"cannot import {path}: no array in it is a site ({others})", "Nothing was written."
            )
        if len(tokens) != 1 or len(ends) > 1:
            raise AlabError(
                f"cannot import {path}: its arrays are of {sorted(tokens)} tokens and {sorted(ends)} keys"
            )
        (self.tokens,) = tokens
        self.end = int(row.get("seq_len") or next(iter(ends), 0))
        if ends and self.end != next(iter(ends)):
            raise AlabError(
                f"cannot import {path}: attention covers {ends} keys of a sequence of {self.end} tokens"
            )

    @property
    def kind(self) -> str:
        """Whether it read the prompt or one generated token."""
        return self.row.get("kind") or ("decode" if self.step else "prefill")

    @property
    def first(self) -> int:
        """Position of the first token."""
        return self.end - self.tokens


class Directory:
    """The directory that is being imported, read lazily; every path in it stays in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            raise AlabError(f"there is no directory {folder}")
        record = self.json("run.json")
        self.record: dict = record if isinstance(record, dict) else {}
        #: Folders beside `tensors` that its writer says it has.
        self.folders: list = self.record.get("folders") or []
        self.passes = [Pass(row, path, self.reader(path)) for row, path in self._pass_files()]
        if not self.passes:
            raise self.refused(
                "it has no file tensors/step_000.npz, .safetensors or folder of .npy files"
            )
        self.passes.sort(key=lambda p: (p.prompt_id, p.step))
        end = 0
        for number, one in enumerate(self.passes):
            if number and (one.prompt_id, one.step) == (
                self.passes[number - 1].prompt_id,
                self.passes[number - 1].step,
            ):
                raise self.refused(f"step {one.step} of prompt {one.prompt_id} is there twice")
            end = end if one.step else 0
            one.end = end = one.end or end + one.tokens
            if one.first < 0:
                raise self.refused(
                    f"step {one.step} has {one.tokens} tokens in a sequence of {one.end}"
                )
        self.widths: dict[tuple[int | None, str], int] = {}
        for one in self.passes:
            for at, width in one.widths.items():
                if self.widths.setdefault(at, width) != width:
                    raise self.refused(
                        f"{one.keys[at]} is {width} wide in step {one.step}, {self.widths[at]} before"
                    )
            if one.keys.keys() != self.passes[0].keys.keys():
                odd = next(iter(one.keys.keys() ^ self.passes[0].keys.keys()))
                raise self.refused(
                    f"some passes have {odd[1]} of layer {odd[0]} and others have not"
                )
        self.counts: Counts | None = None  # of what is written
        self.layers = sorted(
            {layer for one in self.passes for layer, _ in one.keys if layer is not None}
        )

    def refused(self, why: str) -> AlabError:
        """The error for something that is wrong in the directory."""
        return AlabError(f"cannot import {self.folder}: {why}", "Nothing was written.")

    def inside(self, base: str, name: object) -> Path:
        """A path that the directory names, refused where it leads out of the directory."""
        if not isinstance(name, str) or not name:
            raise self.refused(f"{name!r} is no file name")
        path = self.folder / base / name
        if ".." in Path(name).parts or not path.resolve().is_relative_to(self.folder.resolve()):
            raise self.refused(f"the path {name!r} leads out of it")
        return path

    def json(self, name: str) -> Any:
        """Content of a JSON file; None where there is none."""
        path = self.inside("", name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise self.refused(f"{name}: {error}") from error

    def rows(self, name: str) -> list[dict]:
        """The objects that a JSON file lists, also where the list is a value of an object."""
        value = self.json(name)
        if isinstance(value, dict):
            value = next((item for item in value.values() if isinstance(item, list)), [])
        if value is not None and not (
            isinstance(value, list) and all(isinstance(row, dict) for row in value)
        ):
            raise self.refused(f"{name} is no list of objects")
        return value or []

    @lru_cache(maxsize=128)  # noqa: B019  lives as long as one import
    def reader(self, path: Path) -> ArrayReader:
        """Reader of a file of arrays."""
        return ArrayReader(path)

    def find(self, base: str, stem: str) -> Path | None:
        """The file of arrays with this name, in whichever format."""
        paths = (self.inside(base, stem + suffix) for suffix in SUFFIXES.values())
        return next((path for path in paths if path.exists()), None)

    def _pass_files(self) -> Iterator[tuple[dict, Path]]:
        rows = self.rows("steps.json")
        for number, row in enumerate(rows):
            step = row.get("step", row.get("index", number))
            if not isinstance(step, int) or not 0 <= step < 2**31:
                raise self.refused(f"steps.json has the step {step!r}")
            row["step"] = step
            if (
                "file" in row and row["file"] is None
            ):  # an export of some steps says so of the others
                continue
            path = (
                self.inside("", row["file"])
                if row.get("file")
                else self.find("tensors", f"step_{step:03d}")
            )
            if path is not None and path.exists():
                yield row, path
            elif "folders" in self.record:  # else its writer may have listed steps that it left out
                raise self.refused(
                    f"steps.json has step {step}, whose file {row['file']} is missing"
                )
        for path in sorted((self.folder / "tensors").glob("step_*")) if not rows else []:
            if match := re.match(r"step_(\d{1,6})(\.|$)", path.name):
                yield {"step": int(match[1])}, self.inside("tensors", path.name)

    def listed(self, table: str) -> list[dict]:
        """Rows of a metadata table that run.json lists."""
        rows = self.record.get(table) or []
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise self.refused(f"run.json has {table} that are no list of objects")
        return rows

    def index(self, folder: str, pattern: str) -> list[dict]:
        """What a folder of states holds: the rows of its index.json, else what its files are called.

        Args:
            folder: its name.
            pattern: expression for a file's name without suffix; its groups become columns.

        Returns:
            Rows, each with the `path` of its file; rows without a file are left out.
        """
        rows = self.rows(f"{folder}/index.json")
        if not rows and folder in self.folders:
            raise self.refused(f"the folder {folder} is missing or has no index.json")
        for path in sorted((self.folder / folder).glob("*")) if not rows else []:
            stem = path.name if path.is_dir() else path.stem
            if match := re.fullmatch(pattern, stem):
                rows.append(match.groupdict() | {"file": path.name})
        for row in rows:
            row["path"] = self.inside(folder, row["file"]) if row.get("file") else None
        return [row for row in rows if row["path"] is not None]
