"""Bodies to rows and predictions: every form KServe takes, every way a body can be wrong, and the recording of KServe's own logger."""

import base64
import gzip
import json
import math
import struct
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import PayloadError
from inference.event import LABEL, PROMOTED, REQUEST, RESPONSE, RETRAINING_FINISHED, Event, from_http, own_event
from inference.log import Record
from inference.pairing import Pairing
from inference.payload import (
    MAX_CATEGORY,
    Bounds,
    Rows,
    aligned,
    category,
    decode_finished,
    decode_label,
    decode_promotion,
    decode_request,
    decode_response,
    rows_and_predictions,
)
from inference.versions import Feature, Schema

RECORDING = Path(__file__).parent / "recordings" / "kserve-logger-all.jsonl.gz"
IRIS = Schema(
    tuple(Feature(name, "numeric") for name in ("sepal_length", "sepal_width", "petal_length", "petal_width")), "categorical", "species"
)
MIXED = Schema((Feature("age", "numeric"), Feature("city", "categorical")), "numeric", "price")


def request(body: Any, content_type: str | None = "application/json") -> Event:
    return Event("1", "pod", REQUEST, datacontenttype=content_type, data=body if isinstance(body, bytes) else orjson.dumps(body))


def response(body: Any) -> Event:
    return Event("1", "pod", RESPONSE, datacontenttype="application/json", data=body if isinstance(body, bytes) else orjson.dumps(body))


def tensor(name: str, shape: Any, datatype: str, data: Any = None, **parameters: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
    if data is not None:
        entry["data"] = data
    if parameters:
        entry["parameters"] = parameters
    return entry


def binary(kind: str, *tensors: tuple[str, list[int], str, bytes]) -> bytes:
    entries = [tensor(name, shape, datatype, binary_data_size=len(raw)) for name, shape, datatype, raw in tensors]
    return orjson.dumps({"model_name": 'm{"}\\', kind: entries, "parameters": {"x": {}}}) + b"".join(raw for *_, raw in tensors)


def refused(reason: str, call: Any, *arguments: Any, says: str = "", **options: Any) -> None:
    with pytest.raises(PayloadError) as caught:
        call(*arguments, **options)
    assert caught.value.reason == reason, str(caught.value)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000


# Requests


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ({"instances": [[5.1, 3.5, 1.4, 0.2]]}, Rows(None, [[5.1, 3.5, 1.4, 0.2]])),
        ({"inputs": [[5.1, 3], [None, "x"]]}, Rows(None, [[5.1, 3], [None, "x"]])),
        ({"instances": []}, Rows(None, [])),
        ({"instances": ["a text", "another"]}, Rows(None, [["a text"], ["another"]])),
        ({"instances": [{"a": 1, "b": True}, {"b": False, "a": 2}]}, Rows(("a", "b"), [[1, True], [2, False]])),
        ({"instances": [{"a": 1, "b": 2}, {"a": 3}]}, Rows(("a",), [[1], [3]])),
        ({"instances": [{"a": [1, 2], "b": [3, 4]}, {"a": [5], "b": [6]}]}, Rows(("a", "b"), [[1, 3], [2, 4], [5, 6]])),
        ({"inputs": {"a": [1, 2], "b": ["x", "y"]}}, Rows(("a", "b"), [[1, "x"], [2, "y"]])),
        ({"inputs": [tensor("i", [2, 2], "FP64", [1, 2, 3, 4])]}, Rows(None, [[1, 2], [3, 4]])),
        ({"inputs": [tensor("i", [2, 2], "FP64", [[1, 2], [3, 4]], content_type="np")]}, Rows(None, [[1, 2], [3, 4]])),
        ({"inputs": [tensor("i", [0, 4], "FP32", [])]}, Rows(None, [])),
        ({"inputs": [tensor("i", [2], "INT64", [1, 2])]}, Rows(None, [[1], [2]])),
        (
            {"inputs": [tensor("b", [2], "BYTES", ["x", "y"]), tensor("a", [2, 1], "BOOL", [True, False])]},
            Rows(("b", "a"), [["x", True], ["y", False]]),
        ),
    ],
)
def test_every_form_of_a_request_gives_its_rows(body: Any, rows: Rows) -> None:
    assert decode_request(request(body)) == rows


