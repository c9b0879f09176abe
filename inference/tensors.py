"""Tensors of the v2 protocol (Open Inference Protocol): JSON data or little-endian bytes to plain Python cells.

All of KServe's datatypes are read: BOOL, INT8 to INT64, UINT8 to UINT64, FP16, FP32, FP64, BYTES (as text), and BF16
in bytes. A tensor is [n] or [n, k]; one of more dimensions has no rows and columns, and is refused.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from reprlib import repr as short
from typing import Any, TypeGuard

from inference.body import Bounds
from inference.errors import PayloadError

SCALARS = frozenset({float, int, str, bool, type(None)})
"""What a cell may be."""

_FORMATS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_DATATYPES = frozenset([*_FORMATS, "BF16", "BYTES"])


@dataclass(frozen=True, slots=True)
class Tensor:
    """`cells` holds rows * width values, row by row; a tensor of shape [n] has the width 1."""

    name: str
    shape: tuple[int, ...]
    cells: list[Any]

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        return self.shape[1] if len(self.shape) == 2 else 1

    def values(self) -> list[list[Any]]:
        """The cells as rows."""
        width, cells = self.width, self.cells
        return [cells[start : start + width] for start in range(0, len(cells), width)]


def are_tensors(entries: object) -> TypeGuard[list[Any]]:
    """Whether this is a v2 list of tensors (v1 knows "inputs" too, for rows)."""
    return type(entries) is list and bool(entries) and type(entries[0]) is dict and "shape" in entries[0] and "datatype" in entries[0]


def raw_parts(entries: Sequence[Any], tail: bytes) -> list[bytes | None]:
    """Each tensor's part of the bytes behind the JSON object; None for one whose data stands in the JSON.

    PayloadError(bad_binary) unless the sizes stated account for exactly those bytes.
    """
    parts: list[bytes | None] = []
    start = 0
    for entry in entries:
        parameters = entry.get("parameters") if type(entry) is dict else None
        size = parameters.get("binary_data_size") if type(parameters) is dict else None
        if size is None:
            parts.append(None)
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - start:
            raise PayloadError(
                "bad_binary", f"binary_data_size {short(size)} of {short(entry.get('name'))}; {len(tail) - start} bytes are left"
            )
        parts.append(tail[start : start + size])
        start += size
    if start != len(tail):
        raise PayloadError("bad_binary", f"{len(tail)} bytes behind the JSON object; the tensors' binary_data_size add up to {start}")
    return parts


def read_tensor(entry: Any, raw: bytes | None, limits: Bounds) -> Tensor:
    """One tensor with its cells.

    PayloadError: not_tabular (a cell that is no scalar), wrong_shape, unknown_datatype, too_many_rows, too_many_cells,
    missing_data, bad_binary.
    """
    if type(entry) is not dict:
        raise PayloadError("wrong_shape", f"a tensor must be an object with name, shape, datatype and data, not {short(entry)}")
    name, datatype = str(entry.get("name", ""))[:256], entry.get("datatype")
    if type(datatype) is not str or datatype not in _DATATYPES:
        raise PayloadError(
            "unknown_datatype", f"tensor {name[:60]!r} has the datatype {short(datatype)}; known: {', '.join(sorted(_DATATYPES))}"
        )
    shape = _shape(name, entry.get("shape"), limits)
    data = entry.get("data")
    if raw is None:
        if type(data) is not list:
            raise PayloadError("missing_data", f"tensor {name[:60]!r} has no list 'data' and no 'binary_data_size'")
        return Tensor(name, shape, _from_json(name, data, shape))
    if data is not None:
        raise PayloadError("bad_binary", f"tensor {name[:60]!r} has both 'data' and 'binary_data_size'; it should have one")
    return Tensor(name, shape, _from_bytes(name, datatype, raw, shape))


def _shape(name: str, shape: Any, limits: Bounds) -> tuple[int, ...]:
    if type(shape) is not list or not 1 <= len(shape) <= 2 or any(type(side) is not int or side < 0 for side in shape) or 0 in shape[1:]:
        raise PayloadError("wrong_shape", f"tensor {name[:60]!r} has the shape {short(shape)}; rows have the shape [n] or [n, columns]")
    if shape[0] > limits.max_rows:
        raise PayloadError("too_many_rows", f"tensor {name[:60]!r} has {shape[0]} rows; at most {limits.max_rows} are read")
    if math.prod(shape) > limits.max_cells:
        raise PayloadError(
            "too_many_cells", f"tensor {name[:60]!r} of shape {shape} has too many values; at most {limits.max_cells} are read"
        )
    return tuple(shape)


def _from_json(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    cells = data
    if len(shape) == 2 and data and type(data[0]) is list:
        width = shape[1]
        if len(data) != shape[0] or any(type(row) is not list or len(row) != width for row in data):
            raise PayloadError("wrong_shape", f"tensor {name[:60]!r}: 'data' is not {shape[0]} lists of {width} values, as its shape says")
        cells = list(chain.from_iterable(data))
    count = math.prod(shape)
    if len(cells) != count:
        raise PayloadError("wrong_shape", f"tensor {name[:60]!r} has {len(cells)} values; its shape {list(shape)} says {count}")
    if not SCALARS.issuperset(map(type, cells)):
        raise PayloadError("not_tabular", f"tensor {name[:60]!r} holds lists or objects where its shape {list(shape)} has single values")
    return cells


def _from_bytes(name: str, datatype: str, raw: bytes, shape: tuple[int, ...]) -> list[Any]:
    count = math.prod(shape)
    if datatype == "BYTES":
        return _texts(name, raw, count)
    size = count * (2 if datatype == "BF16" else struct.calcsize("<" + _FORMATS[datatype]))
    if len(raw) != size:
        raise PayloadError("bad_binary", f"tensor {name[:60]!r} has {len(raw)} bytes; {datatype} of shape {list(shape)} takes {size}")
    if datatype == "BF16":
        # A bfloat16 is the upper half of a float32.
        widened = bytearray(2 * size)
        widened[2::4], widened[3::4] = raw[0::2], raw[1::2]
        return list(struct.unpack(f"<{count}f", widened))
    return list(struct.unpack(f"<{count}{_FORMATS[datatype]}", raw))


def _texts(name: str, raw: bytes, count: int) -> list[Any]:
    """BYTES: each element is its length as a little-endian uint32, then that many bytes."""
    texts: list[Any] = []
    start, end = 0, len(raw)
    try:
        for _ in range(count):
            first = start + 4
            start = first + int.from_bytes(raw[start:first], "little")
            if first > end or start > end:
                raise PayloadError("bad_binary", f"tensor {name[:60]!r}: its {end} bytes end within element {len(texts)} of {count}")
            texts.append(raw[first:start].decode())
    except UnicodeDecodeError as error:
        raise PayloadError(
            "bad_binary", f"tensor {name[:60]!r}: element {len(texts)} is not UTF-8 text: {raw[first:start][:20]!r}"
        ) from error
    if start != end:
        raise PayloadError("bad_binary", f"tensor {name[:60]!r}: {end - start} bytes behind its {count} elements")
    return texts
