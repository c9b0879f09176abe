"""The event's bindings: what the cloudevents SDK writes we read, what we write it reads, and each way to be refused."""

import base64
import copy
import gzip
import json
import pickle
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cloudevents import kafka as sdk_kafka
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent
from cloudevents.http import from_http as sdk_from_http
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inference.errors import EventError
from inference.event import (
    MAX_ATTRIBUTE_LENGTH,
    MAX_ATTRIBUTES,
    REQUEST,
    STRUCTURED,
    Event,
    deterministic_id,
    from_http,
    from_kafka,
    now_text,
    own_event,
    to_http,
    to_kafka,
)

RECORDING = Path(__file__).parent / "recordings" / "kserve-logger-all.jsonl.gz"
FIELDS = ("id", "source", "type", "time", "specversion", "datacontenttype")
# Names that the SDK keeps for itself, and the one it turns into the Kafka key.
RESERVED = {*FIELDS, "data", "dataschema", "schema", "subject", "extensions", "partitionkey"}
REQUIRED = [(b"ce-specversion", b"1.0"), (b"ce-id", b"1"), (b"ce-source", b"here"), (b"ce-type", b"t")]

value = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40)
filled = value.filter(bool)
extension_name = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20).filter(lambda name: name not in RESERVED)
content_type = st.none() | st.sampled_from(
    ["application/json", "application/json; charset=utf-8", "text/plain", "application/octet-stream", "application/x-protobuf"]
)
events = st.builds(
    Event,
    id=filled,
    source=filled,
    type=filled,
    time=st.just("") | st.just("2026-11-23T10:11:36.664160349Z"),
    datacontenttype=content_type,
    extensions=st.dictionaries(extension_name, value, max_size=6),
    data=st.binary(max_size=200),
)
json_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | filled,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(value, inner, max_size=3),
    max_leaves=10,
)


def on_the_wire(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), text.encode()) for name, text in headers]


def as_the_sdk_has_it(event: Event) -> dict[str, Any]:
    attributes: dict[str, Any] = {"id": event.id, "source": event.source, "type": event.type, "specversion": "1.0", **event.extensions}
    if event.time:
        attributes["time"] = event.time
    if event.datacontenttype is not None:
        attributes["datacontenttype"] = event.datacontenttype
    return attributes


def read_by_the_sdk(read: CloudEvent, *, time: str) -> Event:
    attributes = dict(read.get_attributes())
    # The SDK makes up a time where there is none.
    known = {name: attributes.pop(name, None) for name in FIELDS}
    return Event(
        id=known["id"],
        source=known["source"],
        type=known["type"],
        time=known["time"] if time else "",
        datacontenttype=known["datacontenttype"],
        extensions=attributes,
        data=read.get_data() or b"",
    )


def without_invented_time(read: Event, sent: Event) -> Event:
    """The SDK makes up a time for an event that has none."""
    assert read.time
    return read if sent.time else replace(read, time="")


def refused(headers: Any, body: bytes = b"") -> EventError:
    with pytest.raises(EventError) as caught:
        from_http(headers, body)
    return caught.value


def structured(document: Any, media_type: bytes = STRUCTURED.encode()) -> Event:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return from_http([(b"content-type", media_type)], body)


