"""The commonest bodies are read quickly to just what the careful way makes of them, and refused with its words."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import usual_bodies
from inference.errors import PayloadError
from inference.event import REQUEST, RESPONSE, Event
from inference.payload import MAX_CATEGORY, rows_and_predictions
from inference.usual_bodies import PairReader
from inference.versions import Feature, Schema

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
odd = st.sampled_from([None, True, "x", "", [], [1.0], {}, {"prediction": 1}, "é", "\x7f"])
cells = numbers | odd
tables = st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=4) | st.lists(st.lists(cells, max_size=3), max_size=3) | cells
answers = st.lists(numbers | st.text(max_size=3), max_size=4) | st.lists(cells, max_size=4) | cells
NUMBERS = b"-0 -0.0 1e400 1e-400 01 1. NaN 1.0 1e2 9007199254740993 18446744073709551615 18446744073709551616 -9223372036854775809".split()
TEXTS = [b'"\\ud800"', b'"\\u0041"', b'"\xff"', b'"a\x01"']
texts = st.sampled_from([*NUMBERS, *TEXTS, b"1" * 400, b"0." + b"3" * 400])
content_types = st.sampled_from(["application/json", None, "application/grpc", "text/plain", ""])


def schema(prediction, *kinds):
    return Schema(tuple(Feature(f"f{place}", kind) for place, kind in enumerate(kinds)), prediction, "target")


def tensors(data):
    """Mostly right ones."""
    shapes = st.lists(st.integers(-1, 4) | st.just(2) | odd, max_size=3)
    parameters = st.sampled_from([None, {"content_type": "np"}, {"binary_data_size": 8}, {}, 3])
    usual = {
        "shape": shapes | st.sampled_from([[1], [2], [1, 2], [2, 2], [2, 1]]),
        "datatype": st.sampled_from(["FP64", "INT64", "XX", None]),
    }
    right = st.integers(1, 3).flatmap(
        lambda count: st.fixed_dictionaries(
            {"shape": st.just([count, 2]), "datatype": st.just("FP32"), "data": st.lists(numbers, min_size=2 * count, max_size=2 * count)}
        )
    )
    more = {"name": st.sampled_from(["a", "predict", None, 3]), "parameters": parameters, "other": odd}
    return right | st.fixed_dictionaries({**usual, "data": data}, optional=more)


v2_requests = st.lists(tensors(tables | st.lists(numbers, max_size=4)), max_size=2)
v2_responses = st.lists(tensors(answers), max_size=2)

schemas = st.builds(schema, st.sampled_from(["numeric", "categorical"]), *[st.sampled_from(["numeric"] * 4 + ["categorical"])] * 2)


def bounded(value):
    """With whole numbers that orjson can write."""
    if isinstance(value, list):
        return [bounded(one) for one in value]
    if isinstance(value, dict):
        return {key: bounded(one) for key, one in value.items()}
    return max(-(2**63), min(2**64 - 1, value)) if type(value) is int else value


@st.composite
def bodies(draw, key, values):
    other = draw(st.dictionaries(st.sampled_from([key, "inputs", "outputs", "id", "predictions"]), values, max_size=1))
    whole = orjson.dumps({key: draw(values), **other} if draw(st.booleans()) else {key: draw(values)})
    if draw(st.booleans()):
        return whole
    place = draw(st.integers(0, len(whole)))
    return whole[:place] + draw(st.binary(max_size=2) | st.sampled_from([b" ", b",", b"]", b"}", whole])) + whole[place:]


def told(read, *pair):
    """As text, in which -0.0 is not 0.0, nor 1 True."""
    try:
        return repr(read(*pair))
    except PayloadError as error:
        return error.reason, str(error)


def same(known, asked, answered, content_type="application/json", other="application/json"):
    pair = Event("1", "pod", REQUEST, "", content_type, {}, asked), Event("1", "pod", RESPONSE, "", other, {}, answered)
    quick = told(PairReader(known).read, *pair)
    assert quick == told(lambda *halves: rows_and_predictions(*halves, known), *pair)
    return quick


@given(
    schemas,
    bodies("instances", tables.map(bounded)) | bodies("inputs", v2_requests.map(bounded)),
    bodies("predictions", answers.map(bounded)) | bodies("outputs", v2_responses.map(bounded)),
)
def test_whatever_comes_is_read_as_it_is_carefully(known, asked, answered):
    same(known, asked, answered)


@given(schemas, st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=3), content_types, content_types)
def test_numbers_and_texts_however_they_are_written(known, rows, content_type, other):
    asked = b'{"instances":[%s]}' % b",".join(b"[%s,%s]" % row[:2] for row in rows)
    answered = b'{ "predictions":[%s] }' % b" , ".join(row[2] for row in rows)
    same(known, asked, answered, content_type, other)


def tensor(shape, data, **more):
    return orjson.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP64", "data": data, **more}], "id": "1"})


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([1, 2], [1, 2.5]), ([1, 2], [[1, 2.5]]), ([2], [1.0, 2.0]), ([2, 1], [1.0, 2.0]), ([2, 1], [[1.0], [2.0]]), ([2, 2], [1.0, 2.0]),
        ([2, 2], [[1.0, 2.0]]), ([-1, -2], [1.0, 2.0]), ([1, 2], [[1.0], [2.0]]), ([2], [[1.0], [2.0]]), ([], [1.0]),
        ([1, 2], [1.0, [2.0]]), ([1, 2], [1.0, True]), ([1, 2], ["1", 2.0]), ([1, 0], []),
        ([1, 2, 1], [1.0, 2.0]), ([1, 2], [[1.0]]), ([-1, -1], [1.0]), ([-1], [1.0]), ([1.0, 2], [1.0, 2.0]), ([True, 2], [1.0, 2.0]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("answer_shape", "answer"), [([1], [1]), ([1, 1], [1]), ([2], [1, 0]), ([1, 2], [0.2, 0.8]), ([2, 1], ["a", "b"])])
def test_tensors_of_any_shape(shape, data, answer_shape, answer):
    answered = tensor(answer_shape, answer).replace(b"inputs", b"outputs")
    for width in (1, 2):
        for prediction in ("categorical", "numeric"):
            same(schema(prediction, *["numeric"] * width), tensor(shape, data), answered)


@pytest.mark.parametrize(
    "more",
    [{"parameters": {"content_type": "np"}}, {"parameters": {"content_type": "np", "binary_data_size": 1}}, {"datatype": "FP65"}, {"x": 1}],
)
def test_what_else_a_tensor_says(more):
    told = same(schema("categorical", "numeric"), tensor([1], [1.0], **more), b'{"predictions":[1]}')
    assert isinstance(told, str) == ("datatype" not in more and "binary" not in str(more))


ONE = {"shape": [1], "datatype": "FP64", "data": [1]}
TWO = {**ONE, "name": "predict", "data": [2]}


@pytest.mark.parametrize(
    "asked", [{"inputs": [ONE, TWO]}, {"inputs": [ONE], "instances": [[2.0]]}, {"inputs": [[1.0]], "instances": [[2.0]]}]
)
@pytest.mark.parametrize("answered", [{"outputs": [ONE, TWO]}, {"outputs": [ONE], "predictions": [2]}, {"outputs": [], "predictions": [2]}])
@pytest.mark.parametrize("prediction", ["categorical", "numeric"])
def test_of_two_tables_or_answers_the_same_one_counts(asked, answered, prediction):
    same(schema(prediction, "numeric"), orjson.dumps(asked), b'{"predictions":[1]}')
    same(schema(prediction, "numeric"), b'{"instances":[[1.0]]}', orjson.dumps(answered))


@pytest.mark.parametrize("written", [*NUMBERS, *TEXTS])
def test_one_number_or_text_however_it_is_written(written):
    for prediction in ("categorical", "numeric"):
        same(schema(prediction, "numeric"), b'{"instances":[[1.0]]}', b'{"predictions":[%s]}' % written)
        same(schema(prediction, "numeric"), b'{"instances":[[%s]]}' % written, b'{"predictions":[1]}')
        same(schema(prediction, "numeric"), b'{"instances":[[1.0]],"x":%s}' % written, b'{"predictions":[1],"x":%s}' % written)


def test_grpc_is_refused_in_either_half():
    usual = b'{"instances":[[1.0]]}', b'{"predictions":[1]}'
    for types in (("application/grpc", None), (None, "application/grpc")):
        assert same(schema("numeric", "numeric"), *usual, *types)[0] == "unsupported_grpc"


@pytest.mark.parametrize("length", [MAX_CATEGORY - 1, MAX_CATEGORY, MAX_CATEGORY + 1])
def test_long_texts_are_named_as_they_are_carefully(length):
    for text in ("x" * length, "é" * length):
        assert same(schema("categorical", "numeric"), b'{"instances":[[1.0]]}', orjson.dumps({"predictions": [text]}))


ROWS = [b'{"instances":[[1.5,2]]}', tensor([1, 2], [1.5, 2]), tensor([1, 2], [[1.5, 2]])]
ANSWERS = [b'{"predictions":[%s]}', b'{"model_name":"m","model_version":null,"id":"1","parameters":null,"outputs":[{"name":"y","shape":[1],'
           b'"datatype":"INT64","parameters":null,"data":[%s]}]}']  # fmt: skip


@pytest.mark.parametrize("asked", ROWS)
@pytest.mark.parametrize("answered", ANSWERS)
@pytest.mark.parametrize(
    ("prediction", "answer", "read"), [("numeric", b"1", "1.0"), ("categorical", b"1", "'1'"), ("categorical", b'"a"', "'a'")]
)
def test_the_commonest_forms_are_not_read_twice(monkeypatch, asked, answered, prediction, answer, read):
    monkeypatch.setattr(usual_bodies, "rows_and_predictions", None)
    request = Event("1", "pod", REQUEST, "", "application/json", {}, asked)
    response = Event("1", "pod", RESPONSE, "", "application/json", {}, answered % answer)
    assert repr(PairReader(schema(prediction, "numeric", "numeric")).read(request, response)) == f"([[1.5, 2.0]], [{read}])"


def test_bodies_over_a_bound_are_refused_with_the_careful_ways_words():
    rows = b",".join([b"[1.0]"] * 100_001)
    asked, answered = b'{"instances":[%s]}' % rows, b'{"predictions":[%s]}' % b",".join([b"1"] * 100_001)
    reason, text = same(schema("categorical", "numeric"), asked, answered)
    assert (reason, "100001" in text) == ("too_many_rows", True)
