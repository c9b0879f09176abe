"""A member of a consumer group on Apache Kafka or Event Hubs, by librdkafka: cooperative rebalancing, static membership."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from inference.errors import DriftloopError, LogError
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
_NO_MEMBER = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.FENCED_INSTANCE_ID)


class LibrdkafkaFeed:
    """A `Feed`. With `instance_id` the membership is static: a restart within `session` seconds moves no partition.

    librdkafka's own threads keep the membership alive and tell when it is lost, but only who polls is told. So a partition is ours
    for a session less a heartbeat since the last poll; after a longer silence (the process was stopped, or busy) the broker is asked
    whether we are a member still, before anything is read on. LogError from `poll`: another process took our `instance_id`.
    """

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
        self._member = f"member {instance_id!r} of group {group!r}"
        heartbeat = min(_HEARTBEAT_SECONDS, session / 4)
        self._lease = session - heartbeat
        # Replaced as a whole, never changed, so that other threads may look at any time.
        self._owned: frozenset[int] = frozenset()
        # Assigned by the group, but the owner has not said yet where to start: paused.
        self._waiting: frozenset[int] = frozenset()
        # What is read next. A seek takes a moment, in which older messages may still come.
        self._next: dict[int, int] = {}
        # Messages of owned partitions that were not handed out yet, as something went wrong.
        self._taken: list[Any] = []
        self._ended: LogError | None = None
        self._committed = float("-inf")
        self._polled = self._heard = time.monotonic()
        self._consumer = self._client.consumer(
            group_id=group,
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=int(session * 1000),
            heartbeat_interval_ms=int(heartbeat * 1000),
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="earliest",
            # As kafka-python reads: both see the same log.
            isolation_level="read_uncommitted",
            check_crcs=True,
            on_commit=_committed,
            **({"group_instance_id": instance_id} if instance_id else {}),
        )
        try:
            self._client.partitions(self._consumer)
            self._consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        except BaseException:
            self._consumer.close()
            raise

    def poll(self, limit: int, timeout: float) -> list[Record]:
        if self._ended is not None:
            raise self._ended
        with self._client.translated():
            try:
                self._take(limit, timeout)
            except KafkaException as error:
                if _is_fatal(error.args[0]):
                    self._end(error.args[0])
                raise
        self._start_waiting()
        messages, self._taken = self._taken[:limit], self._taken[limit:]
        return self._records(messages)

    def commit(self, positions: Mapping[int, int]) -> None:
        now = time.monotonic()
        if now - self._committed < _COMMIT_SECONDS:
            return
        offsets = [TopicPartition(self._topic, number, offset) for number, offset in positions.items() if self.owns(number)]
        if not offsets:
            return
        self._committed = now
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            logger.debug("the group was not told how far we are: %s", error)

    def owns(self, partition: int) -> bool:
        # The clock goes on while a process is stopped: whoever wakes up late must not think that nothing has changed.
        return partition in self._owned and time.monotonic() - self._polled < self._lease

    def close(self) -> None:
        # Leaving calls back only where it leaves: a static member stays in the group, and gives its partitions back here.
        self._gone(self._owned, lost=time.monotonic() - self._polled >= self._lease)
        try:
            self._consumer.close()
        except KafkaException as error:
            logger.warning("left the group without telling it: %s", error)

    def _take(self, limit: int, timeout: float) -> None:
        """Take part in the group, whose callbacks run within this call, and take messages of what is owned."""
        wanted = max(1, limit - len(self._taken))
        messages = consumed(self._consumer, wanted, 0.0 if self._taken else timeout)
        now = time.monotonic()
        problem = None
        owned = self._owned
        for message in messages:
            if (error := message.error()) is None:
                if message.partition() in owned:
                    self._taken.append(message)
            elif error.code() == KafkaError._MAX_POLL_EXCEEDED or (error.retriable() and not _is_fatal(error)):
                logger.debug("%s", error)
            else:
                problem = error
        if problem is not None:
            raise KafkaException(problem)
        if not messages:
            self._probe()
        if now - self._polled < self._lease or not (self._owned or self._waiting):
            self._polled = now
        elif self._owned:
            self._confirm()

    def _probe(self) -> None:
        """A consumer that gets nothing does not tell whether there is nothing or nobody: ask, now and then."""
        if time.monotonic() - self._heard >= _PROBE_SECONDS:
            try:
                self._consumer.list_topics(self._topic, timeout=_PROBE_TIMEOUT)
            except KafkaException as error:
                raise self._client.told(error.args[0], since=self._heard) from error
            self._heard = time.monotonic()

    def _confirm(self) -> None:
        """Ask the broker whether we are a member still: nobody else may commit."""
        now = time.monotonic()
        places = [TopicPartition(self._topic, number, self._next[number]) for number in self._owned]
        try:
            errors = [place.error for place in self._consumer.commit(offsets=places, asynchronous=False) if place.error]
        except KafkaException as error:
            errors = [error.args[0]]
        if any(error.code() in _NO_MEMBER for error in errors):
            self._gone(self._owned | self._waiting, lost=True)
        elif errors:
            raise KafkaException(errors[0])
        self._polled = self._committed = now

    def _end(self, error: KafkaError) -> None:
        """The client is of no use any more; another process is at work on what we had."""
        self._gone(self._owned | self._waiting, lost=True)
        told = f"another process is {self._member} too: give each process a name of its own (`watch.member`)"
        fenced = "group.instance.id" in error.str()
        self._ended = LogError(f"{self._client.address}: {told if fenced else error.str()}")
        raise self._ended

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

    def _records(self, messages: Sequence[Any]) -> list[Record]:
        records = []
        expected, topic = self._next, self._topic
        for message in messages:
            number, offset = message.partition(), message.offset()
            if offset >= expected[number]:
                expected[number] = offset + 1
                records.append(record_of(topic, number, offset, message.timestamp()[1], message.headers(), message.value()))
        return records

    def _assigned(self, consumer: Any, places: Sequence[Any]) -> None:
        consumer.incremental_assign([TopicPartition(self._topic, place.partition, OFFSET_BEGINNING) for place in places])
        consumer.pause(places)
        self._waiting |= {place.partition for place in places}

    def _revoked(self, _consumer: Any, places: Sequence[Any]) -> None:
        self._gone({place.partition for place in places}, lost=False)

    def _lost(self, _consumer: Any, places: Sequence[Any]) -> None:
        self._gone({place.partition for place in places}, lost=True)

    def _gone(self, numbers: Collection[int], *, lost: bool) -> None:
        held = sorted(self._owned.intersection(numbers))
        self._owned -= frozenset(numbers)
        self._waiting -= frozenset(numbers)
        self._taken = [message for message in self._taken if message.partition() in self._owned]
        if not held:
            return
        try:
            (self._owner.lost if lost else self._owner.revoked)(held)
        except DriftloopError as error:
            # Whoever gets the partition starts from an older snapshot and comes to the same outcomes.
            how = "lost" if lost else "revoked"
            logger.error("partition %s: not everything was saved as it was %s: %s", ", ".join(map(str, held)), how, error)


def _is_fatal(error: KafkaError) -> bool:
    return bool(error.fatal() or error.code() == KafkaError._FATAL)


def _committed(error: KafkaError | None, _places: Sequence[Any]) -> None:
    if error is not None:
        logger.debug("the group was not told how far we are: %s", error)