def test_a_gzip_body_is_read_whatever_its_content_type_says() -> None:
    body = gzip.compress(orjson.dumps({"instances": [[1, 2]]}))
    assert decode_request(request(body, None)).values == [[1, 2]]


INTEGERS = [(name, np.dtype(name.lower())) for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")]
FLOATS = [("FP16", np.dtype("float16")), ("FP32", np.dtype("float32")), ("FP64", np.dtype("float64"))]


@pytest.mark.parametrize(("datatype", "dtype"), [*INTEGERS, *FLOATS, ("BOOL", np.dtype("bool"))])
@pytest.mark.parametrize("shape", [[3, 2], [6, 1], [6]])
def test_binary_tensors_hold_what_numpy_wrote(datatype: str, dtype: Any, shape: list[int]) -> None:
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    values = [limits.min, limits.max, 0, 1, 2, 3] if limits else [0, 1, 0.5, 2.25, 1, 0]
    array = np.array(values, dtype=dtype).reshape(shape)
    raw = array.astype(dtype.newbyteorder("<")).tobytes()
    expected = array.reshape(shape[0], -1).tolist()
    assert decode_request(request(binary("inputs", ("i", shape, datatype, raw)))).values == expected
    if shape != [3, 2]:
        assert decode_response(response(binary("outputs", ("o", shape, datatype, raw)))) == [row[0] for row in expected]


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    raw = b"".join(struct.pack("<f", value)[2:] for value in (1.0, -2.5, math.inf))
    assert decode_request(request(binary("inputs", ("i", [3], "BF16", raw)))).values == [[1.0], [-2.5], [math.inf]]


def test_binary_and_json_tensors_stand_side_by_side_and_texts_are_length_prefixed() -> None:
    texts = b"".join(struct.pack("<I", len(text)) + text for text in ("Köln".encode(), b"", b'}"{'))
    head = {
        "inputs": [
            tensor("city", [3], "BYTES", binary_data_size=len(texts)),
            tensor("n", [3], "INT32", [7, 8, 9]),
            tensor("age", [3, 1], "FP32", binary_data_size=12),
        ]
    }
    body = b" " + orjson.dumps(head) + texts + struct.pack("<3f", 1, 2, math.nan)
    rows = decode_request(request(body, "application/octet-stream"))
    assert rows.names == ("city", "n", "age")
    assert [row[:2] for row in rows.values] == [["Köln", 7], ["", 8], ['}"{', 9]]
    assert [row[2] for row in rows.values[:2]] == [1.0, 2.0]
    assert math.isnan(rows.values[2][2])


def test_the_length_that_kserve_states_is_not_believed() -> None:
    raw = struct.pack("<2q", 2, 1)
    event = Event(
        "1",
        "pod",
        RESPONSE,
        datacontenttype="application/octet-stream",
        extensions={"metadata": '{"Inference-Header-Content-Length":["7"]}'},
        data=binary("outputs", ("predict", [2], "INT64", raw)),
    )
    assert decode_response(event) == [2, 1]


@pytest.mark.parametrize(
    ("reason", "body", "says"),
    [
        ("empty_body", b"", "GET"),
        ("bad_json", b"{not json", "not JSON"),
        ("bad_json", b'{"instances": [[5.1, NaN]]}', "null"),
        ("bad_json", b'{"instances": [[1, 2]]', "not JSON"),
        ("bad_json", b'{"instances": [[1, 2]]} trailing', "behind the JSON object"),
        ("bad_json", b"[" * 100_000, "not JSON"),
        ("bad_json", b'{"a":' * 100_000, "not JSON"),
        ("bad_json", b"[" * 5000 + b"]" * 5000, "not JSON"),
        ("bad_json", b"[[1, 2]]", "object"),
        ("bad_json", b'{"a": "\\' + b"\\" * 100_000, "not JSON"),
        ("bad_json", b'{"instances": [["\xff"]]}', "not JSON"),
        ("bad_json", b'\xef\xbb\xbf{"instances": []}', "BOM"),
        ("bad_json", b'{"instances": [[1e999]]}', "not JSON"),
        ("bad_gzip", b"\x1f\x8b", "cut short"),
        ("bad_gzip", gzip.compress(b'{"instances": [[1, 2]]}', mtime=0)[:-3], "cut short"),
        ("bad_gzip", gzip.compress(b'{"instances": []}', mtime=0) + b"x", "behind"),
        ("bad_gzip", b"\x1f\x8b\x08" + b"\xff" * 40, "decompressed"),
        ("not_a_request", {"rows": [[1]]}, "this body has rows"),
        ("not_a_request", {}, "this body has nothing"),
        ("not_a_request", {"instances": 3}, "instances"),
        ("not_a_request", {"instances": None}, "instances"),
        ("not_tabular", {"instances": [[1, [2]]]}, "row 0"),
        ("not_tabular", {"instances": [[1], {"a": 1}]}, "dict, list"),
        ("not_tabular", {"instances": [[1], 2]}, "int, list"),
        ("not_tabular", {"instances": [{"a": 1}, {"a": {"0": 2}}]}, "row 1"),
        ("not_tabular", {"inputs": {"a": [1], "b": [[2]]}}, "'b'"),
        ("wrong_shape", {"inputs": {"a": [1], "b": [2, 3]}}, "1, 2 rows"),
        ("wrong_shape", {"inputs": [tensor("i", [-1, 4], "FP64", [1, 2, 3, 4])]}, "[-1, 4]"),
        ("wrong_shape", {"inputs": [tensor("i", [2, -2], "FP64", [1, 2, 3, 4])]}, "[2, -2]"),
        ("wrong_shape", {"inputs": [tensor("i", [-2, -2], "FP64", [1, 2, 3, 4])]}, "[-2, -2]"),
        ("wrong_shape", {"inputs": [tensor("i", [], "FP64", [1])]}, "[]"),
        ("wrong_shape", {"inputs": [tensor("i", [1, 2, 2], "FP64", [1, 2, 3, 4])]}, "[1, 2, 2]"),
        ("wrong_shape", {"inputs": [tensor("i", [1, 0], "FP64", [])]}, "[1, 0]"),
        ("wrong_shape", {"inputs": [tensor("i", [True, 1], "FP64", [1])]}, "True"),
        ("wrong_shape", {"inputs": [tensor("i", "2", "FP64", [1])]}, "'2'"),
        ("wrong_shape", {"inputs": [tensor("i", [2, 2], "FP64", [1, 2, 3])]}, "3 values"),
        ("wrong_shape", {"inputs": [tensor("i", [2, 2], "FP64", [[1, 2, 3], [4]])]}, "2 lists of 2"),
        ("wrong_shape", {"inputs": [tensor("i", [2, 2], "FP64", [[1, 2], [3, 4], [5, 6]])]}, "2 lists of 2"),
        ("wrong_shape", {"inputs": [tensor("a", [2], "FP64", [1, 2]), tensor("b", [3], "FP64", [1, 2, 3])]}, "2, 3 rows"),
        ("wrong_shape", {"inputs": [tensor("a", [1], "FP64", [1]), tensor("a", [1], "FP64", [1])]}, "two tensors"),
        ("wrong_shape", {"inputs": [tensor("a", [1], "FP64", [1]), tensor("b", [1, 2], "FP64", [1, 2])]}, "'b'"),
        ("wrong_shape", {"inputs": [tensor("a", [1], "FP64", [1]), 7]}, "7"),
        ("too_many_rows", {"inputs": [tensor("i", [10**12, 4], "FP64", [])]}, "1000000000000 rows"),
        ("too_many_cells", {"inputs": [tensor("i", [4, 10**12], "FP64", [])]}, "at most"),
        ("unknown_datatype", {"inputs": [tensor("i", [1], "FLOAT", [1])]}, "FP64"),
        ("unknown_datatype", {"inputs": [tensor("i", [1], ["FP64"], [1])]}, "known"),
        ("missing_data", {"inputs": [tensor("i", [100_000, 50], "FP64")]}, "'data'"),
        ("missing_data", {"inputs": [tensor("i", [1], "FP64", "1")]}, "'data'"),
        ("missing_data", {"inputs": [tensor("i", [1], "FP64", shared_memory_region="r")]}, "'data'"),
        ("not_tabular", {"inputs": [tensor("i", [2], "FP64", [1, [2]])]}, "lists"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(reason: str, body: Any, says: str) -> None:
    refused(reason, decode_request, request(body), says=says)


RAW = struct.pack("<2d", 1, 2)


@pytest.mark.parametrize(
    ("size", "shape", "raw"),
    [
        (17, [2], RAW),
        (15, [2], RAW),
        (0, [2], RAW),
        (-16, [2], RAW),
        (16, [3], RAW),
        (16, [1], RAW),
        (16, [100_000, 50], RAW),
        ("16", [2], RAW),
        (True, [2], RAW),
        (16.0, [2], RAW),
        (2**70, [2], RAW),
        (16, [2], RAW + b"\0"),
        (16, [2], b""),
    ],
)
def test_a_binary_size_that_lies_is_refused(size: Any, shape: list[int], raw: bytes) -> None:
    body = orjson.dumps({"inputs": [{"name": "i", "shape": shape, "datatype": "FP64"}]})
    body = body.replace(b'"FP64"', b'"FP64", "parameters": {"binary_data_size": %s}' % json.dumps(size).encode()) + raw
    refused("bad_binary", decode_request, request(body, "application/octet-stream"))


def test_binary_sizes_that_add_up_and_overlap_are_refused() -> None:
    entries = [tensor("none", [0], "FP64", binary_data_size=-16), tensor("predict", [2], "FP64", binary_data_size=32)]
    refused("bad_binary", decode_response, response(orjson.dumps({"outputs": entries}) + RAW), says="-16")


def test_a_tensor_with_both_json_data_and_bytes_is_refused() -> None:
    body = orjson.dumps({"inputs": [tensor("i", [1], "FP64", [1], binary_data_size=8)]}) + bytes(8)
    refused("bad_binary", decode_request, request(body), says="both")


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", 5) + b"abc",
        struct.pack("<I", 2**32 - 1) + b"abc",
        struct.pack("<I", 2) + b"\xff\xfe",
        struct.pack("<I", 1) + b"ab",
        b"\0\0",
        b"",
    ],
)
def test_a_bytes_tensor_that_is_cut_or_no_text_is_refused(raw: bytes) -> None:
    refused("bad_binary", decode_request, request(binary("inputs", ("i", [1], "BYTES", raw))), says="'i'")


def test_grpc_is_refused_with_the_way_out() -> None:
    refused("unsupported_grpc", decode_request, request(b"\0\0\0\0\0", "application/grpc"), says="REST")
    refused("unsupported_grpc", decode_request, request(b"\0\0\0\0\0", "application/grpc+proto"), says="REST")


def test_a_gzip_bomb_never_grows_beyond_the_bound() -> None:
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the same bytes mean the same again: 64 times 16 MiB of zeros, without compressing 1 GiB.
    bomb = head + (packer.compress(bytes(16 * 1024 * 1024)) + packer.flush(zlib.Z_FULL_FLUSH)) * 64
    assert zlib.decompressobj(wbits=31).decompress(bomb, 40 * 1024 * 1024) == bytes(40 * 1024 * 1024)
    assert len(bomb) < 2 * 1024 * 1024
    tracemalloc.start()
    try:
        refused("body_too_large", decode_request, request(bomb), limits=Bounds(max_body=4 * 1024 * 1024))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024 * 1024, f"a bound of 4 MiB took {peak} bytes"


def test_bounds_hold_for_bytes_rows_and_cells() -> None:
    limits = Bounds(max_body=200, max_rows=3, max_cells=6)
    assert decode_request(request({"instances": [[1, 2]] * 3}), limits=limits).values == [[1, 2]] * 3
    refused("body_too_large", decode_request, request(b'{"instances": []}' + b" " * 200), limits=limits)
    refused("too_many_rows", decode_request, request({"instances": [[1]] * 4}), limits=limits)
    refused("too_many_cells", decode_request, request({"instances": [[1] * 7]}), limits=limits)
    refused("too_many_cells", decode_request, request(b'{"instances": [' + b"[]," * 40 + b"[]]}"), limits=limits)
    refused("too_many_rows", decode_response, response({"predictions": [1] * 4}), limits=limits)
    refused("too_many_rows", decode_request, request({"inputs": {"a": [1] * 4}}), limits=limits)
    several = {"inputs": [tensor(name, [100], "BOOL", [True] * 100) for name in "abc"]}
    refused("too_many_cells", decode_request, request(several), limits=Bounds(max_cells=299), says="300 values")
    assert decode_request(request(several), limits=Bounds(max_cells=300)).names == ("a", "b", "c")


# Responses


@pytest.mark.parametrize(
    ("body", "predictions"),
    [
        ({"predictions": [0, 2, 1]}, [0, 2, 1]),
        ({"predictions": []}, []),
        ({"predictions": ["setosa", None, True, 0.5]}, ["setosa", None, True, 0.5]),
        ({"predictions": [[0.1, 0.7, 0.2], [0.5, 0.5, 0]]}, [1, 0]),
        ({"predictions": [[3.5], ["x"]]}, [3.5, "x"]),
        ({"predictions": [[0.1, None]]}, [None]),
        ({"predictions": [{"prediction": 1, "class": 2}, {"label": "a"}, {"class": 3}, {"output": [0.1, 0.9]}]}, [1, "a", 3, 1]),
        ({"predictions": [{"probabilities": [0.9, 0.1], "time": 3}]}, [0]),
        ({"outputs": [tensor("x", [2], "INT64", [5, 6]), tensor("predict", [2], "INT64", [1, 2])]}, [1, 2]),
        ({"outputs": [tensor("x", [2, 1], "BYTES", ["a", "b"]), tensor("y", [2], "INT64", [1, 2])]}, ["a", "b"]),
        ({"outputs": [tensor("x", [2, 3], "FP32", [0.1, 0.2, 0.7, 0.4, 0.3, 0.3])]}, [2, 0]),
    ],
)
def test_every_form_of_a_response_gives_its_predictions(body: Any, predictions: list[Any]) -> None:
    assert decode_response(response(body)) == predictions


def test_binary_probabilities_give_the_likeliest_class_and_nan_gives_none() -> None:
    raw = struct.pack("<4f", 0.1, 0.9, math.nan, 0.5)
    other = struct.pack("<2q", 7, 8)
    body = binary("outputs", ("other", [2], "INT64", other), ("predict", [2, 2], "FP32", raw))
    assert decode_response(response(body)) == [1, None]


@pytest.mark.parametrize(
    ("reason", "body", "says"),
    [
        ("not_a_response", {"error": "boom"}, "this body has error"),
        ("not_a_response", {"predictions": {"a": 1}}, "predictions"),
        ("not_a_response", {"outputs": []}, "outputs"),
        ("not_a_prediction", {"predictions": [{"score": 1}]}, "probabilities"),
        ("not_a_prediction", {"predictions": [[]]}, "list"),
        ("not_a_prediction", {"predictions": [["a", "b"]]}, "probabilities"),
        ("not_a_prediction", {"predictions": [[[1, 2]]]}, "probabilities"),
        ("not_a_prediction", {"predictions": [[True, False]]}, "probabilities"),
        ("not_a_prediction", {"predictions": [1, {"prediction": {"a": 1}}]}, "probabilities"),
        ("wrong_shape", {"outputs": [tensor("o", [1, 2, 2], "FP32", [1, 2, 3, 4])]}, "[1, 2, 2]"),
        ("bad_json", b"# HELP python_gc", "not JSON"),
        ("bad_json", b'{"predictions": [1]}{"predictions": [2]}', "behind"),
    ],
)
def test_a_bad_response_is_refused_with_its_reason(reason: str, body: Any, says: str) -> None:
    refused(reason, decode_response, response(body), says=says)


# Rows in the schema's order


def test_rows_come_in_the_schemas_order_and_types() -> None:
    rows = Rows(("city", "extra", "age"), [["Köln", 1, 3], [7, 1, None], [2.0, 1, math.inf], [None, 1, 0.5], [True, 1, 1]])
    assert aligned(rows, MIXED) == [[3.0, "Köln"], [None, "7"], [math.inf, "2"], [0.5, None], [1.0, "1"]]
    assert [type(cell) for cell in aligned(Rows(None, [[1, 2, 3, 4]]), IRIS)[0]] == [float] * 4
    assert aligned(Rows(None, []), MIXED) == aligned(Rows(None, []), IRIS) == []


def test_nan_and_infinities_stand() -> None:
    (row,) = aligned(Rows(None, [[math.nan, math.inf, -math.inf, None]]), IRIS)
    assert math.isnan(row[0])
    assert row[1:] == [math.inf, -math.inf, None]


def test_missing_features_and_wrong_widths_name_what_is_due() -> None:
    refused("missing_feature", aligned, Rows(("city",), [["x"]]), MIXED, says="not in every row: age")
    refused("missing_feature", aligned, decode_request(request({"instances": [{"age": 1, "city": "x"}, {"age": 2}]})), MIXED, says="city")
    refused("wrong_width", aligned, Rows(None, [[1, 2], [1]]), MIXED, says="row 1 has 1 values; the model takes 2: age, city")
    refused("wrong_width", aligned, Rows(None, [[1, 2, 3, 4, 5]]), IRIS, says="row 0 has 5")


@pytest.mark.parametrize("cell", ["5.1", "", True, "x" * 10_000])
def test_a_text_or_boolean_for_a_number_is_refused_by_name(cell: Any) -> None:
    refused("not_a_number", aligned, Rows(None, [[1, 2, 3, 4], [1, cell, 3, 4]]), IRIS, says="'sepal_width' is")
    refused("not_a_number", aligned, Rows(None, [[1, "x"], [cell, "x"]]), MIXED, says="'age' is")
    halves = request({"instances": [[1, "x"]]}), response({"predictions": [cell]})
    refused("not_a_number", rows_and_predictions, *halves, MIXED, says="'prediction' is")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("3", "3"),
        (3, "3"),
        (3.0, "3"),
        (-0.0, "0"),
        (True, "1"),
        (False, "0"),
        (0.5, "0.5"),
        (1e300, "1e+300"),
        (2**53, "9007199254740992"),
        (2.0**53, "9007199254740992"),
        (math.inf, "inf"),
        (math.nan, None),
        (None, None),
        ("", ""),
        ("NaN", "NaN"),
        (b"abc", "abc"),
        (np.int64(3), "3"),
        (np.float32(3), "3"),
        (np.bool_(True), "1"),
        (np.str_("x"), "x"),
        (np.float64("nan"), None),
    ],
)
def test_a_category_has_one_name_however_it_is_written(value: Any, name: str | None) -> None:
    assert category(value) == name


