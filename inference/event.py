"""The CloudEvent value, its HTTP and Kafka bindings, and the types that travel on the log.

Reading is ours (plain header reading costs a tenth of the SDK's decoding); building our own events is the `cloudevents`
SDK's, and the SDK is the oracle of the conformance tests. Attribute values are taken as they stand: KServe does not
percent-encode the JSON in `ce-metadata` and `ce-annotations`, and decoding would damage it. What comes in is held to the
specification where it matters further on: names are lower-case letters and digits, and no value holds a control
character, so that no attribute can forge a header on its way out.

A message is read quickly if nothing about it is unusual, else carefully, one check after the other; both ways come to the same.
"""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec
import orjson
from cloudevents.conversion import to_binary
from cloudevents.http import CloudEvent

from inference.errors import EventError

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
LABEL = "io.driftloop.label"
PROMOTED = "io.driftloop.model.promoted"
RETRAINING_FINISHED = "io.driftloop.retraining.finished"
ACTION_FINISHED = "io.driftloop.action.finished"
VERDICT = "io.driftloop.verdict"
DRIFT_DETECTED = "io.driftloop.drift.detected"

STRUCTURED = "application/cloudevents+json"
IDS = UUID("6f1c5b0e-2f0b-5d0e-9a52-7d1d0c9c4a11")
"""The namespace of every deterministic id driftloop makes."""

MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_LENGTH = 16_384
_EPOCH = datetime.fromtimestamp(0, UTC)
_NAME = re.compile(r"[a-z0-9]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# What was found out about names and content types, which come again and again: the attribute that a header carries ("": none),
# the header that carries an extension, and content types of binary mode. Bounded, as they come from outside.
_MAX_KNOWN = 1_000
_http_names: dict[bytes, str] = {}
_kafka_names: dict[str, str] = {}
_kafka_headers: dict[str, str] = {}
_binary_types: set[str] = set()


class Event(msgspec.Struct, frozen=True, gc=False):
    """One CloudEvent 1.0. A struct of msgspec's: one is made for each event on the hot path, a frozen dataclass costs ten times as much.

    `time` is the RFC 3339 text as it came, or "". `extensions` holds every attribute that has no field of its own
    (`subject` and `dataschema` included), names in lower case. `data` is the exact body. Identity is (source, id, type):
    KServe gives a request and its response the same id.
    """

    id: str
    source: str
    type: str
    time: str = ""
    datacontenttype: str | None = None
    extensions: Mapping[str, str] = msgspec.field(default_factory=dict)
    data: bytes = b""

    @property
    def model(self) -> str:
        """`<namespace>/<inferenceservice>`: the log's key and the model's name everywhere."""
        return f"{self.extensions.get('namespace', '')}/{self.extensions.get('inferenceservicename', '')}"


def deterministic_id(*parts: object) -> str:
    """A UUID made of `parts`: the same parts give the same id on every machine, so a repeat is seen as one."""
    return str(uuid5(IDS, "\x1f".join(str(part) for part in parts)))


def now_text(now: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def seconds_of(text: str) -> float:
    """An RFC 3339 time as seconds since 1970, to the microsecond; NaN for a text that is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (time - _EPOCH).total_seconds() if time.tzinfo else math.nan


def own_event(type_: str, data: Mapping[str, Any], *, model: str, source: str, id_: str, now: float) -> Event:
    """An event of ours about `model` ("namespace/inferenceservice") with a JSON body; built by the SDK."""
    namespace, _, name = model.partition("/")
    attributes = {
        "type": type_,
        "source": source,
        "id": id_,
        "time": now_text(now),
        "datacontenttype": "application/json",
        "namespace": namespace,
        "inferenceservicename": name,
    }
    headers, body = to_binary(CloudEvent(attributes, dict(data)), data_marshaller=orjson.dumps)
    return from_http([(k.encode(), v.encode()) for k, v in headers.items()], body)


def from_http(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Event:
    """Read an HTTP message in binary or structured mode; EventError says what is missing or out of bounds."""
    headers = headers if isinstance(headers, list) else list(headers)
    event = _quickly(headers, _http_names, body)
    return event if event is not None else _http_carefully(headers, body)


def _http_carefully(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Event:
    attributes: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        _learn(_http_names, raw_name, name.decode("latin-1"), "ce-")
        if name == b"content-type":
            _put(attributes, "datacontenttype", raw_value)
        # The binding carries the content type in the header of that name only.
        elif name.startswith(b"ce-") and name != b"ce-datacontenttype":
            _put(attributes, name[3:].decode("latin-1"), raw_value)
    return _from_structured(body) if _is_structured(attributes) else _checked(attributes, body)


def to_http(event: Event) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of the event in HTTP binary mode. A value that is not ASCII belongs on the wire as UTF-8 (`value.encode()`)."""
    headers = [("Ce-Specversion", "1.0"), ("Ce-Id", event.id), ("Ce-Source", event.source), ("Ce-Type", event.type)]
    if event.time:
        headers.append(("Ce-Time", event.time))
    headers.extend((f"Ce-{name.capitalize()}", value) for name, value in event.extensions.items())
    if event.datacontenttype is not None:
        headers.append(("Content-Type", event.datacontenttype))
    return headers, event.data


def to_kafka(event: Event) -> tuple[bytes, list[tuple[str, bytes]], bytes]:
    """Key, headers and value of the event in the Kafka protocol binding's binary mode; the key is the model's name."""
    return event.model.encode(), [(name, value.encode()) for name, value in kafka_headers(event)], event.data


def kafka_headers(event: Event) -> list[tuple[str, str]]:
    """The headers of `to_kafka`, their values as text."""
    headers = [("ce_specversion", "1.0"), ("ce_id", event.id), ("ce_source", event.source), ("ce_type", event.type)]
    if event.time:
        headers.append(("ce_time", event.time))
    headers.extend([(f"ce_{name}", value) for name, value in event.extensions.items()])
    if event.datacontenttype is not None:
        headers.append(("content-type", event.datacontenttype))
    return headers


class Message(NamedTuple):
    """An event as its Kafka message: the model's name, `kafka_headers`, and the exact body. It is carried on without being read."""

    key: str
    headers: Sequence[tuple[str, str]]
    value: bytes

    @classmethod
    def of(cls, event: Event) -> "Message":
        return cls(event.model, kafka_headers(event), event.data)


def lasting_message(event: Event) -> Message:
    """The event's message; EventError when it would be another event after its way through a log, which can't take it back."""
    headers = _lasting_headers(event)
    if headers is not None:
        return Message(event.model, headers, event.data)
    _, written, value = to_kafka(event)
    try:
        same = from_kafka(written, value) == event
    except EventError as error:
        raise EventError("unreadable", f"the event {event.id[:100]!r} could not be read back from a log: {error}") from error
    if not same:
        raise EventError(
            "unreadable", f"the event {event.id[:100]!r} would change on a log; attribute names must be lower case, its data bytes"
        )
    return Message.of(event)


def _lasting_headers(event: Event) -> list[tuple[str, str]] | None:
    """`kafka_headers`, if it can be told at a glance that the event is the same after a way through Kafka; None: try it."""
    id_, source, type_, extensions = event.id, event.source, event.type, event.extensions
    headers = [("ce_specversion", "1.0"), ("ce_id", id_), ("ce_source", source), ("ce_type", type_)]
    try:
        headers += [(_kafka_headers[name], value) for name, value in extensions.items()]
        text = "".join([id_, source, type_, event.time, event.datacontenttype or "", *extensions.values()])
    except (KeyError, TypeError):
        return None
    if not text.isprintable() or 4 * len(text) > MAX_ATTRIBUTE_LENGTH or len(headers) > MAX_ATTRIBUTES - 2:
        return None
    if event.time:
        headers.append(("ce_time", event.time))
    if event.datacontenttype is not None:
        if event.datacontenttype not in _binary_types:
            return None
        headers.append(("content-type", event.datacontenttype))
    return headers if id_ and source and type_ and type(event.data) is bytes else None


def from_kafka(headers: Sequence[tuple[str, bytes | None]], value: bytes | None) -> Event:
    """Read a Kafka message in binary or structured mode; the key only routes and carries nothing. A null header counts as absent."""
    event = _quickly(headers, _kafka_names, value or b"")
    return event if event is not None else _kafka_carefully(headers, value)


def usual_from_kafka(headers: Sequence[tuple[str, bytes | None]], value: bytes | None) -> Event | None:
    """As `from_kafka`, if nothing about the message is unusual; None: `from_kafka` tells what it is."""
    return _quickly(headers, _kafka_names, value or b"")


def kafka_attribute(name: str) -> str:
    """The attribute that a header of this name carries in a message that `usual_from_kafka` could read; "": none."""
    return _kafka_names[name]


def from_kafka_text(headers: Sequence[tuple[str, str]], value: bytes) -> Event:
    """As `from_kafka`, from `kafka_headers`."""
    attributes = {}
    count = 0
    try:
        for name, text in headers:
            if attribute := _kafka_names[name]:
                attributes[attribute] = text
                count += 1
        event = _usual(attributes, count, value)
    except KeyError:
        event = None
    return event if event is not None else from_kafka([(name, text.encode()) for name, text in headers], value)


def _quickly(headers: Iterable[tuple[Any, bytes | None]], known: Mapping[Any, str], body: bytes) -> Event | None:
    """The event of a message in binary mode that is right and whose names are `known`, else None: it has to be read carefully."""
    attributes = {}
    count = 0
    try:
        for raw_name, raw_value in headers:
            if name := known[raw_name]:
                attributes[name] = raw_value.decode()  # type: ignore[union-attr]  # a null header is an AttributeError
                count += 1
    except (KeyError, AttributeError, UnicodeDecodeError):
        return None
    return _usual(attributes, count, body)


def _usual(attributes: dict[str, str], count: int, body: bytes) -> Event | None:
    """The event, if nothing about its attributes is unusual; `count` is how many there were, with those that are there twice."""
    text = "".join(attributes.values())
    take = attributes.pop
    if take("specversion", "") != "1.0" or len(attributes) != count - 1:
        return None
    if count > MAX_ATTRIBUTES or 4 * len(text) > MAX_ATTRIBUTE_LENGTH or not text.isprintable():
        return None
    id_, source, type_ = take("id", ""), take("source", ""), take("type", "")
    content_type = take("datacontenttype", None)
    if not (id_ and source and type_) or (content_type is not None and content_type not in _binary_types):
        return None
    return Event(id_, source, type_, take("time", ""), content_type, attributes, body)


def _learn(known: dict[Any, str], raw_name: Any, name: str, prefix: str) -> None:
    """Remember which attribute a header of this name carries ("": none), unless the name can't be right."""
    attribute = "datacontenttype" if name == "content-type" else ""
    # The binding carries the content type in the header of that name only.
    if name.startswith(prefix) and name[3:] != "datacontenttype":
        attribute = name[3:]
        if not _NAME.fullmatch(attribute) or attribute == "data":
            return
    if len(known) >= _MAX_KNOWN:
        known.clear()
    known[raw_name] = attribute


def _kafka_carefully(headers: Sequence[tuple[str, bytes | None]], value: bytes | None) -> Event:
    attributes: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        _learn(_kafka_names, raw_name, name, "ce_")
        if raw_value is None:
            continue
        if name == "content-type":
            _put(attributes, "datacontenttype", _bare(raw_value))
        elif name.startswith("ce_") and name != "ce_datacontenttype":
            _put(attributes, name[3:], _bare(raw_value))
    body = value or b""
    return _from_structured(body) if _is_structured(attributes) else _checked(attributes, body)


def _bare(raw: bytes) -> bytes:
    """A header's value without AMQP's type and length, as Event Hubs shows Kafka readers what came in by AMQP. No UTF-8 begins so."""
    if len(raw) >= 2 and raw[0] in b"\xa0\xa1" and raw[1] == len(raw) - 2:
        return raw[2:]
    if len(raw) >= 5 and raw[0] in b"\xb0\xb1" and int.from_bytes(raw[1:5], "big") == len(raw) - 5:
        return raw[5:]
    return raw


def _put(attributes: dict[str, str], name: str, raw: bytes) -> None:
    if name in attributes:
        raise EventError("duplicate_attribute", f"the attribute {name[:40]!r} is there twice; which one holds is anyone's guess")
    if len(raw) > MAX_ATTRIBUTE_LENGTH:
        raise _too_long(name, len(raw))
    try:
        attributes[name] = raw.decode()
    except UnicodeDecodeError as error:
        raise EventError("attribute_not_utf8", f"the attribute {name[:40]!r} is not UTF-8: {raw[:40]!r}") from error


def _is_structured(attributes: Mapping[str, str]) -> bool:
    media_type = _media_type(attributes.get("datacontenttype"))
    if not media_type.startswith("application/cloudevents"):
        return False
    if media_type != STRUCTURED:
        raise EventError("unsupported_mode", f"content type {media_type[:80]!r}; send one event, as {STRUCTURED} or in binary mode")
    return True


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _from_structured(body: bytes) -> Event:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EventError("bad_json", f"a structured event must be one JSON object: {error}") from error
    if not isinstance(document, dict):
        raise EventError("bad_json", f"a structured event must be one JSON object, not {type(document).__name__}")
    data = document.pop("data", None)
    encoded = document.pop("data_base64", None)
    _check_count(document)
    attributes = {name: _attribute_text(name, value) for name, value in document.items() if value is not None}
    if data is not None and not attributes.get("datacontenttype"):
        attributes["datacontenttype"] = "application/json"
    return _checked(attributes, _structured_body(data, encoded, attributes.get("datacontenttype")))


def _structured_body(data: Any, encoded: Any, content_type: str | None) -> bytes:
    if encoded is not None:
        if data is not None:
            raise EventError("bad_data", "an event has either data or data_base64, not both")
        try:
            return base64.b64decode(encoded, validate=True)
        except (ValueError, TypeError) as error:
            raise EventError("bad_data", "data_base64 is not base64 text") from error
    if data is None:
        return b""
    if isinstance(data, str) and not _media_type(content_type).endswith(("/json", "+json")):
        return data.encode()
    try:
        return orjson.dumps(data)
    except TypeError as error:
        raise EventError("bad_data", "data is nested deeper than 250 levels; send it in binary mode") from error


def _attribute_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) or (isinstance(value, int) and name != "datacontenttype"):
        text = str(value)
        size = len(text.encode())
        if size > MAX_ATTRIBUTE_LENGTH:
            raise _too_long(name, size)
        return text
    raise EventError("bad_attribute", f"attribute {name[:40]!r} must be text, a whole number or a boolean, not {type(value).__name__}")


def _too_long(name: str, size: int) -> EventError:
    return EventError("attribute_too_long", f"the attribute {name[:40]!r} has {size} bytes; at most {MAX_ATTRIBUTE_LENGTH} are accepted")


def _check_count(attributes: Mapping[str, Any]) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise EventError("too_many_attributes", f"{len(attributes)} attributes; at most {MAX_ATTRIBUTES} are accepted")


def _checked(attributes: dict[str, str], body: bytes) -> Event:
    _check_count(attributes)
    for name, value in attributes.items():
        if not _NAME.fullmatch(name) or name == "data":
            raise EventError("bad_attribute", f"{name[:80]!r} is no attribute name (1 to 64 lower-case letters and digits, not 'data')")
        if not value.isprintable() and _CONTROL.search(value):
            raise EventError("bad_attribute", f"the attribute {name!r} holds a control character: {value[:80]!r}")
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            raise EventError(f"missing_{name}", f"the CloudEvents attribute {name!r} is missing or empty")
    if attributes["specversion"] != "1.0":
        raise EventError("unsupported_specversion", f"specversion {attributes['specversion'][:20]!r}; only 1.0 is supported")
    del attributes["specversion"]
    content_type = attributes.pop("datacontenttype", None) or None
    event = Event(
        id=attributes.pop("id"),
        source=attributes.pop("source"),
        type=attributes.pop("type"),
        time=attributes.pop("time", ""),
        datacontenttype=content_type,
        extensions=attributes,
        data=body,
    )
    if len(_kafka_headers) + len(_binary_types) >= _MAX_KNOWN:
        _kafka_headers.clear()
        _binary_types.clear()
    _kafka_headers.update((name, f"ce_{name}") for name in attributes)
    if content_type is not None and not _media_type(content_type).startswith("application/cloudevents"):
        _binary_types.add(content_type)
    return event
