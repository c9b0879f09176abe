"""Recordings: one CloudEvent a line as JSON (structured mode), with its place on the log it came from, plain, gzip or zstd.

    {"specversion": "1.0", "id": "...", "source": "...", "type": "...", ..., "driftloopplace": "PARTITION:OFFSET",
     "driftlooptime": "2026-10-01T00:00:00.123456Z", "data": {...}}

The two attributes of ours are what makes the verdicts and ids of a replay those of the log itself. Lines of others, without them, are
taken as one partition, in their order. A body that is JSON stands as it is, byte for byte, any other in `data_base64`.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import orjson
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import astuple

from inference.errors import EventError
from inference.event import MAX_ATTRIBUTE_LENGTH, STRUCTURED, Event, from_http, seconds_of
from inference.log import Record
from streaming.sources.files import BROKEN, File, lines_of, opened
from streaming.sources.rfc3339 import seconds, text
from streaming.sources.seam import BATCH, Stretch, Unreadable

PLACE, TIME = "driftloopplace", "driftlooptime"
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst")

_Text = str | UnsetType


class _Line(msgspec.Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    """A line with no attribute but these; any other line is read with care."""

    specversion: Literal["1.0"]
    driftloopplace: str
    driftlooptime: str
    data: Raw = Raw()
    data_base64: str | None = None
    time: str = ""
    # Of each event its own.
    metadata: _Text = UNSET
    recordedtime: _Text = UNSET
    traceparent: _Text = UNSET
    tracestate: _Text = UNSET
    id: str
    # Those that many events have in common.
    source: str
    type: str
    datacontenttype: str | None = None
    namespace: _Text = UNSET
    inferenceservicename: _Text = UNSET
    component: _Text = UNSET
    endpoint: _Text = UNSET
    annotations: _Text = UNSET
    partitionkey: _Text = UNSET
    subject: _Text = UNSET


_OWN, _SHARED = _Line.__struct_fields__[6:10], _Line.__struct_fields__[14:]
_MAX_TEMPLATES = 5_000
_read = msgspec.json.Decoder(_Line).decode
_read_parts = msgspec.json.Decoder(dict[str, Raw]).decode


class RecordingSource:
    """The events of recordings, file after file."""

    def __init__(self, files: list[File], name: str, stretch: Stretch) -> None:
        self.name = name
        self.unreadable = Unreadable()
        self.notes: list[str] = []
        self._files = files
        self._stretch = stretch
        self._ordinal = 0
        self._newest = 0.0
        self._reached: dict[int, int] = {}

    def __iter__(self) -> Iterator[list[Record]]:
        for file in self._files:
            line = 0
            try:
                with opened(file) as stream:
                    for lines in lines_of(stream, BATCH):
                        if kept := self._stretch.kept(self._records(file, line, lines)):
                            yield kept
                        line += len(lines)
            except BROKEN as error:
                self.unreadable.add(f"{file.name}:{line + 1}", f"the file cannot be read further: {error}")

    def _records(self, file: File, before: int, lines: list[bytes]) -> list[Record]:
        records = []
        reached = self._reached
        for number, line in enumerate(lines, before + 1):
            try:
                record = self._record(line)
            except (EventError, msgspec.MsgspecError, ValueError, RecursionError) as error:
                if line.strip() or line == b"\n":
                    self.unreadable.add(f"{file.name}:{number}", "longer than a record may be" if line == b"\n" else str(error))
                continue
            if record.offset < reached.get(record.partition, 0):
                place = f"{record.partition}:{record.offset}"
                self.unreadable.add(f"{file.name}:{number}", f"{place} stands behind later ones of its partition, or is there twice")
                continue
            reached[record.partition] = record.offset + 1
            records.append(record)
        return records

    def _record(self, line: bytes) -> Record:
        try:
            read = _read(line)
            place, _, offset = read.driftloopplace.partition(":")
            return Record(int(place), int(offset), seconds(read.driftlooptime), _event(read))
        except (msgspec.MsgspecError, ValueError, RecursionError, KeyError):
            return self._carefully(line)

    def _carefully(self, line: bytes) -> Record:
        parts = _read_parts(line)
        place, time = parts.pop(PLACE, None), parts.pop(TIME, None)
        event = _structured(parts)
        if place is not None and time is not None:
            partition, _, offset = orjson.loads(bytes(place)).partition(":")
            return Record(int(partition), int(offset), seconds(orjson.loads(bytes(time))), event)
        occurred = seconds_of(event.time)
        # Their time of append is not known; it must not go back.
        self._newest = max(self._newest, occurred) if occurred == occurred else self._newest
        self._ordinal += 1
        return Record(0, self._ordinal - 1, self._newest, event)


def _event(read: _Line) -> Event:
    """KeyError: it takes a more careful look to say what it is."""
    _, _, _, raw, encoded, time, *own, id_, source, type_, content_type = (parts := astuple(read))[:14]
    shared = parts[11:]
    template = _templates.get(shared) or _learned(shared)
    extensions = template.extensions
    joined = id_ + time
    if own != _NONE:
        extensions = extensions.copy()
        for name, value in zip(_OWN, own, strict=True):
            if value is not UNSET:
                extensions[name] = value
                joined += value
    if not id_ or len(joined) > template.room or not joined.isprintable():
        raise KeyError
    data = bytes(raw)
    if data:
        if not template.json or data == b"null" or encoded is not None:
            raise KeyError
    elif encoded is not None:
        data = base64.b64decode(encoded, validate=True)
    return Event(id_, source, type_, time, content_type, extensions, data)


class _Template(NamedTuple):
    """What all lines with the same shared attributes have in common; `room` is how many characters their own ones may have."""

    extensions: dict[str, str]
    room: int
    json: bool


_NONE = [UNSET] * len(_OWN)
_templates: dict[tuple[Any, ...], _Template] = {}


def _learned(shared: tuple[Any, ...]) -> _Template:
    """KeyError: something about them is unusual."""
    source, type_, content_type, *values = shared
    extensions = {name: value for name, value in zip(_SHARED, values, strict=True) if value is not UNSET}
    joined = "".join([source, type_, content_type or "", *extensions.values()])
    room = MAX_ATTRIBUTE_LENGTH // 4 - len(joined)
    if not joined.isprintable() or room < 0 or not (source and type_) or content_type == "":
        raise KeyError
    if len(_templates) >= _MAX_TEMPLATES:
        _templates.clear()
    template = _templates[shared] = _Template(extensions, room, _is_json(content_type))
    return template


def _structured(parts: dict[str, Raw]) -> Event:
    """The event of any structured CloudEvent; its JSON data byte for byte."""
    data = parts.get("data")
    content_type = orjson.loads(bytes(parts["datacontenttype"])) if "datacontenttype" in parts else None
    exact = None
    if data is not None and bytes(data) != b"null" and "data_base64" not in parts and (content_type is None or _is_json(content_type)):
        exact = bytes(parts.pop("data"))
        parts["datacontenttype"] = Raw(orjson.dumps(content_type or "application/json"))
    body = orjson.dumps({name: orjson.Fragment(bytes(value)) for name, value in parts.items()})
    event = from_http([(b"content-type", STRUCTURED.encode())], body)
    return event if exact is None else msgspec.structs.replace(event, data=exact)


def _is_json(content_type: Any) -> bool:
    if content_type == "application/json":
        return True
    return isinstance(content_type, str) and content_type.partition(";")[0].strip().lower().endswith(("/json", "+json"))


def as_line(record: Record) -> bytes:
    """The record as a line of a recording, without its end."""
    event = record.event
    head = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    if event.time:
        head["time"] = event.time
    if event.datacontenttype is not None:
        head["datacontenttype"] = event.datacontenttype
    line = {**head, **event.extensions, PLACE: f"{record.partition}:{record.offset}", TIME: text(record.timestamp)}
    return _with_data(line, event)


def _with_data(line: Mapping[str, Any], event: Event) -> bytes:
    data = event.data
    if not data:
        return orjson.dumps(line)
    if _stands_as_it_is(event):
        written = orjson.dumps({**line, "data": orjson.Fragment(data)})
        try:
            if bytes(_read_parts(written)["data"]) == data:
                return written
        except (msgspec.MsgspecError, RecursionError):
            pass
    return orjson.dumps({**line, "data_base64": base64.b64encode(data).decode()})


def _stands_as_it_is(event: Event) -> bool:
    """Whether the body may be a part of the line: it is JSON, and says so, on one line."""
    data = event.data
    if not _is_json(event.datacontenttype) or b"\n" in data or data == b"null":
        return False
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True
