"""From a message of a topic to a record of the log, for both Kafka clients."""

from collections.abc import Sequence

from inference.errors import EventError
from inference.event import Event, from_kafka
from inference.log import Record

UNREADABLE = "io.driftloop.unreadable"
"""The type given to a message that is no CloudEvent: it keeps its place, its body, and belongs to no model."""


def record_of(
    topic: str, partition: int, offset: int, timestamp_ms: int, headers: Sequence[tuple[str, bytes]] | None, value: bytes | None
) -> Record:
    """The record that a message is; one that is no CloudEvent is of type `UNREADABLE`, with the reason in its extensions."""
    try:
        event = from_kafka(headers or [], value)
    except EventError as error:
        id_ = f"{topic}/{partition}/{offset}"
        event = Event(id_, "driftloop", UNREADABLE, extensions={"reason": error.reason}, data=value or b"")
    return Record(partition, offset, timestamp_ms / 1000.0, event)
