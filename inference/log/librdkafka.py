"""Apache Kafka as the event log, by librdkafka (confluent-kafka): the same promises as kafka.py, several times as fast."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AclOperation, AdminClient
from kafka.partitioner.default import murmur2

from inference.errors import EventError, LogUnavailable
from inference.event import Event, Message
from inference.log import Record, grown_beyond
from inference.log.connection import Connection
from inference.log.credentials import EntraTokens
from inference.log.kafka_records import milliseconds, record_of
from inference.log.librdkafka_settings import CONNECT_SECONDS, Librdkafka, consumed

_APPEND_SECONDS = 66.0
_ANSWER_SECONDS = 15.0
# Longer than Event Hubs makes a reader wait.
_READ_SECONDS = 75.0
_FETCH_SECONDS = 0.2
_LOOK_SECONDS = 2.0
_POLL_SECONDS = 0.05
_LATER_SECONDS = 0.2
# Event Hubs' Standard tier takes 1 MB an event and closes the connection on a request over 1,046,528 bytes.
_MAX_REQUEST = 1_040_000
_BATCH_BYTES = 500_000
_BATCH_EVENTS = 20_000
_OVERHEAD, _HEADER_OVERHEAD = 40, 6
"""Bytes of an event beside its key, headers and value, and of each header beside its name and text: no less."""
_NOBODY = "driftloop-reader"
_encode = msgspec.msgpack.Encoder().encode
_END = KafkaError._PARTITION_EOF


class LibrdkafkaLog:
    """An `EventLog` on a topic that is there already; every partition is read by this process.

    `append` waits for the broker's acknowledgement by all in-sync replicas, for `patience` seconds: a broker that throttles
    (Event Hubs makes answers wait for up to a minute) is slow, not away. What it could not deliver in time may still have been
    delivered in part: who repeats it doubles events, and readers drop doubles. Appending and reading may go on in two threads.
    After a failed append what was not answered is purged: nothing is delivered behind the caller's back.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        tokens: EntraTokens | None = None,
        clock: Callable[[], float] = time.time,
        patience: float = _APPEND_SECONDS,
    ) -> None:
        self._client = Librdkafka(connection, tokens=tokens)
        self.address = self._client.address
        self._clock = clock
        self._patience = patience
        self._producer: Any = None
        self._at: dict[int, int] = {}
        self._consumer = self._client.consumer(
            group_id=_NOBODY,
            enable_auto_commit=False,
            enable_partition_eof=True,
            auto_offset_reset="earliest",
            # As kafka-python reads: both see the same log.
            isolation_level="read_uncommitted",
            check_crcs=True,
            # A fetch that waits for more would hold up the next one, which may be of other partitions.
            fetch_wait_max_ms=20,
        )
        try:
            self._partitions = self._client.partitions(self._consumer)
        except BaseException:
            self._consumer.close()
            raise

    def append(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """As `EventLog.append`, but a part may be on the log when it fails; EventError: an event is too large for the broker."""
        return self.append_messages([Message.of(event) for event in events])

    def append_messages(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """As `append`, for who has them as messages."""
        places: dict[int, tuple[int, int]] = {}
        now, deadline = int(self._clock() * 1000), time.monotonic() + self._patience
        try:
            # As one: a batch that had no time left may owe that to a throttle of an earlier one.
            with self._client.translated():
                for batch in self._batches(messages):
                    self._send(messages, batch, now, deadline, places)
        except LogUnavailable as error:
            error.appended = frozenset(places)
            raise
        finally:
            self._purge()
        return [places[index] for index in range(len(messages))]

    def read(self, positions: Mapping[int, int], limit: int = 1000) -> list[Record]:
        """As `EventLog.read`; an empty list means that nothing stands at or after the positions."""
        if self._at != positions:
            self._at = {}
        # Only what stands there when it is asked for is waited for; the fetch itself takes a moment.
        ends: Mapping[int, int] | None = None
        began = looked = time.monotonic()
        with self._client.translated():
            while not (records := self._fetched(positions, limit, 0.0 if ends is None else _FETCH_SECONDS)):
                now = time.monotonic()
                if ends is None:
                    ends = self.end_positions()
                elif now - began > _READ_SECONDS:
                    raise LogUnavailable(f"{self.address}: nothing came of what stands there, within {_READ_SECONDS:.0f} s")
                elif now - looked > _LOOK_SECONDS:
                    self.end_positions()
                    looked = now
                if all(self._at.get(number, -1) >= ends[number] for number in positions):
                    break
        return records

    def wait_for(self, positions: Mapping[int, int], timeout: float) -> bool:
        """As `EventLog.wait_for`; it asks the broker where the log ends."""
        return grown_beyond(self.end_positions, positions, timeout, pause=_POLL_SECONDS)

    def start_positions(self) -> dict[int, int]:
        return self._offsets(OFFSET_BEGINNING)

    def end_positions(self) -> dict[int, int]:
        return self._offsets(OFFSET_END)

    def positions_at(self, time: float) -> dict[int, int]:
        ends = self.end_positions()
        # Behind the newest record librdkafka gives its mark for the end.
        return {number: ends[number] if offset < 0 else offset for number, offset in self._offsets(milliseconds(time)).items()}

    def partition_of(self, model: str) -> int:
        """As Kafka's own clients place a key, so that other producers' events of a model stand beside ours."""
        number: int = murmur2(model.encode()) & 0x7FFFFFFF
        return self._partitions[number % len(self._partitions)]

    def may_write(self) -> bool | None:
        """Whether the broker says that we may append; None where it does not tell."""
        admin, topic = AdminClient(self._client.configuration()), self.address.topic
        asked = admin.describe_topics(TopicCollection([topic]), include_authorized_operations=True, request_timeout=_ANSWER_SECONDS)
        with self._client.translated():
            rights = asked[topic].result().authorized_operations
        return AclOperation.WRITE in rights if rights else None

    def committed(self, group: str) -> dict[int, int | None]:
        """How far the group told the broker that it is, on each partition; LogUnavailable where it may not be asked."""
        # An AdminClient can be asked too, but a coordinator that does not know yet, as after a start, makes librdkafka 2.16 crash.
        places = [TopicPartition(self.address.topic, number) for number in self._partitions]
        deadline = time.monotonic() + _ANSWER_SECONDS
        with closing(self._client.consumer(group_id=group, enable_auto_commit=False)) as consumer, self._client.translated():
            while True:
                try:
                    found = consumer.committed(places, timeout=_LOOK_SECONDS)
                    break
                except KafkaException as error:
                    told = consumer.poll(0)
                    if told is not None and not told.error().retriable():
                        raise KafkaException(told.error()) from error
                    if time.monotonic() > deadline:
                        raise
        return {place.partition: place.offset if place.offset >= 0 else None for place in found}

    def close(self) -> None:
        self._producer = None
        self._consumer.close()

    def _batches(self, messages: Sequence[Message]) -> list[dict[int, list[int]]]:
        """Which messages go out together, in order: the indexes of each partition's part, which is one batch. EventError comes first."""
        partitions: dict[str, int] = {}
        batches: list[dict[int, list[int]]] = []
        filled: dict[int, int] = {}
        start = 0
        for index, (key, headers, value) in enumerate(messages):
            if (partition := partitions.get(key)) is None:
                partition = partitions[key] = self.partition_of(key)
            # A little more than its bytes.
            size = len(_encode((key, headers, value))) + _OVERHEAD + _HEADER_OVERHEAD * len(headers)
            if size > _MAX_REQUEST:
                raise EventError("too_large", f"{self.address}: an event is larger than the broker takes: {size} bytes with its headers")
            there = filled.get(partition, 0)
            if not batches or (there and there + size > _BATCH_BYTES) or index - start >= _BATCH_EVENTS:
                batches.append({})
                filled, start, there = {}, index, 0
            batches[-1].setdefault(partition, []).append(index)
            filled[partition] = there + size
        return batches

    def _send(
        self,
        messages: Sequence[Message],
        batch: Mapping[int, Sequence[int]],
        now: int,
        deadline: float,
        places: dict[int, tuple[int, int]],
    ) -> None:
        """Have a batch of each partition acknowledged; `places` gets (partition, offset) of each event that is on the topic."""
        producer, topic = self._producing(), self.address.topic
        told: dict[int, tuple[KafkaError | None, int]] = {}
        producer.poll(0.0)  # what it had to complain of before
        for partition, indexes in batch.items():
            ends = (indexes[0], indexes[-1])
            for index in indexes:
                key, headers, value = messages[index]
                # A batch is there as a whole or not at all: its first event and its last tell of all of them.
                tell: Any = partial(_tell, told, index) if index in ends else None
                producer.produce(topic, value, key, partition, tell, timestamp=now, headers=headers)
        try:
            self._flush(producer, deadline)
        finally:
            for partition, indexes in batch.items():
                first, last = (told.get(index, (None, -1))[1] for index in (indexes[0], indexes[-1]))
                if first >= 0 and last - first == len(indexes) - 1:
                    places.update((index, (partition, first + delta)) for delta, index in enumerate(indexes))
        failed = [error for error, _ in told.values() if error is not None]
        if failed:
            raise KafkaException(failed[0])
        if not all(indexes[0] in places for indexes in batch.values()):
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT, f"not acknowledged within {self._patience:g} s"))

    def _flush(self, producer: Any, deadline: float) -> None:
        """Send what was put, and wait for all of it until the deadline; LogUnavailable as soon as there is nobody to send it to."""
        looked = time.monotonic()
        while producer.flush(min(_LOOK_SECONDS, max(deadline - time.monotonic(), 0.0))) and time.monotonic() < deadline:
            if self._client.cause(looked):
                # A connection broke: is there anybody to make a new one to?
                self._client.partitions(producer, since=looked)
                looked = time.monotonic()

    def _producing(self) -> Any:
        if self._producer is None:
            self._producer = self._client.producer(
                acks="all",
                # It asks for rights that Event Hubs does not give, and one error of its own, 44 included, ends it for good.
                enable_idempotence=False,
                # A partition's events wait for `flush` to become one batch, which is there as a whole or not at all: with one of them
                # on its way, none can overtake another.
                linger_ms=int(self._patience * 500),
                batch_num_messages=_BATCH_EVENTS,
                batch_size=_MAX_REQUEST,
                message_max_bytes=_MAX_REQUEST,
                request_timeout_ms=int(self._patience * 1000 / 1.1),
                # By then it is purged: the first events of a batch would be given up a moment before its last.
                delivery_timeout_ms=int(self._patience * 2000),
            )
        return self._producer

    def _purge(self) -> None:
        """Forget what was not answered, and the client with it: no state outlives an outage."""
        if self._producer is not None and len(self._producer):
            producer, self._producer = self._producer, None
            producer.purge()
            producer.flush(0.1)

    def _offsets(self, which: int) -> dict[int, int]:
        # Where a time is asked for, Kafka's protocol takes -1 for the end and -2 for the beginning: one request for all partitions.
        places = [TopicPartition(self.address.topic, number, which) for number in self._partitions]
        began = time.monotonic()
        with self._client.translated():
            while True:
                try:
                    # All at once: a request that is given up costs the connection, and with it the fetch of a broker that is just slow.
                    found = self._consumer.offsets_for_times(places, timeout=_ANSWER_SECONDS)
                    break
                except KafkaException:
                    # Once more, if there is anybody; what was fetched will be fetched anew.
                    self._at = {}
                    self._client.partitions(self._consumer)
                    self._consumer.poll(0)
                    if time.monotonic() - began > CONNECT_SECONDS:
                        raise
                    time.sleep(_LATER_SECONDS)
            for place in found:
                if place.error is not None:
                    raise KafkaException(place.error)
        return {place.partition: place.offset for place in found}

    def _fetched(self, positions: Mapping[int, int], limit: int, timeout: float) -> list[Record]:
        if not self._at:
            self._consumer.assign([TopicPartition(self.address.topic, number, offset) for number, offset in positions.items()])
            self._at = dict(positions)
        records, at, topic = [], self._at, self.address.topic
        for message in consumed(self._consumer, limit, timeout):
            error, number, offset = message.error(), message.partition(), message.offset()
            if error is None:
                # What was fetched before the last seek may still come.
                if offset >= at.get(number, offset + 1):
                    at[number] = offset + 1
                    records.append(record_of(topic, number, offset, message.timestamp()[1], message.headers(), message.value()))
            elif error.code() == _END:
                # Behind the last record may stand a marker of a transaction, which is no record.
                at[number] = max(at.get(number, 0), offset)
            elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED and not error.retriable():
                # It asks for its group too, of which it is no member.
                raise KafkaException(error)
        return records


def _tell(told: dict[int, tuple[KafkaError | None, int]], index: int, error: KafkaError | None, message: Any) -> None:
    told[index] = (error, message.offset() if error is None else -1)
