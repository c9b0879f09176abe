"""A member of a consumer group on Apache Kafka or Event Hubs, by kafka-python: cooperative rebalancing, static membership."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError

from inference.errors import DriftloopError, LogUnavailable
from inference.log import Owner, Record
from inference.log.connection import Connection
from inference.log.credentials import EntraTokens
from inference.log.kafka_records import record_of
from inference.log.kafka_settings import KafkaClients

logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 3.0
_COMMIT_SECONDS = 1.0
_PROBE_SECONDS = 3.0
_PROBE_TIMEOUT_MS = 5_000


class KafkaFeed:
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
        self._clients = KafkaClients(connection, tokens=tokens)
        self._topic = self._clients.address.topic
        self._owner = owner
        self._session = session
        # Replaced as a whole, never changed, so that other threads may look at any time.
        self._owned: frozenset[int] = frozenset()
        # Assigned by the group, but the owner has not said yet where to start: paused.
        self._waiting: frozenset[int] = frozenset()
        self._committed = self._polled = self._heard = float("-inf")
        self._consumer = self._clients.consumer(
            group_id=group,
            group_instance_id=instance_id,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            session_timeout_ms=int(session * 1000),
            heartbeat_interval_ms=int(min(_HEARTBEAT_SECONDS, session / 4) * 1000),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        try:
            # Before it joins: a leader that does not know the topic's partitions yet would hand out none.
            self._clients.partitions(self._consumer)
        except BaseException:
            self._consumer.close(autocommit=False, timeout_ms=0)
            raise
        self._consumer.subscribe([self._topic], listener=_Listener(self))

    def poll(self, limit: int, timeout: float) -> list[Record]:
        with self._clients.translated():
            coordinator = self._consumer._coordinator
            if coordinator.rejoining:
                # A poll that ends before the group has answered leaves the joining to the next, which forgets it when it was the
                # topic's metadata that began it: it would read on without a heartbeat until the group has given its partitions away.
                coordinator.request_rejoin()
            # The group's callbacks run while this call waits, on the client's own thread.
            polled = self._consumer.poll(timeout_ms=int(timeout * 1000), max_records=limit)
            self._polled = time.monotonic()
            if not polled:
                self._probe()
        self._start_waiting()
        return [
            record_of(m.topic, m.partition, m.offset, m.timestamp, m.headers, m.value)
            for place, messages in polled.items()
            if place.partition in self._owned
            for m in messages
        ]

    def commit(self, positions: Mapping[int, int]) -> None:
        now = time.monotonic()
        if now - self._committed < _COMMIT_SECONDS or not positions:
            return
        self._committed = now
        offsets = {self._place(number): OffsetAndMetadata(offset, "", -1) for number, offset in positions.items() if self.owns(number)}
        try:
            if offsets:
                self._consumer.commit_async(offsets, callback=_committed)
        except KafkaError as error:
            logger.debug("the group was not told how far we are: %s", error)

    def owns(self, partition: int) -> bool:
        # The clock goes on while a process is stopped: whoever wakes up late must not think that nothing has changed.
        heartbeat = self._consumer._coordinator.heartbeat
        since = time.monotonic() - min(self._polled, max(heartbeat.last_receive, heartbeat.last_reset))
        return partition in self._owned and since < self._session

    def close(self) -> None:
        try:
            with self._clients.translated():
                self._consumer.close(autocommit=False, timeout_ms=_PROBE_TIMEOUT_MS)
        except LogUnavailable as error:
            logger.warning("left the group without telling it: %s", error)

    def _start_waiting(self) -> None:
        """What was assigned is read from where the owner says; when it can't say now, it is asked again at the next poll."""
        if not self._waiting:
            return
        positions = self._owner.assigned(sorted(self._waiting))
        with self._clients.translated():
            for number in self._waiting:
                place = self._place(number)
                if number in positions:
                    self._consumer.seek(place, positions[number])
                else:
                    self._consumer.seek_to_beginning(place)
                self._consumer.resume(place)
        self._owned |= self._waiting
        self._waiting = frozenset()

    def _probe(self) -> None:
        """A consumer that gets nothing does not tell whether there is nothing or nobody: ask, now and then."""
        now = time.monotonic()
        if now - self._heard < _PROBE_SECONDS:
            return
        self._consumer.end_offsets([self._place(0)], timeout_ms=_PROBE_TIMEOUT_MS)
        self._heard = time.monotonic()

    def _place(self, number: int) -> TopicPartition:
        return TopicPartition(self._topic, number)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is not followed by the type checker
    """Runs on the client's thread while `poll` or `close` waits for it."""

    def __init__(self, feed: KafkaFeed) -> None:
        self._feed = feed

    def on_partitions_assigned(self, assigned: Sequence[Any]) -> None:
        feed = self._feed
        for place in assigned:
            feed._consumer.pause(place)
        feed._waiting |= {place.partition for place in assigned}

    def on_partitions_revoked(self, revoked: Sequence[Any]) -> None:
        self._gone(revoked, "revoked")

    def on_partitions_lost(self, lost: Sequence[Any]) -> None:
        self._gone(lost, "lost")

    def _gone(self, places: Sequence[Any], how: str) -> None:
        feed = self._feed
        numbers = {place.partition for place in places}
        held = sorted(numbers & feed._owned)
        feed._owned -= numbers
        feed._waiting -= numbers
        if not held:
            return
        try:
            (feed._owner.revoked if how == "revoked" else feed._owner.lost)(held)
        except DriftloopError as error:
            # Whoever gets the partition starts from an older snapshot and comes to the same outcomes.
            logger.error("partition %s: not everything was saved as it was %s: %s", ", ".join(map(str, held)), how, error)


def _committed(_offsets: Any, result: Any) -> None:
    if isinstance(result, Exception):
        logger.debug("the group was not told how far we are: %s", result)