def test_long_texts_stay_different_categories_and_short() -> None:
    first, second = category("x" * 10_000 + "1"), category("x" * 10_000 + "2")
    assert first is not None
    assert first != second
    assert len(first) == MAX_CATEGORY
    assert category("x" * MAX_CATEGORY) == "x" * MAX_CATEGORY
    assert aligned(Rows(None, [[1, "x" * 10_000 + "1"]]), MIXED) == [[1.0, first]]


def test_both_halves_must_have_as_many_rows() -> None:
    rows = request({"instances": [[1, "x"], [2, "y"]]})
    assert rows_and_predictions(rows, response({"predictions": [1, None]}), MIXED) == ([[1.0, "x"], [2.0, "y"]], [1.0, None])
    refused("row_mismatch", rows_and_predictions, rows, response({"predictions": [1]}), MIXED, says="2 rows were asked for and 1")


CELL = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5)


@given(st.lists(CELL, max_size=20))
def test_the_stream_names_categories_as_the_reference_does(cells: list[Any]) -> None:
    rows = [[0.0, cell] for cell in cells]
    assert [row[1] for row in aligned(Rows(None, rows), MIXED)] == [category(cell) for cell in cells]


@given(
    st.integers(1, 5).flatmap(lambda width: st.lists(st.lists(st.floats(width=64), min_size=width, max_size=width), min_size=1, max_size=8))
)
def test_a_table_is_the_same_in_every_form(table: list[list[float]]) -> None:
    n, width = len(table), len(table[0])
    raw = struct.pack(f"<{n * width}d", *(cell for row in table for cell in row))
    names = [f"f{place}" for place in range(width)]
    columns = [("i", [n, width], "FP64", raw)]
    apart = [(name, [n], "FP64", struct.pack(f"<{n}d", *(row[place] for row in table))) for place, name in enumerate(names)]
    forms = [request(binary("inputs", *columns)), request(binary("inputs", *reversed(apart)))]
    if all(math.isfinite(cell) for row in table for cell in row):
        flat = [cell for row in table for cell in row]
        forms += [
            request({"instances": table}),
            request({"instances": [dict(zip(names, row, strict=True)) for row in table]}),
            request({"inputs": [tensor("i", [n, width], "FP64", flat)]}),
            request({"inputs": [tensor("i", [n, width], "FP64", table)]}),
        ]
    schema = Schema(tuple(Feature(name, "numeric") for name in names), "numeric", "y")
    # repr, so that NaN is equal to NaN.
    for event in forms:
        assert repr(aligned(decode_request(event), schema)) == repr(table)
    packed = Event("1", "pod", REQUEST, data=gzip.compress(forms[0].data))
    assert repr(aligned(decode_request(packed), schema)) == repr(table)


