"""A message that is read quickly is read as it would be carefully: same event, same refusal, whatever came before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import event as module
from inference.errors import EventError
from inference.event import MAX_ATTRIBUTES, Event, from_http, from_kafka, from_kafka_text, kafka_headers, lasting_message, to_kafka

NAMES = ["specversion", "id", "source", "type", "time", "namespace", "subject", "data", "datacontenttype", "bad_name", "é", *"abcdefgh"]
VALUES = ["1.0", "", "x", "é ", "a\tb", "\x85", "\u2028", "application/json", "application/cloudevents+json", "y" * 5_000, "z" * 20_000]
REQUIRED = [("specversion", "1.0"), ("id", "1"), ("source", "s"), ("type", "t")]

attributes = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=8).flatmap(
    lambda more: st.permutations([*REQUIRED, *more]) | st.just(more)
)
content_types = st.sampled_from([None, "application/json", "Application/CloudEvents+json", "application/cloudevents-batch+json", ""])
raw = st.none() | st.binary(max_size=3)


def forget():
    for known in (module._http_names, module._kafka_names, module._kafka_headers, module._binary_types):
        known.clear()


def learn():
    """Have seen every name and content type that can be right."""
    good = [name for name in NAMES if name.isascii() and name.isalnum() and name not in ("data", "datacontenttype")]
    values = {**dict.fromkeys(good, "x"), **dict(REQUIRED)}
    for case in (str, str.capitalize):
        headers = [(case(f"ce-{name}").encode(), value.encode()) for name, value in values.items()]
        from_http([*headers, (b"content-type", b"application/json"), (b"host", b"x")], b"")
        from_kafka([*((f"ce_{name}", value.encode()) for name, value in values.items()), ("content-type", b"application/json")], b"")


def outcome(read, *message):
    try:
        return read(*message)
    except EventError as error:
        return error.reason, str(error)


@given(attributes, content_types, st.sampled_from([b"", b"{}", b'{"specversion": "1.0"}']), st.booleans())
def test_http_is_read_the_same_way_cold_and_warm(chosen, content_type, body, capital):
    headers = [((f"Ce-{name}" if capital else f"ce-{name}").encode("utf-8"), value.encode()) for name, value in chosen]
    if content_type is not None:
        headers.append((b"content-type", content_type.encode()))
    headers.append((b"accept", b"\xff"))
    forget()
    cold = outcome(from_http, headers, body)
    learn()
    assert outcome(from_http, headers, body) == outcome(from_http, iter(headers), body) == cold
    forget()


@given(attributes, content_types, raw, st.booleans())
def test_kafka_is_read_the_same_way_cold_and_warm(chosen, content_type, odd, null):
    headers = [(f"ce_{name}", value.encode()) for name, value in chosen]
    if content_type is not None:
        headers.append(("content-type", content_type.encode()))
    headers.append(("ce_a" if null else "other", odd))
    forget()
    cold = outcome(from_kafka, headers, b"{}")
    learn()
    assert outcome(from_kafka, headers, b"{}") == cold
    forget()


@given(attributes, content_types)
def test_text_is_read_as_its_bytes(chosen, content_type):
    headers = [(f"ce_{name}", value) for name, value in chosen]
    if content_type is not None:
        headers.append(("content-type", content_type))
    forget()
    cold = outcome(from_kafka, [(name, value.encode()) for name, value in headers], b"{}")
    learn()
    assert outcome(from_kafka_text, headers, b"{}") == cold
    forget()


made_by_hand = st.builds(
    Event,
    id=st.sampled_from(VALUES),
    source=st.sampled_from(VALUES),
    type=st.sampled_from(["", "t"]),
    time=st.sampled_from(VALUES),
    datacontenttype=st.none() | st.sampled_from(VALUES),
    extensions=st.dictionaries(st.sampled_from([*NAMES, "UPPER"]), st.sampled_from(VALUES), max_size=5),
    data=st.sampled_from([b"", b"{}", bytearray(b"{}")]),
)


@given(made_by_hand)
def test_what_is_said_to_last_does_last(event):
    learn()
    headers = module._lasting_headers(event)
    if headers is not None:
        assert sorted(headers) == sorted(kafka_headers(event))
        assert from_kafka_text(headers, event.data) == event
        _, raw_headers, value = to_kafka(event)
        assert from_kafka(raw_headers, value) == event
    forget()


def test_an_event_that_was_read_is_told_to_last_at_a_glance():
    learn()
    event = from_http([*((f"ce-{name}".encode(), value.encode()) for name, value in REQUIRED), (b"ce-a", b"x")], b"{}")
    assert module._lasting_headers(event) is not None
    for changed in ({"id": ""}, {"type": ""}, {"data": bytearray(b"{}")}, {"extensions": {"UPPER": "x"}}, {"extensions": {"a": 1}}):
        fields = {name: getattr(event, name) for name in Event.__struct_fields__}
        assert module._lasting_headers(Event(**fields | changed)) is None


@pytest.mark.parametrize("count", [MAX_ATTRIBUTES - 4, MAX_ATTRIBUTES - 3])
def test_the_number_of_attributes_is_bounded_for_known_names_too(count):
    headers = [*((f"ce-{name}".encode(), value.encode()) for name, value in REQUIRED), *((f"ce-x{n}".encode(), b"1") for n in range(count))]
    for _ in range(2):
        told = outcome(from_http, headers[:40], b"")
        assert isinstance(told, Event)
        from_http([*headers[:4], *headers[40:]], b"")
        told = outcome(from_http, headers, b"")
        assert isinstance(told, Event) == (count == MAX_ATTRIBUTES - 4)


def test_what_is_remembered_of_names_from_outside_is_bounded():
    required = [(f"ce-{name}".encode(), value.encode()) for name, value in REQUIRED]
    for number in range(1_500):
        from_http([*required, (b"x-%d" % number, b""), (b"ce-e%d" % number, b"1"), (b"content-type", b"a/b%d" % number)], b"")
        from_kafka([*((f"ce_{name}", value.encode()) for name, value in REQUIRED), (f"ce_e{number}", b"1"), (f"y{number}", b"")], b"")
    remembered = len(module._kafka_headers) + len(module._binary_types)
    assert max(len(module._http_names), len(module._kafka_names), remembered) <= 1_002
    assert isinstance(from_http(required, b""), Event)


@given(made_by_hand)
def test_an_event_that_would_not_last_is_refused_before_it_is_written(event):
    try:
        key, headers, value = lasting_message(event)
    except EventError as error:
        assert error.reason == "unreadable"
        return
    assert (key, value) == (event.model, event.data)
    assert from_kafka_text(headers, value) == event
