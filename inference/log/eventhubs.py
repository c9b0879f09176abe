"""Azure Event Hubs as the event log, by AMQP: for the Basic tier, networks that only let port 443 out, and SAS tokens."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from azure.eventhub import EventDataBatch, EventHubProducerClient
from kafka.partitioner.default import murmur2

from inference.errors import EventError, LogCorrupt, LogError
from inference.event import Event
from inference.log import Record
from inference.log.connection import Connection
from inference.log.eventhubs_client import READERS, Hub, to_message
from inference.log.eventhubs_receiver import Receiver

logger = logging.getLogger(__name__)

UNTOLD = -1
"""The offset of an event that is on the log, but the service does not tell where."""

# Longer than the SDK's two tries.
_SEND_SECONDS = 10.0
_APPEND_SECONDS = 25.0
_READ_SECONDS = 20.0
_LEAVE_SECONDS = 3.0


class EventHubsLog:
    """An `EventLog` on an event hub that is there already; an offset is Event Hubs' sequence number.

    `append` waits for the service's acknowledgement, and does not learn offsets (`UNTOLD`). What it could not deliver in time
    may have been delivered in part, or be so yet: who repeats it doubles events, and readers drop doubles. Each partition that
    is read has a connection and a thread, until other partitions are read. Reading does not own anything: up to five may read
    a partition at the same time, in the consumer group `$Default`. Appending and reading may go on in two threads.
    """

    def __init__(self, connection: Connection, *, credential: Any = None) -> None:
        self.hub = Hub(connection, credential=credential)
        self.address = self.hub.address
        self.partitions = self.hub.partitions()
        self._producer: EventHubProducerClient | None = None
        self._appending = threading.Lock()
        self._reading = threading.RLock()
        self._changed = threading.Condition()
        self._receivers: dict[int, Receiver] = {}
        self._leaving: dict[int, Receiver] = {}
        # Where a partition ended when that was last asked: up to there, what has not come yet will.
        self._ends: dict[int, int] = {}
        self._turn = 0

    def append(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """As `EventLog.append`, but a part may be on the log when it fails, and the offsets are `UNTOLD`.

        EventError: an event is too large for the hub; nothing was appended. LogThrottled: the service asks for a slower pace.
        """
        if not events:
            return []
        with self._appending:
            try:
                batches = self._batches(events)
                sends = [partial(self._send, self._producer, ready) for ready in batches.values()]
                self.hub.run(sends, _APPEND_SECONDS)
            except LogError:
                self._drop_producer()
                raise
        return [(self.partition_of(event.model), UNTOLD) for event in events]

    def read(self, positions: Mapping[int, int], limit: int = 1000) -> list[Record]:
        """As `EventLog.read`. What stands on the hub when it is called is waited for; LogUnavailable when it does not come."""
        with self._reading, self.hub.translated():
            receivers = self._at(positions)
            if not _waiting(receivers) and not any(map(self._to_come, receivers)):
                self._look(positions)
            deadline = time.monotonic() + _READ_SECONDS
            while not self._arrived(receivers, limit):
                with self._changed:
                    self._changed.wait_for(partial(self._arrived, receivers, limit), 0.2)
                receivers = self._at(positions)
                if time.monotonic() >= deadline:
                    # Retention may have dropped what was to come.
                    self._look(positions)
                    break
            taken = self._take(receivers, limit)
            if not taken and not self._arrived(receivers, limit):
                raise TimeoutError(f"what stands on the hub did not come within {_READ_SECONDS:g} s")
            return taken

    def wait_for(self, positions: Mapping[int, int], timeout: float) -> bool:
        """As `EventLog.wait_for`; what is new is sent to us, so nothing is asked while we wait."""
        deadline = time.monotonic() + timeout
        with self._reading, self.hub.translated():
            receivers = self._at(positions)
            if not all(receiver.attached for receiver in receivers) and any(
                end > max(start, positions[number]) for number, (start, end) in self.hub.bounds(positions).items()
            ):
                return True
            while not _waiting(receivers):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                with self._changed:
                    self._changed.wait_for(partial(_waiting, receivers), min(left, 0.2))
                receivers = self._at(positions)
            return True

    def start_positions(self) -> dict[int, int]:
        return {number: start for number, (start, _) in self.hub.bounds(self.partitions).items()}

    def end_positions(self) -> dict[int, int]:
        return {number: end for number, (_, end) in self.hub.bounds(self.partitions).items()}

    def positions_at(self, time: float) -> dict[int, int]:
        return self.hub.positions_at(self.partitions, time)

    def partition_of(self, model: str) -> int:
        """As Kafka's clients place a key, so that a model's events stand together whichever endpoint they came in by."""
        number: int = murmur2(model.encode()) & 0x7FFFFFFF
        return self.partitions[number % len(self.partitions)]

    def close(self) -> None:
        with self._appending:
            self._drop_producer()
        with self._reading:
            self._let_go(list(self._receivers))
            deadline = time.monotonic() + _LEAVE_SECONDS
            for receiver in self._leaving.values():
                receiver.join(deadline)

    def _batches(self, events: Iterable[Event]) -> dict[int, list[EventDataBatch]]:
        """By partition, in order, each as large as the service takes; all are made before the first is sent."""
        if self._producer is None:
            producer = self.hub.producer()
            # Asks the service how large a batch may be.
            self.hub.run([producer.create_batch], _APPEND_SECONDS)
            self._producer = producer
        batches: dict[int, list[EventDataBatch]] = defaultdict(list)
        for event in events:
            number = self.partition_of(event.model)
            message, ready = to_message(event), batches[number]
            try:
                if not ready:
                    ready.append(self._producer.create_batch(partition_id=str(number)))
                ready[-1].add(message)
            except ValueError:
                ready.append(self._producer.create_batch(partition_id=str(number)))
                try:
                    ready[-1].add(message)
                except ValueError as error:
                    size, most = len(event.data), ready[-1].max_size_in_bytes
                    text = f"the event {event.id[:100]!r} has {size} bytes of data, and the hub takes {most} bytes with all headers"
                    raise EventError("too_large", f"{self.address}: {text}") from error
        return batches

    @staticmethod
    def _send(producer: EventHubProducerClient, batches: Sequence[EventDataBatch]) -> None:
        for batch in batches:
            producer.send_batch(batch, timeout=_SEND_SECONDS)

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # A send that hangs holds what `close` needs.
            threading.Thread(target=producer.close, daemon=True, name="eventhubs-close").start()

    def _at(self, positions: Mapping[int, int]) -> list[Receiver]:
        """A receiver at each position and no other. One that failed is replaced, but an error when it never came to receive."""
        if unknown := sorted(positions.keys() - self.partitions):
            raise LogCorrupt(f"{self.address}: a position names partition {unknown[0]}, and the hub has {len(self.partitions)} partitions")
        self._let_go([number for number, receiver in self._receivers.items() if positions.get(number) != receiver.position])
        for number, receiver in list(self._receivers.items()):
            if receiver.failure is not None and not receiver.waiting:
                self._let_go([number])
                if not receiver.attached:
                    raise self.hub.told(receiver.failure) from receiver.failure
                logger.info("%s: partition %d is read anew: %s", self.address, number, receiver.failure)
        for number in positions.keys() - self._receivers.keys():
            # The service counts readers: the one before must have gone.
            if (before := self._leaving.pop(number, None)) is not None:
                before.join(time.monotonic() + _LEAVE_SECONDS)
                if before.alive:
                    self._leaving[number] = before
                    raise TimeoutError(f"an earlier connection to partition {number} has not ended")
            self._receivers[number] = Receiver(self.hub, READERS, number, positions[number], self._changed)
        return [self._receivers[number] for number in positions]

    def _let_go(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            receiver = self._receivers.pop(number)
            self._ends.pop(number, None)
            receiver.close()
            self._leaving[number] = receiver

    def _look(self, positions: Mapping[int, int]) -> None:
        """Ask where the partitions end."""
        for number, (start, end) in self.hub.bounds(positions).items():
            if positions[number] > end:
                # Silence would be worse: a reader would skip what comes until the hub has grown up to its position.
                raise LogCorrupt(
                    f"{self.address}: position {positions[number]} of partition {number} lies beyond its end {end}; the positions belong to"
                    " another hub, or this one was made anew: start from its start positions"
                )
            self._ends[number] = end if start < end else 0

    def _to_come(self, receiver: Receiver) -> bool:
        """Whether something of what stood on the partition, when that was last asked, is still under way."""
        return receiver.reached < self._ends.get(receiver.partition, 0)

    def _arrived(self, receivers: Sequence[Receiver], limit: int) -> bool:
        """Whether there is no use in waiting: as many as were asked for are here, or all that stands there, or all that may be held."""
        if _waiting(receivers) >= limit:
            return True
        return all(
            not self._to_come(receiver) or receiver.full or (receiver.waiting and receiver.failure is not None) for receiver in receivers
        )

    def _take(self, receivers: Sequence[Receiver], limit: int) -> list[Record]:
        # Another partition is the first each time, or the last would starve.
        self._turn += 1
        turn = self._turn % (len(receivers) or 1)
        taken: list[Record] = []
        for receiver in [*receivers[turn:], *receivers[:turn]]:
            taken += receiver.take(limit - len(taken))
        return taken


def _waiting(receivers: Iterable[Receiver]) -> int:
    """How many records could be taken at once."""
    return sum(receiver.waiting for receiver in receivers)