def minimal(**more: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": "1", "source": "here", "type": "t", **more}


# Against the SDK


@given(events)
def test_the_sdk_reads_from_our_http_message_what_we_put_in(event: Event) -> None:
    headers, body = to_http(event)
    assert read_by_the_sdk(sdk_from_http(dict(headers), body, lambda data: data), time=event.time) == event


@given(events)
def test_we_read_from_the_sdks_http_message_what_it_put_in(event: Event) -> None:
    headers, body = to_binary(CloudEvent(as_the_sdk_has_it(event), event.data), lambda data: data)
    ours = from_http(on_the_wire(headers.items()), body)
    assert without_invented_time(ours, event) == event


@given(events)
def test_the_sdk_reads_from_our_kafka_message_what_we_put_in(event: Event) -> None:
    _, headers, body = to_kafka(event)
    read = sdk_kafka.from_binary(sdk_kafka.KafkaMessage(dict(headers), None, body), data_unmarshaller=lambda data: data)
    assert read_by_the_sdk(read, time=event.time) == event


@given(events.filter(lambda event: event.datacontenttype is not None))
def test_we_read_from_the_sdks_kafka_message_what_it_put_in(event: Event) -> None:
    message = sdk_kafka.to_binary(CloudEvent(as_the_sdk_has_it(event), event.data), data_marshaller=lambda data: data)
    ours = from_kafka(list(message.headers.items()), message.value)
    assert without_invented_time(ours, event) == event


@given(events)
def test_an_event_comes_back_from_http_and_from_kafka_as_it_went(event: Event) -> None:
    headers, body = to_http(event)
    assert from_http(on_the_wire(headers), body) == event
    key, kafka_headers, kafka_value = to_kafka(event)
    assert from_kafka(kafka_headers, kafka_value) == event
    assert key == event.model.encode()


@given(events)
def test_the_sdks_structured_form_of_a_binary_body_is_the_same_event_over_http_and_kafka(event: Event) -> None:
    headers, body = to_structured(CloudEvent(as_the_sdk_has_it(event), event.data))
    over_http = from_http(on_the_wire(headers.items()), body)
    assert without_invented_time(over_http, event) == event
    assert from_kafka([("content-type", STRUCTURED.encode())], body) == over_http


@given(events, json_data.filter(lambda data: data is not None))
def test_the_sdks_structured_form_of_a_json_body_carries_the_same_json(event: Event, data: Any) -> None:
    attributes = {**as_the_sdk_has_it(event), "datacontenttype": "application/json"}
    headers, body = to_structured(CloudEvent(attributes, data))
    ours = from_http(on_the_wire(headers.items()), body)
    assert json.loads(ours.data) == data == sdk_from_http(headers, body).get_data()
    assert (ours.id, ours.source, ours.type, ours.extensions) == (event.id, event.source, event.type, event.extensions)


@given(extension_name, st.booleans() | st.integers(-(2**31), 2**31 - 1))
def test_a_structured_extension_that_is_a_number_or_a_boolean_becomes_its_canonical_text(name: str, given_value: int | bool) -> None:
    _, body = to_structured(CloudEvent(minimal(**{name: given_value}), {"a": 1}))
    assert structured(body).extensions == {name: json.dumps(given_value)}


def test_every_event_of_the_recording_is_read_as_the_sdk_reads_it() -> None:
    lines = [json.loads(line) for line in gzip.decompress(RECORDING.read_bytes()).splitlines()]
    halves = Counter[str]()
    for line in lines:
        body = base64.b64decode(line["body_base64"])
        ours = from_http(on_the_wire(line["headers"]), body)
        theirs = read_by_the_sdk(sdk_from_http(dict(line["headers"]), body, lambda data: data), time="as sent")
        assert ours == theirs
        assert ours.data == body
        _, kafka_headers, kafka_value = to_kafka(ours)
        assert from_kafka(kafka_headers, kafka_value) == ours
        halves[ours.type.rpartition(".")[2]] += 1
    assert halves == {"request": 110, "response": 104}


def test_kserves_unescaped_json_in_an_attribute_stands_as_it_came() -> None:
    annotations = '{"driftloop.io/model-version":"3","note":"100%25 & é"}'
    event = from_http([*REQUIRED, (b"Ce-Annotations", annotations.encode())], b"")
    assert event.extensions["annotations"] == annotations


# Events of ours


def test_an_event_of_ours_is_complete_and_the_same_each_time() -> None:
    def make() -> Event:
        return own_event("io.driftloop.label", {"labels": [1]}, model="default/iris", source="me", id_="7", now=1.5)

    assert make() == make()
    assert make().model == "default/iris"
    assert make().time == "1970-01-01T00:00:01.500000Z"
    assert make().datacontenttype == "application/json"
    assert json.loads(make().data) == {"labels": [1]}


def test_a_deterministic_id_depends_on_each_part_and_on_where_the_parts_are_cut() -> None:
    assert deterministic_id("finished", "run-1") == "8fdf8854-7f06-5de3-ba26-c1ed390f664d"
    assert deterministic_id("a", "bc") != deterministic_id("ab", "c")
    assert deterministic_id("a", 1) == deterministic_id("a", "1")


def test_a_time_before_1970_and_whole_seconds_are_written_with_microseconds() -> None:
    assert now_text(0) == "1970-01-01T00:00:00.000000Z"
    assert now_text(-0.25) == "1969-12-31T23:59:59.750000Z"


def test_an_event_can_be_pickled_and_copied() -> None:
    event = Event("1", "s", "t")
    assert pickle.loads(pickle.dumps(event)) == copy.deepcopy(event) == event


# What is refused, and why


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
@pytest.mark.parametrize("replacement", [None, b""])
def test_a_required_attribute_that_is_missing_or_empty_is_named(name: str, replacement: bytes | None) -> None:
    headers = [pair for pair in REQUIRED if pair[0] != f"ce-{name}".encode()]
    if replacement is not None:
        headers.append((f"ce-{name}".encode(), replacement))
    error = refused(headers)
    assert error.reason == f"missing_{name}"
    assert name in str(error)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([(b"ce-specversion", b"0.3"), *REQUIRED[1:]], "unsupported_specversion"),
        ([*REQUIRED, (b"ce-x", b"\xff")], "attribute_not_utf8"),
        ([*REQUIRED, (b"content-type", b"\xff")], "attribute_not_utf8"),
        ([*REQUIRED, (b"ce-x", b"a" * (MAX_ATTRIBUTE_LENGTH + 1))], "attribute_too_long"),
        ([*REQUIRED, (b"CE-ID", b"2")], "duplicate_attribute"),
        ([*REQUIRED, (b"content-type", b"a/b"), (b"Content-Type", b"a/b")], "duplicate_attribute"),
        ([*REQUIRED, (b"ce-x", b"a\tb")], "bad_attribute"),
        ([*REQUIRED, (b"ce-x", "a\x85b".encode())], "bad_attribute"),
        ([*REQUIRED, (b"content-type", b"a/b\r\nx: y")], "bad_attribute"),
        ([*REQUIRED, (b"ce-x_y", b"1")], "bad_attribute"),
        ([*REQUIRED, (b"ce-\xe9", b"1")], "bad_attribute"),
        ([*REQUIRED, (b"ce-", b"1")], "bad_attribute"),
        ([*REQUIRED, (b"ce-" + b"a" * 65, b"1")], "bad_attribute"),
        ([*REQUIRED, (b"ce-data", b"1")], "bad_attribute"),
        ([*REQUIRED, *((f"ce-x{i}".encode(), b"1") for i in range(MAX_ATTRIBUTES - 3))], "too_many_attributes"),
        ([(b"content-type", b"application/cloudevents-batch+json")], "unsupported_mode"),
        ([*REQUIRED, (b"content-type", b"Application/CloudEvents+XML; a=b")], "unsupported_mode"),
    ],
)
def test_an_http_message_that_breaks_the_contract_is_refused_with_its_reason(headers: Any, reason: str) -> None:
    assert refused(headers).reason == reason


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"[]", "bad_json"),
        (b'"\\ud800"', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"id": "\xff"}', "bad_json"),
        ({"id": "1"}, "missing_specversion"),
        (minimal(specversion=1.0), "bad_attribute"),
        (minimal(x=1.5), "bad_attribute"),
        (minimal(x={"a": 1}), "bad_attribute"),
        (minimal(x=["a"]), "bad_attribute"),
        (minimal(datacontenttype=5), "bad_attribute"),
        (minimal(x="1\r\nSet-Cookie: a=b"), "bad_attribute"),
        (minimal(**{"x\r\nSet-Cookie": "1"}), "bad_attribute"),
        (minimal(**{"x: y": "1"}), "bad_attribute"),
        (minimal(ID="2"), "bad_attribute"),
        (minimal(**{"": "1"}), "bad_attribute"),
        (minimal(x="é" * (MAX_ATTRIBUTE_LENGTH // 2 + 1)), "attribute_too_long"),
        (minimal(**{f"x{i}": {} for i in range(MAX_ATTRIBUTES)}), "too_many_attributes"),
        (minimal(data=1, data_base64="AA=="), "bad_data"),
        (minimal(data_base64="A"), "bad_data"),
        (minimal(data_base64="AA-_=="), "bad_data"),
        (minimal(data_base64="é"), "bad_data"),
        (minimal(data_base64=5), "bad_data"),
        (minimal(data_base64=[1]), "bad_data"),
        (json.dumps(minimal()).encode()[:-1] + b', "data": ' + b"[" * 400 + b"]" * 400 + b"}", "bad_data"),
    ],
)
def test_a_structured_message_that_breaks_the_contract_is_refused_with_its_reason(document: Any, reason: str) -> None:
    with pytest.raises(EventError) as caught:
        structured(document)
    assert caught.value.reason == reason
    with pytest.raises(EventError) as caught:
        from_kafka([("content-type", STRUCTURED.encode())], document if isinstance(document, bytes) else json.dumps(document).encode())
    assert caught.value.reason == reason


def test_a_kafka_batch_is_refused_as_an_unsupported_mode() -> None:
    with pytest.raises(EventError, match="one event") as caught:
        from_kafka([("content-type", b"application/cloudevents-batch+json")], b"[]")
    assert caught.value.reason == "unsupported_mode"


@given(st.lists(st.tuples(st.sampled_from([b"ce-id", b"ce-x", b"content-type", b"ce-\xff", b"x"]) | st.binary(), st.binary())), st.binary())
def test_any_bytes_at_all_give_an_event_or_an_event_error(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    for more in ([], REQUIRED):
        for media_type in ([], [(b"content-type", STRUCTURED.encode())]):
            try:
                event = from_http([*more, *headers, *media_type], body)
            except EventError as error:
                assert error.reason
            else:
                assert from_kafka(to_kafka(event)[1], event.data) == event


# What is accepted, at the edges


def test_the_bounds_themselves_are_accepted() -> None:
    headers = [*REQUIRED, *((f"ce-x{i}".encode(), b"a" * MAX_ATTRIBUTE_LENGTH) for i in range(MAX_ATTRIBUTES - 4))]
    assert len(from_http(headers, b"").extensions) == MAX_ATTRIBUTES - 4
    assert from_http([*REQUIRED, (b"ce-" + b"a" * 64, b"")], b"").extensions == {"a" * 64: ""}


@pytest.mark.parametrize(
    "media_type", [b"application/cloudevents+json; charset=UTF-8", b"Application/CloudEvents+JSON", b"application/cloudevents+json ;a=b"]
)
def test_structured_mode_is_known_by_its_media_type_whatever_its_case_and_parameters(media_type: bytes) -> None:
    assert structured(minimal(), media_type).id == "1"
    assert from_kafka([("Content-Type", media_type)], json.dumps(minimal()).encode()).id == "1"


def test_in_structured_mode_the_document_holds_and_the_headers_do_not() -> None:
    event = from_http([*REQUIRED, (b"content-type", STRUCTURED.encode())], json.dumps(minimal(id="2")).encode())
    assert event.id == "2"


@pytest.mark.parametrize(
    ("more", "media_type", "data"),
    [
        ({}, None, b""),
        ({"data": None}, None, b""),
        ({"data": None, "data_base64": None, "x": None}, None, b""),
        ({"data_base64": ""}, None, b""),
        ({"data": "text"}, "application/json", b'"text"'),
        ({"data": "text", "datacontenttype": ""}, "application/json", b'"text"'),
        ({"data": "text", "datacontenttype": "Application/Problem+JSON; a=b"}, "Application/Problem+JSON; a=b", b'"text"'),
        ({"data": "é", "datacontenttype": "text/plain"}, "text/plain", "é".encode()),
        ({"data": "a", "datacontenttype": "text/notjson"}, "text/notjson", b"a"),
        ({"data": {"a": [1.5, None]}, "datacontenttype": "text/plain"}, "text/plain", b'{"a":[1.5,null]}'),
        ({"data": False}, "application/json", b"false"),
        ({"data_base64": "AP8=", "datacontenttype": "application/json"}, "application/json", b"\x00\xff"),
    ],
)
def test_a_structured_body_becomes_the_bytes_that_binary_mode_would_carry(
    more: dict[str, Any], media_type: str | None, data: bytes
) -> None:
    event = structured(minimal(**more))
    assert (event.datacontenttype, event.data, event.extensions) == (media_type, data, {})


def test_the_content_type_stands_in_its_own_header_only() -> None:
    http = from_http([*REQUIRED, (b"ce-datacontenttype", b"text/plain"), (b"content-type", b"application/json")], b"")
    assert (http.datacontenttype, http.extensions) == ("application/json", {})
    required = [(name.decode().replace("ce-", "ce_"), text) for name, text in REQUIRED]
    kafka = from_kafka([*required, ("ce_datacontenttype", b"text/plain")], b"")
    assert (kafka.datacontenttype, kafka.extensions) == (None, {})


def test_a_null_header_or_value_of_kafka_counts_as_absent() -> None:
    required = [(name.decode().replace("ce-", "ce_"), text) for name, text in REQUIRED]
    event = from_kafka([*required, ("ce_x", None), ("content-type", None)], None)
    assert (event.extensions, event.datacontenttype, event.data) == ({}, None, b"")


def test_headers_that_are_not_the_events_are_left_out() -> None:
    assert from_http([*REQUIRED, (b"host", b"a"), (b"x-ce-a", b"b"), (b"host", b"c"), (b"cookie", b"\xff")], b"").extensions == {}


def test_a_request_and_its_response_have_the_same_key() -> None:
    extensions = {"namespace": "default", "inferenceservicename": "iris"}
    assert to_kafka(Event("1", "s", REQUEST, extensions=extensions))[0] == b"default/iris"


@pytest.mark.parametrize("kind", [b"\xa1", b"\xa0", b"\xb1", b"\xb0"], ids=lambda kind: kind.hex())
def test_headers_that_came_to_the_topic_by_amqp_are_read_without_their_type(kind):
    def encoded(text):
        size = bytes([len(text)]) if kind[0] < 0xB0 else len(text).to_bytes(4, "big")
        return kind + size + text.encode()

    plain = {"ce_specversion": "1.0", "ce_id": "a", "ce_source": "pod", "ce_type": "io.driftloop.label", "content-type": "application/json"}
    assert from_kafka([(name, encoded(text)) for name, text in plain.items()], b"{}") == from_kafka(
        [(name, text.encode()) for name, text in plain.items()], b"{}"
    )
    with pytest.raises(EventError, match="not UTF-8"):
        from_kafka([("ce_id", kind + b"\x09a"), *((name, text.encode()) for name, text in plain.items() if name != "ce_id")], b"{}")
