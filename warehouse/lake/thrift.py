"""Parquet's headers by the names that the format gives their fields, in Thrift's compact protocol.

The structs are those of `parquet.thrift` in https://github.com/apache/parquet-format, without the
fields that we do not write.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

#: Type codes of the compact protocol.
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12


class Type(IntEnum):
    """How values are stored."""

    INT32 = 1
    FLOAT = 4
    BYTE_ARRAY = 6


class ConvertedType(IntEnum):
    """What stored values mean."""

    UTF8 = 0
    LIST = 3


class Repetition(IntEnum):
    """How often a field is there."""

    REQUIRED = 0
    OPTIONAL = 1
    REPEATED = 2


class Encoding(IntEnum):
    """How values become bytes."""

    PLAIN = 0
    RLE = 3
    BYTE_STREAM_SPLIT = 9


#: The codec of zstd, and the type of a page with data, first version.
ZSTD, DATA_PAGE = 6, 0


class Struct:
    """A kind of struct; a call gives the bytes of one.

    Args:
        fields: by name, in the order of their ids, (id, type) or (id, LIST, type of an element).
    """

    def __init__(self, **fields: tuple[int, ...]):
        self._fields = fields

    def __call__(self, **values: Any) -> bytes:
        """The bytes of a struct; a field without a value, or None, is left out."""
        out, last = bytearray(), 0
        for name, (number, kind, *element) in self._fields.items():
            if (value := values.pop(name, None)) is not None:
                out.append(number - last << 4 | kind)
                out += _encoded(value, kind, *element)
                last = number
        if values:
            raise TypeError(f"no such fields: {', '.join(values)}")
        return bytes(out) + b"\0"


def _encoded(value: Any, kind: int, element: int = 0) -> bytes:
    if kind == STRUCT:
        return value
    if kind == LIST:
        return _list(value, element)
    if kind == BINARY:
        data = value.encode() if isinstance(value, str) else value
        return varint(len(data)) + data
    return varint(value << 1 ^ value >> 63)  # zigzag: small numbers of either sign are short


def _list(items: Sequence[Any], kind: int) -> bytes:
    count = len(items)
    head = bytes((count << 4 | kind,)) if count < 15 else bytes((0xF0 | kind,)) + varint(count)
    return head + b"".join(_encoded(item, kind) for item in items)


def varint(value: int) -> bytes:
    """A number in groups of seven bits, lowest first; all bytes but the last have the top bit."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


Statistics = Struct(null_count=(3, I64), max_value=(5, BINARY), min_value=(6, BINARY))
SchemaElement = Struct(
    type=(1, I32),
    repetition_type=(3, I32),
    name=(4, BINARY),
    num_children=(5, I32),
    converted_type=(6, I32),
)
DataPageHeader = Struct(
    num_values=(1, I32),
    encoding=(2, I32),
    definition_level_encoding=(3, I32),
    repetition_level_encoding=(4, I32),
)
PageHeader = Struct(
    type=(1, I32),
    uncompressed_page_size=(2, I32),
    compressed_page_size=(3, I32),
    data_page_header=(5, STRUCT),
)
ColumnMetaData = Struct(
    type=(1, I32),
    encodings=(2, LIST, I32),
    path_in_schema=(3, LIST, BINARY),
    codec=(4, I32),
    num_values=(5, I64),
    total_uncompressed_size=(6, I64),
    total_compressed_size=(7, I64),
    data_page_offset=(9, I64),
    statistics=(12, STRUCT),
)
ColumnChunk = Struct(file_offset=(2, I64), meta_data=(3, STRUCT))
RowGroup = Struct(
    columns=(1, LIST, STRUCT),
    total_byte_size=(2, I64),
    num_rows=(3, I64),
    file_offset=(5, I64),
    total_compressed_size=(6, I64),
)
KeyValue = Struct(key=(1, BINARY), value=(2, BINARY))
TypeDefinedOrder = Struct()
ColumnOrder = Struct(type_order=(1, STRUCT))
FileMetaData = Struct(
    version=(1, I32),
    schema=(2, LIST, STRUCT),
    num_rows=(3, I64),
    row_groups=(4, LIST, STRUCT),
    key_value_metadata=(5, LIST, STRUCT),
    created_by=(6, BINARY),
    column_orders=(7, LIST, STRUCT),
)
