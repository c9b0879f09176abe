"""Apache Kafka as the event log, by librdkafka (confluent-kafka): the same promises as kafka.py, several times as fast."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from kafka.partitioner.default import murmur2

from inference.errors import EventError, LogError, LogUnavailable
from inference.event import Event, to_kafka
from inference.log import Record, grown_beyond
from inference.log.connection import Connection
from inference.log.credentials import EntraTokens
from inference.log.kafka_records import record_of
from inference.log.librdkafka_settings import Librdkafka, consumed

_CONNECT_SECONDS = 6.0
_REQUEST_SECONDS = 60.0
_APPEND_SECONDS = 65.0
_FETCH_SECONDS = 0.2
_POLL_SECONDS = 0.05
# Event Hubs' Standard tier takes 1 MB an event and closes the connection on a request over 1,046,528 bytes.
_MAX_REQUEST = 1_040_000
_END = KafkaError._PARTITION_EOF


class LibrdkafkaLog:
    """An `EventLog` on a topic that is there already; every partition is read by this process.

    `append` waits for the broker's acknowledgement by all in-sync replicas, up to 65 s. What it could not deliver in time may
    still have been delivered in part: who repeats it doubles events, and readers drop doubles. Appending and reading may go on
    in two threads. After a failed append the producer is purged and dropped: nothing is delivered behind the caller's back.
    """

    def __init__(self, connection: Connection, *, tokens: EntraTokens | None = None, clock: Callable[[], float] = time.time) -> None:
        self._client = Librdkafka(connection, tokens=tokens)
        self.address = self._client.address
        self._clock = clock
        self._producer: Any = None
        self._at: dict[int, int] = {}
        settings = self._client.configuration(group_id="driftloop-reader", enable_auto_commit=False, enable_partition_eof=True)
        # A fetch that waits for more would hold up the next one, which may be of other partitions.
        self._consumer = Consumer({**settings, "auto.offset.reset": "earliest", "check.crcs": True, "fetch.wait.max.ms": 20})
        try:
            self._partitions = self._find_partitions()
        except BaseException:
            self._consumer.close()
            raise

    def append(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """As `EventLog.append`, but a part may be on the log when it fails; EventError: an event is too large for the broker."""
        if not events:
            return []
        now = int(self._clock() * 1000)
        told: list[tuple[int, int] | KafkaError | None] = [None] * len(events)

        def delivered(index: int) -> Callable[[KafkaError | None, Any], None]:
            def tell(error: KafkaError | None, message: Any) -> None:
                told[index] = error or (message.partition(), message.offset())

            return tell

        try:
            with self._client.translated():
                producer = self._producing()
                for index, event in enumerate(events):
                    key, headers, value = to_kafka(event)
                    place = self.partition_of(event.model)
                    producer.produce(self.address.topic, value, key, place, delivered(index), timestamp=now, headers=headers)
                producer.flush(_APPEND_SECONDS + 1.0)
            return self._acknowledged(told)
        except (LogError, EventError):
            self._drop_producer()
            raise

    def read(self, positions: Mapping[int, int], limit: int = 1000) -> list[Record]:
        """As `EventLog.read`; an empty list means that nothing stands at or after the positions."""
        with self._client.translated():
            if {number: self._at.get(number) for number in positions} != positions or self._at.keys() != positions.keys():
                self._consumer.assign([TopicPartition(self.address.topic, number, offset) for number, offset in positions.items()])
                self._at = dict(positions)
            # Only what stands there when it is asked for is waited for; the fetch itself takes a moment.
            ends: Mapping[int, int] | None = None
            while True:
                messages = consumed(self._consumer, limit, _FETCH_SECONDS if ends is not None else 0.0)
                records = self._records(messages)
                if records:
                    return records
                if ends is None:
                    ends = self.end_positions()
                if all(self._at[number] >= ends[number] for number in positions):
                    return []

    def wait_for(self, positions: Mapping[int, int], timeout: float) -> bool:
        """As `EventLog.wait_for`; it asks the broker where the log ends."""
        return grown_beyond(self.end_positions, positions, timeout, pause=_POLL_SECONDS)

    def start_positions(self) -> dict[int, int]:
        return {number: low for number, (low, _) in self._watermarks().items()}

    def end_positions(self) -> dict[int, int]:
        return {number: high for number, (_, high) in self._watermarks().items()}

    def partition_of(self, model: str) -> int:
        """As Kafka's own clients place a key, so that other producers' events of a model stand beside ours."""
        number: int = murmur2(model.encode()) & 0x7FFFFFFF
        return self._partitions[number % len(self._partitions)]

    def close(self) -> None:
        self._drop_producer()
        self._consumer.close()

    def _find_partitions(self) -> list[int]:
        with self._client.translated():
            found = self._consumer.list_topics(self.address.topic, timeout=_CONNECT_SECONDS).topics[self.address.topic]
        if found.error is not None and found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise self._client.told(found.error)
        if not found.partitions:
            raise LogUnavailable(f"{self.address}: there is no topic {self.address.topic!r}; make it first, or name another")
        return sorted(found.partitions)

    def _watermarks(self) -> dict[int, tuple[int, int]]:
        places = [TopicPartition(self.address.topic, number) for number in self._partitions]
        deadline = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                with self._client.translated():
                    return {place.partition: self._consumer.get_watermark_offsets(place, timeout=_CONNECT_SECONDS) for place in places}
            except LogUnavailable as error:
                # A topic that was just made, or whose leader has just moved, is without one for a moment.
                if "NOT_LEADER" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    def _records(self, messages: Sequence[Any]) -> list[Record]:
        records = []
        for message in messages:
            error = message.error()
            if error is None:
                record = _record(message)
                # What was fetched before the last seek may still come.
                if self._at.get(record.partition) is not None and record.offset >= self._at[record.partition]:
                    self._at[record.partition] = record.offset + 1
                    records.append(record)
            elif error.code() == _END:
                # Behind the last record may stand a marker of a transaction, which is no record.
                self._at[message.partition()] = max(self._at.get(message.partition(), 0), message.offset())
            elif not error.retriable():
                raise self._client.told(error)
        return records

    def _acknowledged(self, told: Sequence[tuple[int, int] | KafkaError | None]) -> list[tuple[int, int]]:
        places = [one for one in told if isinstance(one, tuple)]
        if len(places) == len(told):
            return places
        errors = [one for one in told if isinstance(one, KafkaError)]
        if errors:
            raise self._client.told(errors[0])
        raise LogUnavailable(f"{self.address}: not acknowledged within {_APPEND_SECONDS:.0f} s; is the broker up?")

    def _producing(self) -> Any:
        if self._producer is None:
            # Idempotence asks for rights that Event Hubs does not have; one request at a time keeps a model's events in order.
            settings = {
                "acks": "all",
                "enable.idempotence": False,
                "max.in.flight.requests.per.connection": 1,
                "message.max.bytes": _MAX_REQUEST,
                "linger.ms": 2,
                "queue.buffering.max.messages": 100_000,
                "request.timeout.ms": int(_REQUEST_SECONDS * 1000),
                "delivery.timeout.ms": int(_APPEND_SECONDS * 1000),
            }
            self._producer = Producer({**self._client.configuration(), **settings})
        return self._producer

    def _drop_producer(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            producer.flush(0.1)


def _record(message: Any) -> Record:
    return record_of(message.topic(), message.partition(), message.offset(), message.timestamp()[1], message.headers(), message.value())
