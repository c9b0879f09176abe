"""What was put into the spool last, in memory: so much of it as is bounded; the spool has all of it."""

from collections import deque
from typing import NamedTuple

from inference.event import Message

FRESH_EVENTS = 5_000
FRESH_BYTES = 16_000_000

Numbered = tuple[int, Message]
"""An event's number in the spool, and the event as its Kafka message."""


class _Batch(NamedTuple):
    first: int
    messages: list[Message]
    size: int

    @property
    def end(self) -> int:
        return self.first + len(self.messages)


class Fresh:
    """Events that follow each other without a gap, as they were appended. Not safe for threads."""

    def __init__(self) -> None:
        self._batches: deque[_Batch] = deque()
        self.events = self.bytes = 0

    def put(self, first: int, messages: list[Message], size: int) -> None:
        """Everything that is appended, in order: the number of the first, and the bytes of all."""
        if self.events + len(messages) > FRESH_EVENTS or self.bytes + size > FRESH_BYTES:
            # Whoever is so far behind reads the spool. What comes from now on is of use to him once he has read up to it.
            self._batches.clear()
            self.events = self.bytes = 0
        if len(messages) <= FRESH_EVENTS and size <= FRESH_BYTES:
            self._batches.append(_Batch(first, messages, size))
            self.events += len(messages)
            self.bytes += size

    def take(self, number: int, limit: int) -> list[Numbered]:
        """At most `limit` events from this number on; none, where what comes next is only in the spool. Those before it are forgotten."""
        taken: list[Numbered] = []
        while self._batches and len(taken) < limit:
            first, messages, size = self._batches[0]
            skipped = number + len(taken) - first
            if skipped < 0:
                break
            taken += enumerate(messages[skipped : skipped + limit - len(taken)], first + skipped)
            if number + len(taken) < self._batches[0].end:
                break
            self._batches.popleft()
            self.events -= len(messages)
            self.bytes -= size
        return taken