SEEDS = [
    orjson.dumps({"instances": [[5.1, 3.5, 1.4, 0.2]]}),
    orjson.dumps({"instances": [{"a": 1, "b": "x"}]}),
    binary("inputs", ("a", [2], "FP64", RAW), ("b", [2], "BYTES", b"\1\0\0\0a\1\0\0\0b")),
    binary("outputs", ("predict", [2], "FP64", RAW)),
    gzip.compress(orjson.dumps({"predictions": [1]})),
]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4))
def test_a_damaged_body_is_read_or_refused_and_nothing_else(body: bytes, damages: list[tuple[int, int, bytes]]) -> None:
    for place, cut, insert in damages:
        body = body[:place] + insert + body[place + cut :]
    for decode in (decode_request, decode_response, decode_label, decode_promotion, decode_finished):
        try:
            decode(request(body))
        except PayloadError as error:
            assert error.reason
            assert str(error)


# Events of ours


def own(type_: str, body: Any, model: str = "default/iris") -> Event:
    return own_event(type_, body, model=model, source="driftloop", id_="1", now=0.0)


def test_labels_are_read_for_many_rows_and_for_one() -> None:
    label = decode_label(own(LABEL, {"prediction_id": "p", "labels": ["a", 1, 0.5, True, None]}))
    assert (label.prediction_id, label.source, label.labels) == ("p", "", ("a", 1, 0.5, True, None))
    label = decode_label(own(LABEL, {"prediction_id": "p", "label": 2, "prediction_source": "pod"}))
    assert (label.source, label.labels) == ("pod", (2,))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"labels": [1]}, '"prediction_id" must be a text'),
        ({"prediction_id": "", "labels": [1]}, '"prediction_id"'),
        ({"prediction_id": 7, "labels": [1]}, "not 7"),
        ({"prediction_id": "p"}, "either"),
        ({"prediction_id": "p", "labels": [1], "label": 1}, "either"),
        ({"prediction_id": "p", "labels": []}, "not []"),
        ({"prediction_id": "p", "labels": "ab"}, "not 'ab'"),
        ({"prediction_id": "p", "label": [1]}, "label 0 is [1]"),
        ({"prediction_id": "p", "labels": [1, {"a": 1}]}, "label 1 is"),
        ({"prediction_id": "p", "labels": [0] * 100_001}, "100001 labels; at most 100000"),
        ({"prediction_id": "p", "label": 1, "prediction_source": 3}, '"prediction_source"'),
        ({"prediction_id": "p" * 2000, "label": 1}, "2000 characters"),
    ],
)
def test_a_bad_label_says_what_is_wrong(body: Any, says: str) -> None:
    refused("bad_label", decode_label, own(LABEL, body), says=says)


