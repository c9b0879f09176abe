"""The seam `EventLog`: where events stand in order, by partition and offset."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from inference.errors import LogUnavailable
from inference.event import Event
from inference.log.address import is_eventhubs, is_kafka
from inference.log.connection import Connection, connection_to


class Record(msgspec.Struct, frozen=True, gc=False):
    """An event and where it stands on the log; `timestamp` is when it was appended, in seconds since 1970 (UTC)."""

    partition: int
    offset: int
    timestamp: float
    event: Event


class EventLog(Protocol):
    """An ordered, partitioned, durable log of events. All events of one model stand on one partition, in order.

    Every method may raise `LogUnavailable` (away, full, locked: try again) or `LogCorrupt` (trying again won't help).
    """

    def append(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """Append all or nothing; when it returns, the events survive a kill of this process. Gives (partition, offset) of each.

        An offset of -1 is one that the log does not tell (Event Hubs by AMQP).
        """
        ...

    def read(self, positions: Mapping[int, int], limit: int = 1000) -> list[Record]:
        """At most `limit` records at or after the given offset of each given partition, in offset order within a partition.

        Never waits. A position older than retention gives what is left from there on.
        """
        ...

    def wait_for(self, positions: Mapping[int, int], timeout: float) -> bool:
        """Wait until something stands at or after one of the positions, at most `timeout` seconds; whether it does."""
        ...

    def start_positions(self) -> dict[int, int]:
        """The oldest offset that can be read, of each partition."""
        ...

    def end_positions(self) -> dict[int, int]:
        """The offset that the next event will get, of each partition."""
        ...

    def positions_at(self, time: float) -> dict[int, int]:
        """Of each partition the offset of the first event appended at or after `time` (seconds since 1970); its end if there is none.

        Offsets in between that hold no event (a transaction's marker) may be given in place of the event behind them.
        """
        ...

    def partition_of(self, model: str) -> int:
        """The partition on which all events of this model ("namespace/inferenceservice") stand."""
        ...

    def close(self) -> None:
        """Let go of files and connections; the log itself stays."""
        ...


def open_log(where: Connection | str, *, must_exist: bool = False) -> EventLog:
    """Open the log at `where`. A path, or `embedded:PATH`, is the embedded log, made if it is not there (unless it `must_exist`);
    `kafka://HOST:PORT[,HOST:PORT...][/TOPIC]` is a topic and `eventhubs://NAMESPACE/HUB` an event hub that is there already.
    """
    connection = where if isinstance(where, Connection) else connection_to(where)
    if connection.client == "librdkafka":
        from inference.log.librdkafka import LibrdkafkaLog

        return LibrdkafkaLog(connection)
    if is_kafka(connection.url):
        from inference.log.kafka import KafkaLog

        return KafkaLog(connection)
    if is_eventhubs(connection.url):
        from inference.log.eventhubs import EventHubsLog

        return EventHubsLog(connection)
    from inference.log.embedded import EmbeddedLog

    path = Path(connection.url.removeprefix("embedded:"))
    if must_exist and not path.exists():
        raise LogUnavailable(f"there is no event log at {path}; `driftloop gateway --log {path}` makes one")
    return EmbeddedLog(path)


class Owner(Protocol):
    """Who works on the partitions that a `Feed` reads; every method is called from within `Feed.poll` or `Feed.close`."""

    def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """These partitions are ours from now on: the offset at which each is to be read. One that is left out starts at its oldest."""
        ...

    def revoked(self, partitions: Sequence[int]) -> None:
        """These partitions go to another member once this returns: save what belongs to them and let go."""
        ...

    def lost(self, partitions: Sequence[int]) -> None:
        """These partitions were taken away and another member may be at work on them: forget them and save nothing."""
        ...


class Feed(Protocol):
    """The records of the partitions that this process owns as one member of a group: each partition has one owner.

    One thread calls `poll`, `commit` and `close`; `owns` may be asked from any thread.
    """

    def poll(self, limit: int, timeout: float) -> list[Record]:
        """At most `limit` records of owned partitions, in offset order within each; waits at most `timeout` seconds for the first.

        Takes part in the group: may call the owner's methods first. LogUnavailable: the log is away; call again, nothing is lost.
        """
        ...

    def commit(self, positions: Mapping[int, int]) -> None:
        """Tell the broker how far we are, for lag graphs: at most once a second, never waiting, never raising."""
        ...

    def owns(self, partition: int) -> bool:
        """Whether the partition is ours for certain: False also when the group has not heard of us for as long as it bears."""
        ...

    def close(self) -> None:
        """Give back every partition (`Owner.revoked`) and go."""
        ...


def open_feed(connection: Connection, log: EventLog, owner: Owner, *, group: str, member: str | None = None, session: float = 30.0) -> Feed:
    """A reader of `log`, which `connection` leads to, as a member of `group`.

    `member` is its name where membership is static; `session` (seconds) is how long the group bears its silence.
    """
    if connection.client == "librdkafka":
        from inference.log.librdkafka_feed import LibrdkafkaFeed

        return LibrdkafkaFeed(connection, group, owner, instance_id=member, session=session)
    if is_kafka(connection.url):
        from inference.log.kafka_feed import KafkaFeed

        return KafkaFeed(connection, group, owner, instance_id=member, session=session)
    if is_eventhubs(connection.url):
        from inference.log.eventhubs_feed import EventHubsFeed

        return EventHubsFeed(connection, group, owner)
    from inference.log.embedded_feed import EmbeddedFeed

    return EmbeddedFeed(log, owner)


def grown_beyond(ends: Callable[[], Mapping[int, int]], positions: Mapping[int, int], timeout: float, *, pause: float) -> bool:
    """Ask `ends` each `pause` seconds until something stands at or after one of `positions`; False when `timeout` seconds brought none."""
    deadline = time.monotonic() + timeout
    while True:
        reached = ends()
        if any(reached.get(partition, 0) > offset for partition, offset in positions.items()):
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
