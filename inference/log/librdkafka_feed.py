"""A member of a consumer group on Apache Kafka or Event Hubs, by librdkafka: cooperative rebalancing, static membership."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from inference.errors import DriftloopError, LogUnavailable
from inference.log import Owner, Record
from inference.log.connection import Connection
from inference.log.credentials import EntraTokens
from inference.log.kafka_records import record_of
from inference.log.librdkafka_settings import Librdkafka, consumed

logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 3.0
_COMMIT_SECONDS = 1.0
_PROBE_SECONDS = 3.0
_PROBE_TIMEOUT = 5.0


class LibrdkafkaFeed:
    """A `Feed`. With `instance_id` the membership is static: a restart within `session` seconds moves no partition."""

    def __init__(
        self,
        connection: Connection,
        group: str,
        owner: Owner,
        *,
        instance_id: str | None = None,
        session: float = 30.0,
        tokens: EntraTokens | None = None,
    ) -> None:
        self._client = Librdkafka(connection, tokens=tokens)
        self._topic = self._client.address.topic
        self._owner = owner
        self._session = session
        # Replaced as a whole, never changed, so that other threads may look at any time.
        self._owned: frozenset[int] = frozenset()
        # Assigned by the group, but the owner has not said yet where to start: paused.
        self._waiting: frozenset[int] = frozenset()
        # What is read next. A seek takes a moment, in which older messages may still come.
        self._next: dict[int, int] = {}
        self._committed = self._heard = float("-inf")
        self._polled = time.monotonic()
        settings = {
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(session * 1000),
            "heartbeat.interval.ms": int(min(_HEARTBEAT_SECONDS, session / 4) * 1000),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            **({"group.instance.id": instance_id} if instance_id else {}),
        }
        self._consumer = Consumer({**self._client.configuration(), **settings})
        self._find_topic()
        self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def poll(self, limit: int, timeout: float) -> list[Record]:
        with self._client.translated():
            # The group's callbacks run within this call, on this thread.
            messages = consumed(self._consumer, limit, timeout)
            self._polled = time.monotonic()
            if not messages:
                self._probe()
            records = self._records(messages)
        self._start_waiting()
        return records

    def commit(self, positions: Mapping[int, int]) -> None:
        now = time.monotonic()
        if now - self._committed < _COMMIT_SECONDS:
            return
        offsets = [TopicPartition(self._topic, number, offset) for number, offset in positions.items() if number in self._owned]
        if not offsets:
            return
        self._committed = now
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            logger.debug("the group was not told how far we are: %s", error)

    def owns(self, partition: int) -> bool:
        # The clock goes on while a process is stopped: whoever wakes up late must not think that nothing has changed.
        return partition in self._owned and time.monotonic() - self._polled < self._session

    def close(self) -> None:
        # Leaving calls back only where it leaves: a static member stays in the group, and gives its partitions back here.
        self._gone(self._owned, "revoked")
        try:
            self._consumer.close()
        except KafkaException as error:
            logger.warning("left the group without telling it: %s", error)

    def _find_topic(self) -> None:
        with self._client.translated():
            found = self._consumer.list_topics(self._topic, timeout=_PROBE_TIMEOUT).topics[self._topic]
        if not found.partitions:
            raise LogUnavailable(f"{self._client.address}: there is no topic {self._topic!r}; make it first, or name another")

    def _records(self, messages: Sequence[Any]) -> list[Record]:
        records = []
        owned, expected, topic = self._owned, self._next, self._topic
        for message in messages:
            if (error := message.error()) is not None:
                if error.code() != KafkaError._MAX_POLL_EXCEEDED and not error.retriable():
                    raise KafkaException(error)
                logger.debug("%s", error)
                continue
            number, offset = message.partition(), message.offset()
            if number in owned and offset >= expected[number]:
                expected[number] = offset + 1
                records.append(record_of(topic, number, offset, message.timestamp()[1], message.headers(), message.value()))
        return records

    def _start_waiting(self) -> None:
        """What was assigned is read from where the owner says; when it can't say now, it is asked again at the next poll."""
        if not self._waiting:
            return
        positions = self._owner.assigned(sorted(self._waiting))
        with self._client.translated():
            for number in self._waiting:
                self._next[number] = positions.get(number, 0)
                place = TopicPartition(self._topic, number, positions.get(number, OFFSET_BEGINNING))
                self._consumer.seek(place)
                self._consumer.resume([place])
        self._owned |= self._waiting
        self._waiting = frozenset()

    def _probe(self) -> None:
        """A consumer that gets nothing does not tell whether there is nothing or nobody: ask, now and then."""
        now = time.monotonic()
        if now - self._heard >= _PROBE_SECONDS:
            self._consumer.list_topics(self._topic, timeout=_PROBE_TIMEOUT)
            self._heard = time.monotonic()

    def _assigned(self, consumer: Any, places: Sequence[Any]) -> None:
        consumer.incremental_assign([TopicPartition(self._topic, place.partition, OFFSET_BEGINNING) for place in places])
        consumer.pause(places)
        self._waiting |= {place.partition for place in places}

    def _revoked(self, _consumer: Any, places: Sequence[Any]) -> None:
        self._gone({place.partition for place in places}, "revoked")

    def _lost(self, _consumer: Any, places: Sequence[Any]) -> None:
        self._gone({place.partition for place in places}, "lost")

    def _gone(self, numbers: "set[int] | frozenset[int]", how: str) -> None:
        held = sorted(numbers & self._owned)
        self._owned -= numbers
        self._waiting -= numbers
        if not held:
            return
        try:
            (self._owner.revoked if how == "revoked" else self._owner.lost)(held)
        except DriftloopError as error:
            # Whoever gets the partition starts from an older snapshot and comes to the same outcomes.
            logger.error("partition %s: not everything was saved as it was %s: %s", ", ".join(map(str, held)), how, error)
