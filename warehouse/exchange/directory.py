"""A directory of arrays that is being imported, checked before anything in it is believed."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from warehouse.errors import AlabError
from warehouse.exchange.arrays import SUFFIXES, ArrayReader
from warehouse.exchange.counts import Counts, Place
from warehouse.vocabulary import site_of

_KEY = re.compile(r"(?:layer_(\d{1,4})/)?(\w+)")


def _place(key: str) -> Place | None:
    """The (layer or None, site) of an array; None where it is no site.

    >>> _place("layer_03/mlp_act"), _place("logits"), _place("layer_03/attn_weights")
    ((3, 'mlp_down_in'), (None, 'logits'), (3, 'attention'))
    """
    match = _KEY.fullmatch(key)
    site = match and site_of(match[2])
    if not match or not site or (match[1] is None) != (site.dataset == "outputs"):
        return None
    if site.name == "attention" and match[2] != site.key:  # may be what the heads gave
        return None
    return (None if match[1] is None else int(match[1])), site.name


class ImportedPass:
    """One forward pass of the directory.

    Attributes:
        row: what steps.json says about it.
        path: its file of arrays.
        tokens: tokens that it read.
        end: tokens of the sequence after it; 0 where the pass does not say.
        keys: key of the array of each (layer or None, site).
        widths: width of each (layer or None, site) but attention.
        left_out: key of each array that is no site, and why.

    Raises:
        AlabError: its arrays are not shaped as those of one pass.
    """

    def __init__(self, row: dict, path: Path, reader: ArrayReader):
        self.row, self.path = row, path
        self.prompt_id, self.step = int(row.get("prompt_id") or 0), int(row["step"])
        self.keys: dict[Place, str] = {}
        self.widths: dict[Place, int] = {}
        other = "it holds {}, not floating-point numbers".format
        self.left_out = {key: other(dtype) for key, dtype in reader.others.items()}
        tokens, ends = set(), set()
        for key, spec in reader.specs.items():
            if (place := _place(key)) is None:
                self.left_out[key] = "alab has no place for it"
                continue
            self._add(place, key, spec.shape)
            tokens.add(spec.shape[-2])
            if place[1] == "attention":
                ends.add(spec.shape[-1])
            else:
                self.widths[place] = spec.shape[-1]
        if not self.keys:
            others = [f"{key}: {why}" for key, why in sorted(self.left_out.items())[:3]]
            why = f"no array in it is a site ({'; '.join(others) or 'it is empty'})"
            raise self._refused(why, "Nothing was written.")
        if len(tokens) != 1 or len(ends) > 1:
            sizes = f"{sorted(tokens)} tokens and {sorted(ends)} keys"
            raise self._refused(f"its arrays are of {sizes}")
        (self.tokens,) = tokens
        self.end = int(row.get("seq_len") or next(iter(ends), 0))
        if ends and self.end != next(iter(ends)):
            raise self._refused(f"attention covers {ends} keys of a sequence of {self.end} tokens")

    def _add(self, place: Place, key: str, shape: tuple[int, ...]) -> None:
        """Take an array of a site whose shape is (1, tokens, width) or, of attention, one more."""
        layer, site = place
        rank = 3 if site == "attention" else 2
        if len(shape) < rank or any(length != 1 for length in shape[:-rank]) or 0 in shape:
            expected = "(1, heads, tokens, keys)" if rank == 3 else "(1, tokens, width)"
            raise self._refused(f"{key} is shaped {shape}, expected {expected}")
        if place in self.keys:
            where = "" if layer is None else f" of layer {layer}"
            twice = f"{self.keys[place]} and {key} are both {site}{where}"
            raise self._refused(twice, "Leave one of them; nothing was written.")
        self.keys[place] = key

    def _refused(self, why: str, hint: str = "") -> AlabError:
        return AlabError(f"cannot import {self.path}: {why}", hint)

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
        self.passes = [ImportedPass(row, path, self.reader(path)) for row, path in self._files()]
        if not self.passes:
            files = "tensors/step_000.npz, .safetensors or folder of .npy files"
            raise self.refused(f"it has no file {files}")
        self.passes.sort(key=lambda one: (one.prompt_id, one.step))
        self._place_passes()
        self.widths = self._common_widths()
        self.layers = sorted({layer for layer, _ in self.passes[0].keys if layer is not None})
        #: Of what is written.
        self.counts = Counts(self.text("store_dtype") or self._store_dtype())

    def _place_passes(self) -> None:
        """Number the tokens of passes that do not say where in their sequence they end."""
        for one, after in pairwise(self.passes):
            if (one.prompt_id, one.step) == (after.prompt_id, after.step):
                raise self.refused(f"step {one.step} of prompt {one.prompt_id} is there twice")
        end = 0
        for one in self.passes:
            end = end if one.step else 0
            one.end = end = one.end or end + one.tokens
            if one.first < 0:
                sizes = f"{one.tokens} tokens in a sequence of {one.end}"
                raise self.refused(f"step {one.step} has {sizes}")

    def _common_widths(self) -> dict[Place, int]:
        """Width of each site but attention, which all passes share."""
        widths: dict[Place, int] = {}
        for one in self.passes:
            for place, width in one.widths.items():
                if widths.setdefault(place, width) != width:
                    key, before = one.keys[place], widths[place]
                    raise self.refused(f"{key} is {width} wide in step {one.step}, {before} before")
            if odd := one.keys.keys() ^ self.passes[0].keys.keys():
                layer, site = next(iter(odd))
                raise self.refused(f"some passes have {site} of layer {layer} and others have not")
        return widths

    def prompts(self) -> dict[int, list[ImportedPass]]:
        """The passes of each prompt, in their order."""
        groups = groupby(self.passes, key=lambda one: one.prompt_id)
        return {prompt_id: list(passes) for prompt_id, passes in groups}

    def _store_dtype(self) -> str:
        """The precision that all arrays are in; float32 where they differ."""
        specs = self.reader(self.passes[0].path).specs.values()
        dtypes = {"bfloat16" if spec.is_bfloat16 else spec.dtype.name for spec in specs}
        return dtypes.pop() if len(dtypes) == 1 and dtypes <= {"float16", "bfloat16"} else "float32"

    def text(self, *keys: str) -> str | None:
        """What run.json says under the first of some keys that has a string."""
        values = map(self.record.get, keys)
        return next((value for value in values if isinstance(value, str)), None)

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
        return [] if value is None else self._objects(value, f"{name} is")

    def _objects(self, value: Any, what: str) -> list[dict]:
        if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
            raise self.refused(f"{what} no list of objects")
        return value

    @lru_cache(maxsize=128)  # noqa: B019  lives as long as one import
    def reader(self, path: Path) -> ArrayReader:
        """Reader of a file of arrays."""
        return ArrayReader(path)

    def find(self, base: str, stem: str) -> Path | None:
        """The file of arrays with this name, in whichever format."""
        paths = (self.inside(base, stem + suffix) for suffix in SUFFIXES.values())
        return next((path for path in paths if path.exists()), None)

    def _files(self) -> Iterator[tuple[dict, Path]]:
        rows = self.rows("steps.json")
        for number, row in enumerate(rows):
            step = row.get("step", row.get("index", number))
            if not isinstance(step, int) or not 0 <= step < 2**31:
                raise self.refused(f"steps.json has the step {step!r}")
            row["step"] = step
            file = row.get("file", "")
            if file is None:  # so an export of some steps says of the others
                continue
            stem = f"step_{step:03d}"
            path = self.inside("", file) if file else self.find("tensors", stem)
            if path is not None and path.exists():
                yield row, path
            elif "folders" in self.record:  # else its writer may have listed steps that it left out
                raise self.refused(
                    f"steps.json has step {step}, whose file {file or stem} is missing"
                )
        for path in sorted((self.folder / "tensors").glob("step_*")) if not rows else []:
            if match := re.match(r"step_(\d{1,6})(\.|$)", path.name):
                yield {"step": int(match[1])}, self.inside("tensors", path.name)

    def listed(self, table: str) -> list[dict]:
        """Rows of a metadata table that run.json lists."""
        return self._objects(self.record.get(table) or [], f"run.json has {table} that are")

    def index(self, folder: str, pattern: str) -> list[dict]:
        """What a folder of states holds: the rows of its index.json, else its files by their names.

        The groups of `pattern`, for a name without suffix, become columns. Each row has the `path`
        of its file; rows without a file are left out.
        """
        rows = self.rows(f"{folder}/index.json")
        if not rows and folder in self.folders:
            raise self.refused(f"the folder {folder} is missing or has no index.json")
        for path in sorted((self.folder / folder).glob("*")) if not rows else []:
            stem = path.name if path.is_dir() else path.stem
            if match := re.fullmatch(pattern, stem):
                rows.append(match.groupdict() | {"file": path.name})
        return [row | {"path": self.inside(folder, row["file"])} for row in rows if row.get("file")]