def test_as_many_labels_as_a_request_has_rows_are_read() -> None:
    assert len(decode_label(own(LABEL, {"prediction_id": "p", "labels": [0] * 100_000})).labels) == 100_000


PROMOTION = {"model": "default/iris", "version": "2", "previous": "1", "run_id": "r", "metrics": {"accuracy": 1}, "repository": "/r"}


def test_a_promotion_is_read() -> None:
    promotion = decode_promotion(own(PROMOTED, PROMOTION))
    assert (promotion.model, promotion.version, promotion.previous, promotion.run_id) == ("default/iris", "2", "1", "r")
    assert promotion.metrics == {"accuracy": 1.0}
    assert decode_promotion(own(PROMOTED, {"model": "default/iris", "version": "1"})).previous == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "default/other"}, "the same"),
        ({"model": None}, '"model"'),
        ({"version": ""}, '"version"'),
        ({"version": 2}, "not 2"),
        ({"previous": 1}, '"previous"'),
        ({"metrics": {"accuracy": "1"}}, '"metrics"'),
        ({"metrics": {"accuracy": True}}, '"metrics"'),
        ({"metrics": [1]}, '"metrics"'),
    ],
)
def test_a_bad_promotion_says_what_is_wrong(change: Any, says: str) -> None:
    refused("bad_promotion", decode_promotion, own(PROMOTED, PROMOTION | change), says=says)


