"""The commonest bodies read quickly: rows of numbers in v1 and in one tensor of v2 JSON; whatever else comes is read carefully.

A decoder that knows what to expect makes the lists of floats in one go and refuses all else, where the careful way makes
objects first and looks at each. What both accept they read the same, and an error is always the careful way's.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from inference.event import Event
from inference.payload import MAX_CATEGORY, rows_and_predictions
from inference.versions import Schema

_SHORT = 65_536
"""Bytes of a body that cannot be over `Bounds`, whatever it holds."""

_JSON = frozenset({"application/json", None})

# Beyond 64 bits the careful way's numbers are floats.
_Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Datatype = Literal[
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64", "BF16", "BYTES"
]


class _Known(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A key that is not among the fields may mean something: the careful way knows."""


class _Parameters(_Known):
    content_type: str


class _Tensor(_Known):
    shape: Annotated[list[int], Meta(min_length=1, max_length=2)]
    datatype: _Datatype
    name: str | None = None
    parameters: _Parameters | None = None


class _Input(_Tensor, kw_only=True):
    data: list[float | list[float]]


class _Request(_Known):
    instances: list[list[float]] | UnsetType = UNSET
    inputs: Annotated[list[_Input], Meta(max_length=1)] | UnsetType = UNSET
    id: str | None = None
    parameters: _Parameters | None = None


class _Response(_Known):
    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None
    parameters: _Parameters | None = None


class _NumberOutput(_Tensor, kw_only=True):
    data: list[float]


class _Numbers(_Response):
    predictions: list[float] | UnsetType = UNSET
    outputs: Annotated[list[_NumberOutput], Meta(max_length=1)] | UnsetType = UNSET


class _CategoryOutput(_Tensor, kw_only=True):
    data: list[_Whole | str]


class _Categories(_Response):
    predictions: list[_Whole | str] | UnsetType = UNSET
    outputs: Annotated[list[_CategoryOutput], Meta(max_length=1)] | UnsetType = UNSET


class PairReader:
    """Reads both halves of a prediction of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._width = len(schema.features)
        self._usual = all(feature.kind == "numeric" for feature in schema.features)
        self._categorical = schema.prediction == "categorical"
        self._request = msgspec.json.Decoder(_Request).decode
        self._response: Any = msgspec.json.Decoder(_Categories if self._categorical else _Numbers).decode

    def read(self, request: Event, response: Event) -> tuple[list[list[Any]], list[Any]]:
        """As `rows_and_predictions`, errors included."""
        quick = self._quickly(request, response) if self._usual else None
        return quick if quick is not None else rows_and_predictions(request, response, self._schema)

    def _quickly(self, request: Event, response: Event) -> tuple[list[list[Any]], list[Any]] | None:
        asked, answered = request.data, response.data
        if request.datacontenttype not in _JSON or response.datacontenttype not in _JSON or len(asked) > _SHORT or len(answered) > _SHORT:
            return None
        try:
            table, answer = self._request(asked), self._response(answered)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        rows = table.instances if table.inputs is UNSET else _rows(table.inputs)
        cells = answer.predictions if answer.outputs is UNSET else _cells(answer.outputs)
        if not rows or not cells or len(rows) != len(cells):
            return None
        width = self._width
        for row in rows:
            if len(row) != width:
                return None
        if self._categorical:
            cells = [str(cell) for cell in cells]
            # No text is longer than the body it stands in.
            if len(answered) > MAX_CATEGORY and max(map(len, cells)) > MAX_CATEGORY:
                return None
        return rows, cells


def _rows(inputs: list[_Input]) -> list[Any] | None:
    """The tensor as rows, flat or nested; None: its data may not be what its shape says."""
    if not inputs:
        return None
    data: list[Any] = inputs[0].data
    height, width = (*inputs[0].shape, 1)[:2]
    kinds = set(map(type, data))
    if kinds == {float} and len(data) == height * width:
        return [data[start : start + width] for start in range(0, len(data), width)]
    if kinds == {list} and len(data) == height and len(inputs[0].shape) == 2 and all(len(row) == width for row in data):
        return data
    return None


def _cells(outputs: list[Any]) -> list[Any] | None:
    """The tensor's values, one a row."""
    if not outputs:
        return None
    data: list[Any] = outputs[0].data
    return data if outputs[0].shape in ([len(data)], [len(data), 1]) else None
