"""One partition of an event hub, read ahead by a thread of its own into a bounded buffer."""

import logging
import threading
import time
from collections import deque
from contextlib import closing
from typing import Any

from azure.eventhub import EventData
from azure.eventhub.exceptions import ConnectionLostError, EventHubError, OperationTimeoutError

from inference.log import Record
from inference.log.eventhubs_client import Hub, to_record

logger = logging.getLogger(__name__)

NEWEST = -1
"""A position: behind whatever stands there now."""

_BATCH = 300
_BUFFER_RECORDS = 2_000
_BUFFER_BYTES = 8 * 1024 * 1024
_ATTACH_SECONDS = 20.0


class Receiver:
    """Reads from `position` on until it is closed or fails; a failed one is replaced, not mended.

    With a `level` it is the partition's only reader in its consumer group: it pushes out those with a lower or no level, and
    fails when one with a higher level comes or is there. `changed` is notified whenever anything is worth another look.
    Holds some 2,000 records or 8 MB, whichever is less, and twice the SDK's 300 messages.
    """

    def __init__(
        self,
        hub: Hub,
        group: str,
        partition: int,
        position: int,
        changed: threading.Condition,
        *,
        level: int | None = None,
        silence: float | None = None,
    ) -> None:
        self.partition = partition
        self.position = position
        """The sequence number of the record that `take` gives next, or of the first that will come after it."""
        self.reached = position
        """All before this have been received."""
        self.attached = False
        """Whether the service has let us in; with a level and no failure, the partition is ours."""
        self._hub = hub
        self._group = group
        self._changed = changed
        self._level = level
        self._silence = silence
        self._began = time.monotonic()
        self._stop = False
        self._failure: Exception | None = None
        self._buffer: deque[Record] = deque()
        self._bytes = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"eventhubs-{partition}")
        self._thread.start()

    @property
    def failure(self) -> Exception | None:
        """Why it has ended by itself, if it has."""
        if self._failure is None and not self.attached and time.monotonic() - self._began > _ATTACH_SECONDS:
            self._failure = OperationTimeoutError(f"no answer within {_ATTACH_SECONDS:g} s")
        return self._failure

    @property
    def stolen(self) -> bool:
        """Whether it failed because another reader has a higher level."""
        return isinstance(self._failure, EventHubError) and self._failure.error == "link:stolen"

    @property
    def alive(self) -> bool:
        """Whether its thread is still there: after `close` it takes a moment to let go, or longer when nobody answers."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many records `take` would give at once."""
        return len(self._buffer)

    @property
    def full(self) -> bool:
        """Whether nothing more is received until something is taken."""
        return len(self._buffer) >= _BUFFER_RECORDS or self._bytes >= _BUFFER_BYTES

    def take(self, limit: int) -> list[Record]:
        """At most `limit` records, the oldest."""
        with self._changed:
            taken = [self._buffer.popleft() for _ in range(min(limit, len(self._buffer)))]
            if taken:
                self.position = taken[-1].offset + 1
                self._bytes -= sum(len(record.event.data) for record in taken)
                self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Stop, without waiting for the connection to be closed: it is within a second or so."""
        with self._changed:
            self._stop = True
            self._buffer.clear()
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        """Wait until it has let go, at most until `deadline` (monotonic)."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        failure: Exception | None = None
        try:
            with closing(self._hub.consumer(self._group, silence=self._silence)) as client:
                self._receive(client)
        except Exception as error:  # noqa: BLE001 - whoever asks for `failure` translates it
            failure = error
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _receive(self, client: Any) -> None:
        # `receive_batch` makes the same object, and calls the same method in a loop. But it does not tell when the link is there,
        # repeats a failed connection without pause or word, and lets a second thread read from the socket now and then to keep
        # it alive (`keep_alive`), which can swap two messages. This loop keeps it alive by itself.
        before = "@latest" if self.position == NEWEST else self.position - 1 if self.position > 0 else "-1"
        consumer = client._create_consumer(
            self._group, str(self.partition), before, self._received, owner_level=self._level, prefetch=_BATCH
        )
        consumer._keep_alive = None
        with closing(consumer):
            while not self._stop:
                consumer.receive(batch=True, max_batch_size=_BATCH)
                if consumer.handler_ready and not self.attached:
                    with self._changed:
                        self.attached = True
                        self._changed.notify_all()
                if not consumer.running and not self._stop:
                    # It could not connect, and does not say why: this does.
                    client.get_partition_properties(str(self.partition))
                    raise ConnectionLostError("the connection could not be made")

    def _received(self, messages: list[EventData]) -> None:
        records = [to_record(self._hub.address.hub, self.partition, message) for message in messages]
        with self._changed:
            self._changed.wait_for(lambda: self._stop or not self.full)
            if self._stop:
                return
            self._buffer.extend(records)
            self._bytes += sum(len(record.event.data) for record in records)
            if records:
                self.reached = records[-1].offset + 1
            self._changed.notify_all()
