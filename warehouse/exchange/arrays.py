"""Named arrays in files, a block of rows at a time: `.npz`, folders of `.npy`, and `.safetensors`.

Both directions stream, so that an array may be larger than memory; one that is stored column by
column is the exception, and is read whole. Reading trusts nothing: no pickles, no names that leave
their folder, no array that is shorter or longer than its header says.
"""

import json
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from warehouse.errors import AlabError

#: How each format spells a file of arrays; a folder for npy.
SUFFIXES = {"npz": ".npz", "npy": "", "safetensors": ".safetensors"}

_SAFETENSORS = {"float16": "F16", "float32": "F32", "float64": "F64"}
#: Types of safetensors that hold no floating-point numbers, and bytes of each value.
_OTHERS = (
    dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)
    | dict.fromkeys(("U16", "I16"), 2)
    | dict.fromkeys(("U32", "I32"), 4)
    | dict.fromkeys(("U64", "I64", "C64"), 8)
)
_MAX_HEADER = 100 << 20
#: What reading the head of a damaged file raises; NotImplementedError is a RuntimeError.
_DAMAGE = (OSError, ValueError, TypeError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile)
#: Bytes of an array that is stored column by column, which has to be read whole.
_MAX_BY_COLUMN = 1 << 30


@dataclass(frozen=True)
class Spec:
    """Type and shape of an array; of a bfloat16, which numpy has not, `dtype` is its two bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    is_bfloat16: bool = False
    by_column: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the values, bytes."""
        return self.dtype.itemsize * prod(self.shape)


class ArrayWriter:
    """Writes the arrays of one file, each as a stream of values.

    Args:
        path: the file without its suffix.
        fmt: npz, npy or safetensors.
        specs: every array that will be written, by key such as `layer_00/hidden_in`.
    """

    def __init__(self, path: Path, fmt: str, specs: dict[str, Spec]):
        self.path = path.with_name(path.name + SUFFIXES[fmt])
        self._specs = dict(specs)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(self.path, "w") if fmt == "npz" else None
        self._file = self.path.open("wb") if fmt == "safetensors" else None
        if self._file:
            self._offsets = _write_header(self._file, specs)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (self._zip, self._file):
            if file:
                file.close()

    @contextmanager
    def array(self, key: str) -> Iterator[IO[bytes]]:
        """A stream for one array's values, in C order and little endian; each is written once."""
        spec = self._specs.pop(key)
        if self._file:
            self._file.seek(self._offsets[key])
            yield self._file
            return
        if self._zip:
            stream = self._zip.open(f"{key}.npy", "w", force_zip64=True)
        else:
            path = self.path / f"{key}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("wb")
        with stream:
            header = {"descr": spec.dtype.str, "fortran_order": False, "shape": spec.shape}
            npy.write_array_header_1_0(stream, header)
            yield stream


