"""From a message of a topic to a record of the log, for both Kafka clients.

Messages of one pod differ in a few headers only. What the others say is found out once and kept as a template: reading nine to
thirteen headers one by one would cost more than all else that is done with a record. A message that no template fits is read
header by header, which comes to the same.
"""

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from inference.errors import EventError
from inference.event import MAX_ATTRIBUTE_LENGTH, Event, from_kafka, kafka_attribute, usual_from_kafka
from inference.log import Record

UNREADABLE = "io.driftloop.unreadable"
"""The type given to a message that is no CloudEvent: it keeps its place, its body, and belongs to no model."""

Headers = Sequence[tuple[str, bytes | None]]

MAX_TEMPLATES = 5_000
_MAX_SHARED = 1_000
"""Characters in the headers that messages have in common; with more of them there is no template."""

_OWN = frozenset({"recordedtime", "metadata", "traceparent", "tracestate"})
"""Extensions that differ from event to event."""


class _Template(NamedTuple):
    """What all messages with the same shared headers have in common; `room` is how many characters their own ones may have."""

    source: str
    type: str
    datacontenttype: str | None
    extensions: dict[str, str]
    room: int


class _Shape(NamedTuple):
    """The headers' names, in order, and where what stands: the places of the id, the time, the own extensions, the shared headers."""

    id: int
    time: int
    own: tuple[tuple[str, int], ...]
    shared: "itemgetter[Any]"
    templates: dict[tuple[bytes | None, ...], _Template]


class Templates:
    """Reads messages as `usual_from_kafka` does, by what it learned from earlier ones. Bounded, as they come from outside."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._count = 0
        self._names: tuple[str, ...] = ()
        self._shape = _Shape(0, 0, (), itemgetter(0), {})

    def __len__(self) -> int:
        return self._count

    def event(self, headers: Headers, value: bytes | None) -> Event | None:
        """The event, or None: the message is unusual."""
        values: tuple[Any, ...]
        try:
            names, values = zip(*headers)  # noqa: B905 - every header is a pair, and asking for it costs half as much again
            if names != self._names:  # as a rule they are the last one's, and comparing is cheaper than looking up
                self._shape, self._names = self._shapes[names], names
            id_at, time_at, own, shared, templates = self._shape
            source, type_, content_type, extensions, room = templates[shared(values)]
            id_ = values[id_at].decode()
            time = values[time_at].decode()
            text = id_ + time
            if own:
                extensions = extensions.copy()
                for name, place in own:
                    extensions[name] = said = values[place].decode()
                    text += said
        except (KeyError, ValueError, AttributeError):  # not known, no headers, not UTF-8, a null header
            return self._unknown(headers, value)
        if not id_ or len(text) > room or not text.isprintable():
            return self._unknown(headers, value)
        return Event(id_, source, type_, time, content_type, extensions, value or b"")

    def _unknown(self, headers: Headers, value: bytes | None) -> Event | None:
        event = usual_from_kafka(headers, value)
        if event is not None:
            self._learn(headers, event)
        return event

    def _learn(self, headers: Headers, event: Event) -> None:
        names = tuple(name for name, _ in headers)
        places = {attribute: place for place, name in enumerate(names) if (attribute := kafka_attribute(name))}
        if "time" not in places:
            return
        own = {name: place for name, place in places.items() if name in _OWN}
        shared = [place for name, place in places.items() if name not in ("id", "time", *own)]
        values = [value for _, value in headers]
        length = sum(len(values[place] or b"") for place in shared)
        if length > _MAX_SHARED:
            return
        if self._count >= MAX_TEMPLATES:
            self._shapes, self._count, self._names = {}, 0, ()
        if names not in self._shapes:
            self._shapes[names] = _Shape(places["id"], places["time"], tuple(own.items()), itemgetter(*shared), {})
        shape = self._shapes[names]
        room = MAX_ATTRIBUTE_LENGTH // 4 - length
        shape.templates[shape.shared(values)] = _Template(
            event.source, event.type, event.datacontenttype, {**event.extensions, **dict.fromkeys(own, "")}, room
        )
        self._count += 1


_templates = Templates()


def milliseconds(time: float) -> int:
    """The first of Kafka's times that is not before `time`: of the time of a record, its own."""
    # To the microsecond first: a time that came from milliseconds would be rounded up by its last bit.
    return max(0, math.ceil(round(time * 1000.0, 3)))


def record_of(topic: str, partition: int, offset: int, timestamp_ms: int, headers: Headers | None, value: bytes | None) -> Record:
    """The record that a message is; one that is no CloudEvent is of type `UNREADABLE`, with the reason in its extensions."""
    event = _templates.event(headers or (), value)
    if event is None:
        try:
            event = from_kafka(headers or (), value)
        except EventError as error:
            id_ = f"{topic}/{partition}/{offset}"
            event = Event(id_, "driftloop", UNREADABLE, extensions={"reason": error.reason}, data=value or b"")
    return Record(partition, offset, timestamp_ms / 1000.0, event)
