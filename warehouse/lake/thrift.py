"""Parquet's headers by the names that the format gives their fields, in Thrift's compact protocol.

The structs are those of `parquet.thrift` in https://github.com/apache/parquet-format, without the
fields that we do not write.
"""

import re
from enum import IntEnum
from typing import Any

#: Type codes of the compact protocol.
_CODES = {"i32": 5, "i64": 6, "binary": 8, "list": 9, "struct": 12}


#: How values are stored.
Type = IntEnum("Type", {"INT32": 1, "FLOAT": 4, "BYTE_ARRAY": 6})
#: What stored values mean.
ConvertedType = IntEnum("ConvertedType", {"UTF8": 0, "LIST": 3})
#: How often a field is there.
Repetition = IntEnum("Repetition", {"REQUIRED": 0, "OPTIONAL": 1, "REPEATED": 2})
#: How values become bytes.
Encoding = IntEnum("Encoding", {"PLAIN": 0, "RLE": 3, "BYTE_STREAM_SPLIT": 9})
#: The codec of zstd, and the type of a page with data, first version.
ZSTD, DATA_PAGE = 6, 0


class Struct:
    """A kind of struct; a call gives the bytes of one.

    Args:
        fields: id, type and name of each, by id, such as `2 list<i32> encodings`.
    """

    def __init__(self, fields: str = ""):
        self._fields = {
            name: (int(number), *(_CODES[word] for word in re.findall(r"\w+", kind)))
            for number, kind, name in re.findall(r"(\d+) (\S+) (\w+)", fields)
        }

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
    if kind == _CODES["struct"]:
        return value
    if kind == _CODES["list"]:
        count = len(value)
        head = bytes((min(count, 15) << 4 | element,)) + (varint(count) if count >= 15 else b"")
        return head + b"".join(_encoded(item, element) for item in value)
    if kind == _CODES["binary"]:
        data = value.encode() if isinstance(value, str) else value
        return varint(len(data)) + data
    return varint(value << 1 ^ value >> 63)  # zigzag: small numbers of either sign are short


def varint(value: int) -> bytes:
    """A number in groups of seven bits, lowest first; all bytes but the last have the top bit."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


Statistics = Struct("3 i64 null_count, 5 binary max_value, 6 binary min_value")
SchemaElement = Struct(
    "1 i32 type, 3 i32 repetition_type, 4 binary name, 5 i32 num_children, 6 i32 converted_type"
)
DataPageHeader = Struct(
    "1 i32 num_values, 2 i32 encoding, 3 i32 definition_level_encoding, "
    "4 i32 repetition_level_encoding"
)
PageHeader = Struct(
    "1 i32 type, 2 i32 uncompressed_page_size, 3 i32 compressed_page_size, "
    "5 struct data_page_header"
)
ColumnMetaData = Struct(
    "1 i32 type, 2 list<i32> encodings, 3 list<binary> path_in_schema, 4 i32 codec, "
    "5 i64 num_values, 6 i64 total_uncompressed_size, 7 i64 total_compressed_size, "
    "9 i64 data_page_offset, 12 struct statistics"
)
ColumnChunk = Struct("2 i64 file_offset, 3 struct meta_data")
RowGroup = Struct(
    "1 list<struct> columns, 2 i64 total_byte_size, 3 i64 num_rows, 5 i64 file_offset, "
    "6 i64 total_compressed_size"
)
KeyValue = Struct("1 binary key, 2 binary value")
TypeDefinedOrder = Struct()
ColumnOrder = Struct("1 struct type_order")
FileMetaData = Struct(
    "1 i32 version, 2 list<struct> schema, 3 i64 num_rows, 4 list<struct> row_groups, "
    "5 list<struct> key_value_metadata, 6 binary created_by, 7 list<struct> column_orders"
)
