"""Reading the log in batches: one loop for the live consumer, which follows, and for a replay, which ends."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from inference.errors import LogUnavailable
from inference.log import EventLog, Record

log = logging.getLogger(__name__)

BATCH = 2000
T = TypeVar("T")
_IDLE = 0.25
_LONGEST_PAUSE = 5.0


def everything(event_log: EventLog) -> Iterator[list[Record]]:
    """Every record from the oldest to the newest there is at the time of the call."""
    until = event_log.end_positions()
    positions = event_log.start_positions()
    # Partitions end one by one: what is new on one must not hide what is old on another.
    while unread := {partition: offset for partition, offset in positions.items() if offset < until.get(partition, 0)}:
        records = event_log.read(unread, BATCH)
        if not records:
            return
        positions = _after(positions, records)
        if old := _before(records, until):
            yield old


def following(event_log: EventLog, stop: threading.Event) -> Iterator[list[Record]]:
    """Every record from the oldest on, without end; an empty batch when there is nothing new, so that the caller can tick.

    A log that is away is tried again, with a growing pause; ends when `stop` is set.
    """
    positions = _patiently(event_log.start_positions, stop)
    while positions is not None and not stop.is_set():
        records = _patiently(partial(event_log.read, positions, BATCH), stop)
        if records is None:
            return
        positions = _after(positions, records)
        yield records
        if not records:
            _patiently(partial(event_log.wait_for, positions, _IDLE), stop)


def _patiently(call: Callable[[], T], stop: threading.Event) -> T | None:
    pause = 0.1
    while not stop.is_set():
        try:
            result = call()
        except LogUnavailable as error:
            if pause == 0.1:
                log.warning("the log is away, trying again: %s", error)
            stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if pause > 0.1:
                log.warning("the log is back")
            return result
    return None


def _before(records: list[Record], until: Mapping[int, int]) -> list[Record]:
    return [record for record in records if record.offset < until.get(record.partition, 0)]


def _after(positions: Mapping[int, int], records: list[Record]) -> dict[int, int]:
    reached = dict(positions)
    for record in records:
        reached[record.partition] = record.offset + 1
    return reached
