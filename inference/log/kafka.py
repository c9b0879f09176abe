"""Apache Kafka as the event log, by kafka-python: CloudEvents' Kafka binding, one topic, all events of a model on one partition."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal

from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.partitioner.default import murmur2

from inference.errors import EventError, LogUnavailable
from inference.event import Event, Message
from inference.log import Record, grown_beyond
from inference.log.connection import Connection
from inference.log.credentials import EntraTokens
from inference.log.kafka_batches import append_batches
from inference.log.kafka_records import milliseconds, record_of
from inference.log.kafka_settings import KafkaClients

_APPEND_SECONDS = 66.0
_BLOCK_SECONDS = 8.0
_ANSWER_MS = 15_000
# Longer than Event Hubs makes a reader wait.
_READ_SECONDS = 75.0
_FETCH_MS = 200
_POLL_SECONDS = 0.05
# Event Hubs' Standard tier takes 1 MB an event and closes the connection on a request over 1,046,528 bytes.
_MAX_REQUEST = 1_040_000


class KafkaLog:
    """An `EventLog` on a topic that is there already; every partition is read by this process.

    `append` waits for the broker's acknowledgement by all in-sync replicas, for `patience` seconds: a broker that throttles
    (Event Hubs makes answers wait for up to a minute) is slow, not away. What it could not deliver in time may still have been
    delivered in part: who repeats it doubles events, and readers drop doubles. Appending and reading may go on in two threads.
    After a failure the client is closed and the next call makes a new one: no memory is held for what will be appended anew,
    and no state outlives an outage.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        tokens: EntraTokens | None = None,
        clock: Callable[[], float] = time.time,
        patience: float = _APPEND_SECONDS,
    ) -> None:
        self._clients = KafkaClients(connection, tokens=tokens)
        self.address = self._clients.address
        self._clock = clock
        self._patience = patience
        self._producer: Any = None
        self._consumer: Any = None
        self._at: dict[TopicPartition, int] = {}
        with self._consuming() as consumer:
            self._partitions: list[int] = self._clients.partitions(consumer)

    def append(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """As `EventLog.append`, but a part may be on the log when it fails; EventError: an event is too large for the broker."""
        return self.append_messages([Message.of(event) for event in events])

    def append_messages(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """As `append`, for who has them as messages."""
        if not messages:
            return []
        now = int(self._clock() * 1000)
        try:
            with self._clients.translated():
                return append_batches(self._producing(), self.address.topic, messages, self.partition_of, now, timeout=self._patience)
        except LogUnavailable as error:
            error.appended = getattr(error.__cause__, "appended", error.appended)
            self._drop_producer()
            raise
        except EventError:
            self._drop_producer()
            raise

    def read(self, positions: Mapping[int, int], limit: int = 1000) -> list[Record]:
        """As `EventLog.read`; an empty list means that nothing stands at or after the positions."""
        wanted = {TopicPartition(self.address.topic, partition): offset for partition, offset in positions.items()}
        with self._consuming() as consumer:
            if wanted.keys() != consumer.assignment():
                # A poll gives what is assigned, and nobody asked for the other partitions.
                consumer.assign(list(wanted))
                self._at = {}
            for place, offset in wanted.items():
                if self._at.get(place) != offset:
                    consumer.seek(place, offset)
            # Only what stands there when it is asked for is waited for; the fetch itself takes a moment.
            ends: Mapping[TopicPartition, int] | None = None
            while not (polled := consumer.poll(timeout_ms=0 if ends is None else _FETCH_MS, max_records=limit)):
                if ends is None:
                    ends = consumer.end_offsets(list(wanted), timeout_ms=_ANSWER_MS)
                    deadline = time.monotonic() + _READ_SECONDS
                if all(consumer.position(place, timeout_ms=_ANSWER_MS) >= ends[place] for place in wanted):
                    break
                if time.monotonic() > deadline:
                    raise KafkaTimeoutError(f"nothing came of what stands there, within {_READ_SECONDS:.0f} s")
            records = [
                record_of(m.topic, m.partition, m.offset, m.timestamp, m.headers, m.value) for messages in polled.values() for m in messages
            ]
            self._at = {**wanted, **{place: messages[-1].offset + 1 for place, messages in polled.items()}}
        return records

    def wait_for(self, positions: Mapping[int, int], timeout: float) -> bool:
        """As `EventLog.wait_for`; it asks the broker where the log ends."""
        return grown_beyond(self.end_positions, positions, timeout, pause=_POLL_SECONDS)

    def start_positions(self) -> dict[int, int]:
        return self._offsets("beginning_offsets")

    def end_positions(self) -> dict[int, int]:
        return self._offsets("end_offsets")

    def positions_at(self, time: float) -> dict[int, int]:
        asked = {TopicPartition(self.address.topic, number): milliseconds(time) for number in self._partitions}
        ends = self.end_positions()
        with self._consuming() as consumer:
            found = consumer.offsets_for_times(asked, timeout_ms=_ANSWER_MS)
        return {place.partition: ends[place.partition] if at is None else at.offset for place, at in found.items()}

    def partition_of(self, model: str) -> int:
        """As Kafka's own clients place a key, so that other producers' events of a model stand beside ours."""
        number: int = murmur2(model.encode()) & 0x7FFFFFFF
        return self._partitions[number % len(self._partitions)]

    def may_write(self) -> bool | None:
        """Whether the broker says that we may append; None where it does not tell."""
        with self._consuming() as consumer:
            return self._clients.may_write(consumer)

    def committed(self, group: str) -> dict[int, int | None]:
        """How far the group told the broker that it is, on each partition; LogUnavailable where it may not be asked."""
        with self._clients.translated(), closing(self._clients.consumer(group_id=group, enable_auto_commit=False)) as consumer:
            return {
                number: consumer.committed(TopicPartition(self.address.topic, number), timeout_ms=_ANSWER_MS) for number in self._partitions
            }

    def close(self) -> None:
        self._drop_producer()
        self._drop_consumer()

    def _offsets(self, which: Literal["beginning_offsets", "end_offsets"]) -> dict[int, int]:
        with self._consuming() as consumer:
            found = getattr(consumer, which)(
                [TopicPartition(self.address.topic, number) for number in self._partitions], timeout_ms=_ANSWER_MS
            )
        return {place.partition: offset for place, offset in found.items()}

    @contextmanager
    def _consuming(self) -> Iterator[Any]:
        """The consumer, its errors translated; a failure closes it."""
        try:
            with self._clients.translated():
                if self._consumer is None:
                    self._consumer = self._clients.consumer(
                        group_id=None,
                        enable_auto_commit=False,
                        auto_offset_reset="earliest",
                        check_crcs=True,
                        # A fetch of partitions that are not asked for any more is waited for.
                        fetch_max_wait_ms=_FETCH_MS // 2,
                    )
                yield self._consumer
        except BaseException:
            self._drop_consumer()
            raise

    def _drop_consumer(self) -> None:
        if self._consumer is not None:
            consumer, self._consumer, self._at = self._consumer, None, {}
            consumer.close()

    def _producing(self) -> Any:
        if self._producer is None:
            self._producer = self._clients.producer(
                acks="all",
                enable_idempotence=False,
                # One request at a time: a retry must not be overtaken, or a model's events would change their order.
                max_in_flight_requests_per_connection=1,
                max_request_size=_MAX_REQUEST,
                linger_ms=2,
                max_block_ms=int(_BLOCK_SECONDS * 1000),
                request_timeout_ms=int(self._patience * 10_000) // 11,
                delivery_timeout_ms=int(self._patience * 1000),
            )
        return self._producer

    def _drop_producer(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.drop()