FINISHED = {
    "model": "default/iris",
    "run_id": "r",
    "outcome": "promoted",
    "version": "2",
    "reason": "better",
    "champion": 0.9,
    "challenger": 1,
    "metric": "accuracy",
    "margin": 0.01,
    "rows": 300,
}


def test_the_end_of_a_run_is_read_with_defaults_for_what_is_left_out() -> None:
    assert decode_finished(own(RETRAINING_FINISHED, FINISHED)) == FINISHED
    short = decode_finished(own(RETRAINING_FINISHED, {"model": "default/iris", "run_id": "r", "outcome": "failed"}))
    assert (short["version"], short["reason"], short["champion"], short["rows"]) == ("", "", None, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"outcome": "won"}, "promoted, kept, failed"),
        ({"outcome": ["kept"]}, "promoted, kept, failed"),
        ({"run_id": ""}, '"run_id"'),
        ({"version": ""}, '"version"'),
        ({"champion": "0.9"}, '"champion"'),
        ({"challenger": True}, '"challenger"'),
        ({"margin": None}, '"margin"'),
        ({"rows": -1}, '"rows"'),
        ({"rows": 1.5}, '"rows"'),
        ({"model": "default/other"}, "the same"),
    ],
)
def test_a_bad_end_of_a_run_says_what_is_wrong(change: Any, says: str) -> None:
    refused("bad_finished", decode_finished, own(RETRAINING_FINISHED, FINISHED | change), says=says)


