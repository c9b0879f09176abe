"""The seam `EventLog`: where events stand in order, by partition and offset."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference.errors import LogUnavailable, SettingsError
from inference.event import Event
from inference.log.address import KafkaAddress, is_kafka


@dataclass(frozen=True, slots=True)
class Record:
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
        """Append all or nothing; when it returns, the events survive a kill of this process. Gives (partition, offset) of each."""
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

    def partition_of(self, model: str) -> int:
        """The partition on which all events of this model ("namespace/inferenceservice") stand."""
        ...

    def close(self) -> None:
        """Let go of files and connections; the log itself stays."""
        ...


def open_log(url: str, *, must_exist: bool = False) -> EventLog:
    """Open the log at `url`. A path, or `embedded:PATH`, is the embedded log, made if it is not there (unless it `must_exist`);
    `kafka://HOST:PORT[,HOST:PORT...][/TOPIC]` is a topic that is there already.
    """
    if is_kafka(url):
        address = KafkaAddress.parse(url)
        from inference.log.kafka import KafkaLog

        return KafkaLog(address)
    scheme, separator, rest = url.partition(":")
    if separator and scheme != "embedded" and rest.startswith("//"):
        raise SettingsError([f"log {url!r}: unknown scheme {scheme!r}; known: a path, embedded:PATH, kafka://HOST:PORT/TOPIC"])
    from inference.log.embedded import EmbeddedLog

    path = Path(rest if scheme == "embedded" and separator else url)
    if must_exist and not path.exists():
        raise LogUnavailable(f"there is no event log at {path}; `driftloop gateway --log {path}` makes one")
    return EmbeddedLog(path)


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
