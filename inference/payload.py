"""Bodies of inference requests and responses to rows and predictions: KServe v1 JSON, v2 JSON, v2 binary tensors, gzip.

A request is a table:

    v1   {"instances": [[...], ...]}                 rows, named by the schema
         {"instances": [{"a": 1, "b": 2}, ...]}      rows with names; each value a list: columns with names
         {"instances": [1, 2, ...]}                  rows of one cell; "inputs" does for "instances", as in KServe
    v2   one tensor [n, k] or [n]                    rows, named by the schema
         several tensors [n] or [n, 1]               columns, named by the tensors

A response has one prediction per row. It is the value itself; of a list of numbers (a row of probabilities) the index of
the largest, the first of equals, or None when one of them is missing; of an object in v1 the first that is there of
`prediction`, `label`, `class`, `output`, `probabilities`. Of several v2 outputs the one named `predict`, `prediction` or
`output` counts, else the first.

null is a missing value. NaN is no JSON; in binary tensors it stands, and means missing too.
"""

import math
from collections.abc import Sequence
from hashlib import sha256
from itertools import chain
from reprlib import repr as short
from typing import Any

from inference.body import Bounds, no_tail, opened
from inference.errors import PayloadError
from inference.event import Event
from inference.messages import Label, Promotion, decode_finished, decode_label, decode_promotion
from inference.rows import Rows, from_list, from_tensors, within
from inference.tensors import SCALARS, are_tensors, raw_parts, read_tensor
from inference.versions import PREDICTION, Kind, Schema

__all__ = [
    "Bounds",
    "Label",
    "Promotion",
    "Rows",
    "aligned",
    "category",
    "decode_finished",
    "decode_label",
    "decode_promotion",
    "decode_request",
    "decode_response",
    "rows_and_predictions",
]

MAX_CATEGORY = 256
"""A longer text is kept as its beginning and its digest, so that a window of texts stays small."""

_OUTPUTS = ("predict", "prediction", "output")
_KEYS = ("prediction", "label", "class", "output", "probabilities")
_FLOATS = frozenset({float})
_INTS = frozenset({int})
_NUMBERS = frozenset({float, int, type(None)})
_TEXTS = frozenset({str, type(None)})
_BOUNDS = Bounds()


def rows_and_predictions(request: Event, response: Event, schema: Schema, *, limits: Bounds = _BOUNDS) -> tuple[list[list[Any]], list[Any]]:
    """Both halves of a prediction: the rows as `aligned` gives them, and as many predictions.

    A numeric prediction is a float, a categorical one what `category` says; None is missing in both. PayloadError has the
    reasons of `decode_request`, `aligned` and `decode_response`, and row_mismatch when the halves differ in length.
    `inference.usual_bodies` reads the commonest forms several times as fast.
    """
    rows = aligned(decode_request(request, limits=limits), schema)
    predictions = decode_response(response, limits=limits)
    if len(predictions) != len(rows):
        raise PayloadError(
            "row_mismatch", f"{len(rows)} rows were asked for and {len(predictions)} predictions came; there should be one per row"
        )
    return rows, _column(predictions, PREDICTION, schema.prediction)


def decode_request(event: Event, *, limits: Bounds = _BOUNDS) -> Rows:
    """The rows a model was asked about.

    PayloadError: those of `opened`; not_a_request; not_tabular (a cell that is a list or an object, rows of several
    kinds); too_many_rows; too_many_cells; and those of `read_tensor`.
    """
    document, tail = opened(event, limits)
    table = document["inputs"] if "inputs" in document else document.get("instances")
    if are_tensors(table):
        return from_tensors(table, tail, limits)
    no_tail(tail)
    if type(table) is dict:
        table = [table]
    if type(table) is not list:
        found = ", ".join(sorted(document)[:5])[:100]
        raise PayloadError("not_a_request", f'an inference request has a list "instances" or "inputs"; this body has {found or "nothing"}')
    rows = from_list(table)
    within(len(rows.values), sum(map(len, rows.values)), limits)
    return rows


def decode_response(event: Event, *, limits: Bounds = _BOUNDS) -> list[Any]:
    """One prediction per row: a float, int, str, bool or None (see the module).

    PayloadError: those of `opened`; not_a_response; not_a_prediction; too_many_rows; and those of `read_tensor`.
    """
    document, tail = opened(event, limits)
    outputs = document.get("outputs")
    if are_tensors(outputs):
        parts = raw_parts(outputs, tail)
        names = [entry.get("name") if type(entry) is dict else None for entry in outputs]
        chosen = next((names.index(name) for name in _OUTPUTS if name in names), 0)
        tensor = read_tensor(outputs[chosen], parts[chosen], limits)
        return tensor.cells if tensor.width == 1 else [_most_likely(row) for row in tensor.values()]
    no_tail(tail)
    predictions = document.get("predictions")
    if type(predictions) is not list:
        found = ", ".join(sorted(document)[:5])[:100]
        raise PayloadError(
            "not_a_response", f'an inference response has a list "predictions" or "outputs"; this body has {found or "nothing"}'
        )
    within(len(predictions), 0, limits)
    return predictions if SCALARS.issuperset(map(type, predictions)) else [_prediction(value) for value in predictions]


