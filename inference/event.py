"""The CloudEvent value, its HTTP and Kafka bindings, and the types that travel on the log.

Reading is ours (plain header reading costs a tenth of the SDK's decoding); building our own events is the `cloudevents`
SDK's, and the SDK is the oracle of the conformance tests. Attribute values are taken as they stand: KServe does not
percent-encode the JSON in `ce-metadata` and `ce-annotations`, and decoding would damage it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid5

import orjson
from cloudevents.conversion import to_binary
from cloudevents.http import CloudEvent

from inference.errors import EventError

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"
LABEL = "io.driftloop.label"
PROMOTED = "io.driftloop.model.promoted"
RETRAINING_FINISHED = "io.driftloop.retraining.finished"
VERDICT = "io.driftloop.verdict"
DRIFT_DETECTED = "io.driftloop.drift.detected"

STRUCTURED = "application/cloudevents+json"
IDS = UUID("6f1c5b0e-2f0b-5d0e-9a52-7d1d0c9c4a11")
"""The namespace of every deterministic id driftloop makes."""

MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_LENGTH = 16_384
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent 1.0.

    `time` is the RFC 3339 text as it came, or "". `extensions` holds every attribute that has no field of its own
    (`subject` and `dataschema` included), names in lower case. `data` is the exact body. Identity is (source, id, type):
    KServe gives a request and its response the same id.
    """

    id: str
    source: str
    type: str
    time: str = ""
    datacontenttype: str | None = None
    extensions: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
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
    attributes: dict[str, str] = {}
    content_type: str | None = None
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        if name.startswith(b"ce-"):
            attributes[name[3:].decode("latin-1")] = _text(raw_value)
        elif name == b"content-type":
            content_type = _text(raw_value)
    if content_type is not None and content_type.startswith("application/cloudevents"):
        if content_type.split(";")[0].strip().lower() != STRUCTURED:
            raise EventError("unsupported_mode", f"content type {content_type!r}; send one event, as {STRUCTURED} or in binary mode")
        return _from_structured(body)
    attributes.pop("datacontenttype", None)
    return _checked(attributes, content_type, body)


def to_http(event: Event) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of the event in HTTP binary mode."""
    headers = [("Ce-Specversion", "1.0"), ("Ce-Id", event.id), ("Ce-Source", event.source), ("Ce-Type", event.type)]
    if event.time:
        headers.append(("Ce-Time", event.time))
    headers.extend((f"Ce-{name.capitalize()}", value) for name, value in event.extensions.items())
    if event.datacontenttype is not None:
        headers.append(("Content-Type", event.datacontenttype))
    return headers, event.data


def to_kafka(event: Event) -> tuple[bytes, list[tuple[str, bytes]], bytes]:
    """Key, headers and value of the event in the Kafka protocol binding's binary mode; the key is the model's name."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.id.encode()),
        ("ce_source", event.source.encode()),
        ("ce_type", event.type.encode()),
    ]
    if event.time:
        headers.append(("ce_time", event.time.encode()))
    headers.extend((f"ce_{name}", value.encode()) for name, value in event.extensions.items())
    if event.datacontenttype is not None:
        headers.append(("content-type", event.datacontenttype.encode()))
    return event.model.encode(), headers, event.data


def from_kafka(headers: Sequence[tuple[str, bytes]], value: bytes | None) -> Event:
    """Read a Kafka message in binary or structured mode; the key only routes and carries nothing."""
    attributes: dict[str, str] = {}
    content_type: str | None = None
    for raw_name, raw_value in headers:
        name = raw_name.lower()
        if name.startswith("ce_"):
            attributes[name[3:]] = _text(raw_value)
        elif name == "content-type":
            content_type = _text(raw_value)
    body = value or b""
    if content_type is not None and content_type.startswith(STRUCTURED):
        return _from_structured(body)
    return _checked(attributes, content_type, body)


def _text(raw: bytes) -> str:
    if len(raw) > MAX_ATTRIBUTE_LENGTH:
        raise EventError("attribute_too_long", f"an attribute of {len(raw)} bytes; at most {MAX_ATTRIBUTE_LENGTH} are accepted")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise EventError("attribute_not_utf8", f"an attribute is not UTF-8: {raw[:40]!r}") from error


def _from_structured(body: bytes) -> Event:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EventError("bad_json", f"a structured event must be one JSON object: {error}") from error
    if not isinstance(document, dict):
        raise EventError("bad_json", f"a structured event must be one JSON object, not {type(document).__name__}")
    data = document.pop("data", None)
    base64 = document.pop("data_base64", None)
    content_type = document.pop("datacontenttype", None)
    if content_type is not None and not isinstance(content_type, str):
        raise EventError("bad_attribute", f"datacontenttype must be text, not {type(content_type).__name__}")
    attributes = {name.lower(): _attribute_text(name, value) for name, value in document.items() if value is not None}
    return _checked(attributes, content_type or "application/json", _structured_body(data, base64, content_type))


def _structured_body(data: Any, base64: Any, content_type: str | None) -> bytes:
    if base64 is not None:
        import base64 as codec

        if data is not None:
            raise EventError("bad_data", "an event has either data or data_base64, not both")
        try:
            return codec.b64decode(base64, validate=True)
        except (ValueError, TypeError) as error:
            raise EventError("bad_data", "data_base64 is not base64 text") from error
    if data is None:
        return b""
    is_json = content_type is None or content_type.split(";")[0].strip().endswith("json")
    return data.encode() if isinstance(data, str) and not is_json else orjson.dumps(data)


def _attribute_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        text = str(value)
        if len(text) > MAX_ATTRIBUTE_LENGTH:
            raise EventError("attribute_too_long", f"attribute {name[:40]!r} has {len(text)} characters; at most {MAX_ATTRIBUTE_LENGTH} are accepted")
        return text
    raise EventError("bad_attribute", f"attribute {name[:40]!r} must be text, a whole number or a boolean, not {type(value).__name__}")


def _checked(attributes: dict[str, str], content_type: str | None, body: bytes) -> Event:
    if len(attributes) > MAX_ATTRIBUTES:
        raise EventError("too_many_attributes", f"{len(attributes)} attributes; at most {MAX_ATTRIBUTES} are accepted")
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            raise EventError(f"missing_{name}", f"the CloudEvents attribute {name!r} is missing or empty")
    if attributes["specversion"] != "1.0":
        raise EventError("unsupported_specversion", f"specversion {attributes['specversion'][:20]!r}; only 1.0 is supported")
    del attributes["specversion"]
    return Event(
        id=attributes.pop("id"),
        source=attributes.pop("source"),
        type=attributes.pop("type"),
        time=attributes.pop("time", ""),
        datacontenttype=content_type,
        extensions=attributes,
        data=body,
    )
