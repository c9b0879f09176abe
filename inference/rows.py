"""The table of a request: from v1 lists and objects, and from v2 tensors."""

from dataclasses import dataclass
from itertools import chain
from reprlib import repr as short
from typing import Any

from inference.body import Bounds
from inference.errors import PayloadError
from inference.tensors import SCALARS, raw_parts, read_tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """A request's table. `names` is None when only the schema knows them; a cell is a float, int, str, bool or None."""

    names: tuple[str, ...] | None
    values: list[list[Any]]


def from_tensors(entries: list[Any], tail: bytes, limits: Bounds) -> Rows:
    parts = raw_parts(entries, tail)
    if len(entries) == 1:
        tensor = read_tensor(entries[0], parts[0], limits)
        return Rows(None, tensor.values())
    columns: dict[str, list[Any]] = {}
    cells = 0
    for entry, raw in zip(entries, parts, strict=True):
        tensor = read_tensor(entry, raw, limits)
        cells += len(tensor.cells)
        within(tensor.rows, cells, limits)
        if tensor.width != 1:
            raise PayloadError(
                "wrong_shape", f"tensor {tensor.name[:60]!r} has the shape {list(tensor.shape)}; of several, each has [n] or [n, 1]"
            )
        if tensor.name in columns:
            raise PayloadError("wrong_shape", f"two tensors are named {tensor.name[:60]!r}; each feature has one")
        columns[tensor.name] = tensor.cells
    return _from_columns(columns)


def from_list(table: list[Any]) -> Rows:
    kinds = set(map(type, table))
    if kinds == {list}:
        _of_cells(table)
        return Rows(None, table)
    if kinds == {dict}:
        return _from_dicts(table)
    if kinds <= SCALARS:
        return Rows(None, [[cell] for cell in table])
    raise PayloadError(
        "not_tabular", f"rows of several kinds ({', '.join(sorted(kind.__name__ for kind in kinds))}); all should be lists, or all objects"
    )


def _from_dicts(table: list[dict[str, Any]]) -> Rows:
    first = table[0]
    names = tuple(first)
    if any(row.keys() != first.keys() for row in table):
        # What is not in every row is missing: `aligned` says so if the schema wants it.
        names = tuple(name for name in names if all(name in row for row in table))
    if first and all(type(cells) is list for cells in first.values()):
        tables = [_from_columns({name: row[name] for name in names}) for row in table]
        return Rows(names, [row for part in tables for row in part.values])
    values = [[row[name] for name in names] for row in table]
    _of_cells(values)
    return Rows(names, values)


def _of_cells(values: list[list[Any]]) -> None:
    # One pass over the whole table: a call per row would cost as much again as reading the JSON.
    if SCALARS.issuperset(map(type, chain.from_iterable(values))):
        return
    number, row = next((number, row) for number, row in enumerate(values) if not SCALARS.issuperset(map(type, row)))
    raise PayloadError("not_tabular", f"row {number} holds a list or an object: {short(row)}; its cells should be single values")


def _from_columns(columns: dict[str, Any]) -> Rows:
    for name, cells in columns.items():
        if type(cells) is not list or not SCALARS.issuperset(map(type, cells)):
            raise PayloadError("not_tabular", f"column {name[:60]!r} must be a list of single values, not {short(cells)}")
    lengths = {len(cells) for cells in columns.values()}
    if len(lengths) > 1:
        raise PayloadError(
            "wrong_shape", f"the columns have {', '.join(map(str, sorted(lengths)[:5]))} rows; all should have the same number"
        )
    return Rows(tuple(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def within(rows: int, cells: int, limits: Bounds) -> None:
    if rows > limits.max_rows:
        raise PayloadError("too_many_rows", f"{rows} rows; at most {limits.max_rows} are read")
    if cells > limits.max_cells:
        raise PayloadError("too_many_cells", f"{cells} values; at most {limits.max_cells} are read")
