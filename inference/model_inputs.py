"""Rows out of what KServe's protocols V1 and V2 hand over, checked cell by cell, and predictions back into V2's tensors."""

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from inference.kserve_import import InferInput, InferOutput, InvalidInput
from inference.payload import category
from inference.versions import Feature, Schema

MAX_ROWS = 100_000
"""The most that one request may hold: what the monitor reads of one event (inference/payload.py's bounds)."""


def rows_v1(payload: Any, schema: Schema) -> list[list[Any]]:
    if isinstance(payload, bytes):  # KServe leaves a body undecoded unless it is called JSON; curl -d calls it a form
        try:
            payload = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the body is no JSON: {error}") from error
    names = schema.names
    right = f'send {{"instances": [[{", ".join(names)}], ...]}} or a list of objects with these names'
    if not isinstance(payload, dict) or "instances" not in payload:
        raise InvalidInput(f'the body has no "instances"; {right}')
    instances = payload["instances"]
    if not isinstance(instances, list) or not instances:
        raise InvalidInput(f'"instances" must be a list with at least one row, not {_short(instances)}; {right}')
    _check_count(len(instances))
    rows = []
    for number, row in enumerate(instances):
        if isinstance(row, dict):
            missing = [name for name in names if name not in row]
            if missing:
                raise InvalidInput(f"instance {number} lacks the features {', '.join(missing)}; {right}")
            rows.append([row[name] for name in names])
        elif isinstance(row, list):
            if len(row) != len(names):
                raise InvalidInput(f"instance {number} has {len(row)} values, the model takes {len(names)}; {right}")
            rows.append(row)
        else:
            raise InvalidInput(f"instance {number} is {_short(row)}, not a row of {len(names)} values; {right}")
    return rows


def rows_v2(request: Any, schema: Schema) -> list[list[Any]]:
    names = schema.names
    tensors = {tensor.name: tensor for tensor in request.inputs}
    right = f"send one tensor of shape [n, {len(names)}], or one of shape [n] for each of {', '.join(names)}"
    if len(tensors) != len(request.inputs):
        raise InvalidInput(f"two input tensors have the same name; {right}")
    if set(names) <= tensors.keys() and (len(names) > 1 or len(tensors[names[0]].shape) == 1):
        columns = [_cells(tensors[name], "[n] or [n, 1]", lambda shape: len(shape) == 1 or shape[1:] == [1]) for name in names]
        if len({len(column) for column in columns}) != 1:
            raise InvalidInput(f"the tensors differ in length: {', '.join(f'{n} {len(c)}' for n, c in zip(names, columns, strict=True))}")
        rows = [list(row) for row in zip(*columns, strict=True)]
    elif len(request.inputs) == 1:
        cells = _cells(request.inputs[0], f"[n, {len(names)}]", lambda shape: shape[1:] == [len(names)])
        rows = [cells[start : start + len(names)] for start in range(0, len(cells), len(names))]
    else:
        missing = [name for name in names if name not in tensors]
        raise InvalidInput(f"there is no input tensor for the features {', '.join(missing)}; {right}")
    if not rows:
        raise InvalidInput(f"the request has no rows; {right}")
    _check_count(len(rows))
    return rows


def _check_count(rows: int) -> None:
    if rows > MAX_ROWS:
        raise InvalidInput(f"the request has {rows} rows, at most {MAX_ROWS} are answered at once; send it in parts")


def _cells(tensor: InferInput, wanted: str, fits: Any) -> list[Any]:
    shape = tensor.shape
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape) or not fits(shape):
        raise InvalidInput(f"input {tensor.name!r} has the shape {_short(shape)}, the model takes {wanted}")
    if tensor._raw_data is not None:
        try:
            cells = tensor.as_numpy().ravel().tolist()
        except (ValueError, struct.error) as error:
            raise InvalidInput(f"input {tensor.name!r}: its bytes are no {tensor.datatype} tensor of shape {shape}: {error}") from error
    else:
        cells = list(tensor.data)
        if cells and isinstance(cells[0], list) and len(shape) == 2:
            cells = [cell for row in cells for cell in (row if isinstance(row, list) else [row])]
    if len(cells) != math.prod(shape):
        raise InvalidInput(f"input {tensor.name!r} has {len(cells)} values, its shape {shape} says {math.prod(shape)}")
    try:
        return [cell.decode() if isinstance(cell, bytes) else cell for cell in cells]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {tensor.name!r} has a text that is not UTF-8: {error}") from error


def cells_of(feature: Feature, cells: Iterable[Any], takes_missing: bool) -> list[Any]:
    column: list[Any] = []
    for number, cell in enumerate(cells):
        missing = cell is None or (isinstance(cell, float) and math.isnan(cell))
        if missing and takes_missing:
            column.append(math.nan if feature.kind == "numeric" else None)
        elif missing or not _fits(feature, cell):
            what = "a finite number" if feature.kind == "numeric" else "a text, a number or a boolean"
            raise InvalidInput(f"row {number}: {feature.name!r} is {_short(cell)}, the model takes {what}")
        else:
            # The name that training and the monitor use: 1 and "1" are one category.
            column.append(cell if feature.kind == "numeric" else category(cell))
    return column


def _fits(feature: Feature, cell: Any) -> bool:
    if feature.kind == "categorical":
        return isinstance(cell, str | int | float)
    try:
        return isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell)
    except OverflowError:
        return False


def takes_missing(estimator: Any) -> bool:
    """Whether scikit-learn says that the estimator (a pipeline: its first step) accepts missing values."""
    steps = getattr(estimator, "steps", None)
    first = steps[0][1] if steps else estimator
    try:
        from sklearn.utils import get_tags

        return bool(get_tags(first).input_tags.allow_nan)
    except (ImportError, AttributeError, TypeError):  # scikit-learn 1.5, or an estimator that is not scikit-learn's
        return bool(hasattr(first, "_get_tags") and first._get_tags().get("allow_nan", False))


def output(name: str, answers: np.ndarray[Any, Any]) -> Any:
    if answers.dtype.kind == "O":
        answers = np.array(answers.tolist())
    datatype = {"i": "INT64", "u": "INT64", "b": "BOOL", "f": "FP64"}.get(answers.dtype.kind, "BYTES")
    values = answers.ravel().tolist()
    return InferOutput(
        name=name, shape=list(answers.shape), datatype=datatype, data=[str(v) for v in values] if datatype == "BYTES" else values
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
