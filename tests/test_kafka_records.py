"""Messages to records: what templates say of a message is what reading it header by header says, whatever came before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import EventError
from inference.event import REQUEST, RESPONSE, Event, from_kafka, kafka_headers
from inference.log.kafka_records import MAX_TEMPLATES, UNREADABLE, Templates, record_of

SHARED = [("specversion", "1.0"), ("source", "pod"), ("type", REQUEST), ("namespace", "ns"), ("annotations", "{}"), ("endpoint", "")]
OWN = [("id", "1"), ("time", "2026-10-01T00:00:00Z"), ("recordedtime", "now"), ("metadata", '{"a":["b"]}'), ("traceparent", "00-1")]
VALUES = [b"1", b"", b"x", "é".encode(), b"\xff", b"a\tb", "\u2028".encode(), b"\xa1\x01x", b"1.0", b"z" * 20_000, b"y" * 5_000, None]


def headers_of(attributes):
    return [(f"ce_{name}", value.encode()) for name, value in attributes] + [("content-type", b"application/json")]


@st.composite
def conversations(draw):
    """Messages of a few pods: usual ones, and ones of which anything may have changed."""
    usual = headers_of(draw(st.permutations([*SHARED, *OWN])))
    messages = [usual]
    for _ in range(draw(st.integers(1, 6))):
        headers = [*draw(st.sampled_from([usual, headers_of([*SHARED, *OWN[:2]]), *messages]))]
        for _ in range(draw(st.integers(0, 3))):
            place = draw(st.integers(0, len(headers) - 1))
            name, value = headers[place]
            headers[place] = draw(
                st.sampled_from([(name, value), (name.upper(), value), ("host", value), ("ce_other", value), ("ce_id", value)])
                | st.tuples(st.just(name), st.sampled_from(VALUES))
            )
        for change in draw(st.lists(st.sampled_from(["drop", "repeat", "swap"]), max_size=1)):
            place = draw(st.integers(0, len(headers) - 1))
            if change == "drop":
                del headers[place]
            elif change == "repeat":
                headers.append(headers[place])
            else:
                headers[0], headers[place] = headers[place], headers[0]
        messages.append(headers)
    return messages


def careful(headers, body):
    try:
        event = from_kafka(headers, body)
    except EventError as error:
        return error.reason
    return event, kafka_headers(event)


def quick(templates, headers, body):
    event = templates.event(headers, body)
    return careful(headers, body) if event is None else (event, kafka_headers(event))


@given(conversations(), st.sampled_from([None, b"", b"{}"]))
def test_a_template_says_what_the_headers_say(messages, body):
    templates = Templates()
    for headers in messages:
        careful(headers, body)
    for headers in [*messages, *messages]:
        assert quick(templates, headers, body) == careful(headers, body)


@given(conversations())
def test_a_record_is_the_event_of_its_message_or_unreadable_with_the_reason(messages):
    for offset, headers in enumerate(messages):
        record = record_of("topic", 3, offset, 1_500, headers, b"body")
        assert (record.partition, record.offset, record.timestamp, record.event.data) == (3, offset, 1.5, b"body")
        told = careful(headers, b"body")
        if isinstance(told, str):
            event = record.event
            assert (event.type, event.id, event.extensions) == (UNREADABLE, f"topic/3/{offset}", {"reason": told})
        else:
            assert record.event == told[0]


def test_what_differs_from_event_to_event_needs_no_new_template():
    templates = Templates()
    from_kafka(headers_of([*SHARED, *OWN]), b"")
    for kind in (REQUEST, RESPONSE):
        for number in range(50):
            said = dict([*SHARED, *OWN]) | {"type": kind} | {name: f"{name}{number}" for name, _ in OWN}
            event = templates.event(headers_of(said.items()), b"")
            assert event is not None
            assert (event.type, event.id, event.time) == (kind, f"id{number}", f"time{number}")
            assert (event.extensions["metadata"], event.extensions["namespace"]) == (f"metadata{number}", "ns")
    assert len(templates) == 2


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", range(len(SHARED) + len(OWN)))
def test_a_template_fits_only_what_is_usual(place, value):
    usual = headers_of([*OWN, *SHARED])
    templates = Templates()
    careful(usual, b"")
    templates.event(usual, b"")
    changed = [*usual[:place], (usual[place][0], value), *usual[place + 1 :]]
    assert quick(templates, changed, b"") == careful(changed, b"")


def test_an_event_does_not_change_with_the_next_one():
    templates = Templates()
    from_kafka(headers_of([*SHARED, *OWN]), b"")
    headers = [headers_of([*SHARED, *OWN[:2], ("metadata", text)]) for text in "abc"]
    first, second, third = (templates.event(one, b"") for one in headers)
    assert [event.extensions["metadata"] for event in (first, second, third)] == ["a", "b", "c"]


@pytest.mark.parametrize("said", ["x" * 2_000, "é" * 600])
def test_templates_are_small(said):
    templates = Templates()
    headers = headers_of([*SHARED, ("note", said), *OWN])
    from_kafka(headers, b"")
    for _ in range(2):
        event = templates.event(headers, b"")
        assert event is not None
        assert event.extensions["note"] == said
    assert len(templates) == 0


def test_templates_are_bounded_and_go_on():
    templates = Templates()
    from_kafka(headers_of([*SHARED, *OWN]), b"")
    for number in range(MAX_TEMPLATES + 10):
        event = templates.event(headers_of([*SHARED[2:], ("specversion", "1.0"), ("source", f"pod-{number}"), *OWN]), b"")
        assert isinstance(event, Event)
        assert event.source == f"pod-{number}"
        again = templates.event(headers_of([*SHARED[2:], ("specversion", "1.0"), ("source", f"pod-{number}"), *OWN]), b"")
        assert again == event
    assert len(templates) == 10