def aligned(rows: Rows, schema: Schema) -> list[list[Any]]:
    """The rows in the schema's order: numeric cells as float (NaN and infinities stand), categorical ones as `category` says.

    None stays None. Named columns that the schema does not know are left out. PayloadError: missing_feature, wrong_width,
    not_a_number (a text or a boolean where a number is due).
    """
    values = _in_order(rows, schema)
    features = schema.features
    if all(feature.kind == "numeric" for feature in features):
        types = set(map(type, chain.from_iterable(values)))
        if types <= _FLOATS:
            return values
        if types <= _NUMBERS:
            return [[cell if cell is None else float(cell) for cell in row] for row in values]
    columns = [_column(cells, feature.name, feature.kind) for cells, feature in zip(zip(*values, strict=True), features, strict=False)]
    return [list(row) for row in zip(*columns, strict=True)]


def category(value: Any) -> str | None:
    """The name of a category, the same however it was written down: the reference and the stream both use it.

    Whole numbers and booleans are the same category as int, float or bool ("3" for 3 and 3.0, "1" for True), because a
    tensor has one datatype for all its columns and models take them for equal; other numbers are Python's shortest text
    ("0.5"). None and NaN are missing: None. Texts stand as they are, the longer than MAX_CATEGORY shortened with a digest.
    """
    kind = type(value)
    if kind is not str:
        if value is None:
            return None
        if kind is int:
            return str(value)
        if isinstance(value, bytes):
            value = value.decode(errors="backslashreplace")
        elif not isinstance(value, str):
            return _number_name(value)
    if len(value) <= MAX_CATEGORY:
        return str(value)
    return f"{value[: MAX_CATEGORY - 17]}~{sha256(value.encode(errors='backslashreplace')).hexdigest()[:16]}"


def _number_name(value: Any) -> str | None:
    if hasattr(value, "item"):  # numpy's scalars
        value = value.item()
    if isinstance(value, bool):
        return "1" if value else "0"
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return None
    # Above 2**53 not every whole number is a float: there the two would not be the same.
    return str(int(value)) if value.is_integer() and abs(value) <= 2**53 else repr(value)


def _prediction(value: Any) -> Any:
    if type(value) is dict:
        value = next((value[key] for key in _KEYS if key in value), value)
    if type(value) is list and value:
        return _most_likely(value)
    if type(value) in SCALARS:
        return value
    raise PayloadError("not_a_prediction", f"{short(value)}; a value, a list of numbers, or an object with one of {', '.join(_KEYS)} is")


def _most_likely(scores: list[Any]) -> Any:
    if len(scores) == 1 and type(scores[0]) in SCALARS:
        return scores[0]
    if not _NUMBERS.issuperset(map(type, scores)):
        raise PayloadError("not_a_prediction", f"{short(scores)}; a list is a row of probabilities, all of them numbers")
    if any(score is None or score != score for score in scores):
        return None
    return scores.index(max(scores))


def _in_order(rows: Rows, schema: Schema) -> list[list[Any]]:
    names = schema.names
    if rows.names is None:
        width = len(names)
        for number, row in enumerate(rows.values):
            if len(row) != width:
                raise PayloadError("wrong_width", f"row {number} has {len(row)} values; the model takes {width}: {', '.join(names)[:200]}")
        return rows.values
    if rows.names == names:
        return rows.values
    places = {name: place for place, name in enumerate(rows.names)}
    missing = [name for name in names if name not in places]
    if missing:
        raise PayloadError("missing_feature", f"not in every row: {', '.join(missing)[:200]}; the model takes {', '.join(names)[:200]}")
    order = [places[name] for name in names]
    return [[row[place] for place in order] for row in rows.values]


def _column(cells: Sequence[Any], name: str, kind: Kind) -> list[Any]:
    types = set(map(type, cells))
    if kind == "categorical":
        if types <= _TEXTS and all(cell is None or len(cell) <= MAX_CATEGORY for cell in cells):
            return list(cells)
        if types <= _INTS:
            return [str(cell) for cell in cells]
        return [category(cell) for cell in cells]
    if types <= _FLOATS:
        return list(cells)
    if types <= _NUMBERS:
        return [cell if cell is None else float(cell) for cell in cells]
    wrong = next(cell for cell in cells if type(cell) not in _NUMBERS)
    raise PayloadError("not_a_number", f"{name!r} is {short(wrong)}; it should be a number or null")