def _write_header(file: IO[bytes], specs: dict[str, Spec]) -> dict[str, int]:
    """Write the header of a safetensors file; gives where the values of each array begin."""
    ends = dict(zip(specs, accumulate(spec.nbytes for spec in specs.values()), strict=True))
    starts = {key: ends[key] - spec.nbytes for key, spec in specs.items()}
    header = {
        key: {"dtype": _SAFETENSORS[spec.dtype.name], "shape": list(spec.shape)}
        | {"data_offsets": [starts[key], ends[key]]}
        for key, spec in specs.items()
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(8 + len(text) + max(ends.values(), default=0))
    return {key: 8 + len(text) + start for key, start in starts.items()}


class ArrayReader:
    """Reads the arrays of one file (or folder of `.npy`) by blocks of values.

    Attributes:
        specs: type and shape of each array of floating-point numbers, by key.
        others: type of each other array, which is left alone, by key.

    Raises:
        AlabError: the file is damaged, or holds what an array file has no business to hold.
    """

    def __init__(self, path: Path):
        self.path = path
        self.specs: dict[str, Spec] = {}
        self.others: dict[str, str] = {}
        self._starts: dict[str, int] = {}
        try:
            if path.is_dir():
                self._open_folder()
            elif path.suffix == ".npz":
                self._open_zip()
            else:
                self._open_safetensors()
        except _DAMAGE as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> AlabError:
        return AlabError(f"cannot import {self.path}: {why}", "Nothing was written.")

    def _add(self, key: str, spec: Spec, start: int, size: int) -> None:
        if key.startswith("/") or ".." in key or "\\" in key:
            raise ValueError(f"the key {key!r} leaves its folder")
        if spec.nbytes != size:
            needs = f"its shape {spec.shape} needs {spec.nbytes}"
            raise ValueError(f"{key} has {size} bytes of values where {needs}")
        if spec.dtype.kind == "f" or spec.is_bfloat16:
            self.specs[key], self._starts[key] = spec, start
        else:
            self.others[key] = str(spec.dtype)

    def _add_npy(self, key: str, file: IO[bytes], size: int) -> None:
        first = npy.read_magic(file) == (1, 0)
        read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{key} holds pickled objects, which are never opened")
        spec = Spec(dtype, shape, by_column=fortran and sum(length > 1 for length in shape) > 1)
        if spec.by_column and spec.nbytes > _MAX_BY_COLUMN:
            large = f"too large to be turned ({spec.nbytes} bytes)"
            raise ValueError(f"{key} is stored column by column and {large}")
        self._add(key, spec, file.tell(), size - file.tell())

    def _open_zip(self) -> None:
        self._zip = zipfile.ZipFile(self.path)
        for info in self._zip.infolist():
            key, npy, rest = info.filename.rpartition(".npy")
            if not npy or rest:
                raise ValueError(f"{info.filename!r} is no array")
            with self._zip.open(info) as file:
                self._add_npy(key, file, info.file_size)

    def _open_folder(self) -> None:
        for path in sorted(self.path.rglob("*.npy")):
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise ValueError(f"{path.name} is a link that leads out of it")
            key = path.relative_to(self.path).as_posix()[:-4]
            with path.open("rb") as file:
                self._add_npy(key, file, path.stat().st_size)

    def _open_safetensors(self) -> None:
        with self.path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise ValueError("its header is longer than safetensors allows")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        names = {name: np.dtype(dtype) for dtype, name in _SAFETENSORS.items()}
        total = self.path.stat().st_size - 8 - length
        for key, entry in header.items():
            first, last = entry["data_offsets"]
            if not 0 <= first <= last <= total:
                raise ValueError(f"{key} lies outside the file")
            given, shape = entry["dtype"], tuple(entry["shape"])
            if any(not isinstance(size, int) or size < 0 for size in shape):
                raise ValueError(f"{key} has the shape {shape}")
            if given in names or given == "BF16":
                spec = Spec(names.get(given, np.dtype("<u2")), shape, is_bfloat16=given == "BF16")
                self._add(key, spec, 8 + length + first, last - first)
            elif given in _OTHERS and prod(shape) * _OTHERS[given] != last - first:
                size = last - first
                raise ValueError(
                    f"{key} has {size} bytes of values, which its shape {shape} does not"
                )
            else:
                self.others[key] = str(given)

    def blocks(self, key: str, values: int) -> Iterator[np.ndarray]:
        """The values of an array in order, at most `values` at a time, flat, as float32."""
        spec = self.specs[key]
        left = prod(spec.shape)
        most = left if spec.by_column else values
        try:
            with self._stream(key) as file:
                while left:
                    count = min(most, left)
                    data = file.read(count * spec.dtype.itemsize)
                    if len(data) != count * spec.dtype.itemsize:
                        raise ValueError(f"{key} ends early")
                    left -= count
                    block = _floats(key, data, spec)
                    if spec.by_column:
                        block = block.reshape(spec.shape, order="F").reshape(-1)
                    yield from (block[n : n + values] for n in range(0, count, values))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(str(error)) from error

    @contextmanager
    def _stream(self, key: str) -> Iterator[IO[bytes]]:
        if self.path.suffix == ".npz":
            with self._zip.open(f"{key}.npy") as file:
                file.read(self._starts[key])
                yield file
            return
        with (self.path / f"{key}.npy" if self.path.is_dir() else self.path).open("rb") as file:
            file.seek(self._starts[key])
            yield file

    def vector(self, key: str) -> np.ndarray:
        """The last row of an array whose last axis is the vector."""
        width = self.specs[key].shape[-1]
        last = deque(self.blocks(key, width * 1024), maxlen=1)
        if not last:
            raise self._damaged(f"{key} is empty")
        return last[0][-width:]


def _floats(key: str, data: bytes, spec: Spec) -> np.ndarray:
    """Values as float32; ValueError where a finite one would become infinite."""
    values = np.frombuffer(data, spec.dtype)
    if spec.is_bfloat16:  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        short = values.astype(np.float32)
    if spec.dtype.itemsize > short.itemsize and (np.isinf(short) & np.isfinite(values)).any():
        beyond = f"{spec.dtype} values beyond the range of float32, which alab keeps"
        raise ValueError(f"{key} has {beyond}")
    return short