def test_a_message_that_is_no_json_object_is_refused() -> None:
    for decode in (decode_label, decode_promotion, decode_finished):
        refused("bad_json", decode, request(b"[]"))
        refused("bad_json", decode, request(b'{"prediction_id": "p", "label": 1} x'))
        refused("empty_body", decode, request(b""))


# What KServe's logger really sent


def recorded() -> list[Event]:
    events = []
    with gzip.open(RECORDING, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            headers = [(name.encode(), value.encode()) for name, value in entry["headers"]]
            events.append(from_http(headers, base64.b64decode(entry["body_base64"])))
    return events


def test_the_recorded_predictions_decode_to_exactly_these_rows() -> None:
    pairing = Pairing()
    pairs = [pair for offset, event in enumerate(recorded()) if (pair := pairing.add(Record(0, offset, 0.0, event)))]
    sizes: Counter[Any] = Counter()
    predictions: Counter[Any] = Counter()
    failed: Counter[str] = Counter()
    for pair in pairs:
        try:
            rows, predicted = rows_and_predictions(pair.request.event, pair.response.event, IRIS)
        except PayloadError as error:
            failed[error.reason] += 1
            continue
        sizes[pair.request.event.datacontenttype, len(rows)] += 1
        predictions.update(predicted)
        assert all(type(cell) is float and 0 < cell < 10 for row in rows for cell in row)
    # 65 single rows and 10 batches of 8 in v1, 20 pairs of rows in v2 JSON, 5 times 3 rows in v2 binary: 200 rows.
    json_type = "application/json"
    assert sizes == {(json_type, 1): 65, (json_type, 8): 10, (json_type, 2): 20, ("application/octet-stream", 3): 5}
    assert predictions == {"0": 63, "1": 60, "2": 77}
    assert failed == {"empty_body": 4}


def test_the_recorded_lone_requests_decode_or_fail_for_these_reasons() -> None:
    events = recorded()
    answered = {event.id for event in events if event.type == RESPONSE}
    outcomes: list[Any] = []
    for event in events:
        if event.id not in answered:
            try:
                outcomes.append(aligned(decode_request(event), IRIS))
            except PayloadError as error:
                outcomes.append(error.reason)
    assert outcomes == [
        "bad_json",  # {not json
        "wrong_width",  # [[1, 2]]
        [[1.0, 2.0, 3.0, 4.0]],  # asked of a model that is not there
        [[5.1, 3.5, 1.4, 0.2]],  # gzip, which KServe's server does not take
        [[5.1, None, 1.4, 0.2]],
        "bad_json",  # NaN
    ]
