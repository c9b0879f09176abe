"""The embedded log: partitions and offsets in one SQLite file, for a laptop or an edge box.

A record is kept as its Kafka message (key, headers, value), so Kafka and this log share one encoding. An append is one
transaction in WAL mode: all or nothing, and it survives a kill of the process (a power cut may take the last moments, as
`synchronous=NORMAL` does not wait for the disk). Any number of processes on one machine may append and read at once; the
file must lie on a local disk, since WAL needs shared memory.

A record's place is `partition << 48 | offset`: each partition is one stretch of the table, read and expired in order.
"""

import heapq
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import orjson

from inference.errors import EventError, LogCorrupt, LogError, LogFull, LogUnavailable, SettingsError
from inference.event import Event, from_kafka_text, lasting_message
from inference.log import Record, dead_letters, grown_beyond
from inference.log.dead_letters import DeadLetter

FORMAT = 1
SHIFT = 48
READ_BYTES = 64 * 1024 * 1024
"""A read stops here even below its limit, so that a thousand large bodies can't fill the memory."""
RETENTION_EVERY_EVENTS = 500
RETENTION_EVERY_SECONDS = 60.0
ROW_OVERHEAD = 40
POLL_SECONDS = 0.02
WAL_BYTES = 64 * 1024 * 1024
"""What SQLite's WAL may keep of the disk."""

_SCHEMA = (
    "CREATE TABLE driftloop_meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE partitions (partition INTEGER PRIMARY KEY, start INTEGER NOT NULL, next INTEGER NOT NULL,"
    " bytes INTEGER NOT NULL, timestamp REAL NOT NULL)",
    # The small columns come first: retention reads them without touching the pages of a large value.
    "CREATE TABLE records (place INTEGER PRIMARY KEY, timestamp REAL NOT NULL, size INTEGER NOT NULL,"
    " key BLOB NOT NULL, headers BLOB NOT NULL, value BLOB NOT NULL)",
    *dead_letters.SCHEMA,
)


class _Partition(NamedTuple):
    start: int
    next: int
    bytes: int
    timestamp: float


class EmbeddedLog:
    """An `EventLog` in one SQLite file; safe for threads and processes. `partitions` counts only when the file is made."""

    def __init__(
        self,
        path: Path,
        *,
        partitions: int = 4,
        retention_seconds: float = 7 * 86_400.0,
        retention_bytes: int = 2_000_000_000,
        max_dead_letters: int = 1_000,
        busy_timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= partitions <= 1024:
            raise SettingsError([f"embedded log: partitions is {partitions}; it must be 1 to 1024"])
        if retention_seconds <= 0 or retention_bytes <= 0:
            raise SettingsError([f"embedded log: retention of {retention_seconds} s and {retention_bytes} bytes; both must be above 0"])
        self.path = path
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes
        self._max_dead_letters = max_dead_letters
        self._busy_timeout = busy_timeout
        self._clock = clock
        self._process = os.getpid()
        self._since_retention = RETENTION_EVERY_EVENTS
        self._retained_at = 0.0
        self._lock, self._reader_lock = threading.Lock(), threading.Lock()
        self._connection: sqlite3.Connection | None = self._open(partitions)
        self._reader: sqlite3.Connection | None = self._connect()

    def append(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        rows = [_encoded(event) for event in events]
        if not rows:
            return []
        with self._transaction() as connection:
            before = _states(connection)
            now = self._clock()
            stamp = max(now, *(state.timestamp for state in before.values()))
            ends = {partition: state.next for partition, state in before.items()}
            grown = dict.fromkeys(before, 0)
            places: list[tuple[int, int]] = []
            records = []
            for key, headers, value in rows:
                partition = zlib.crc32(key) % self.partitions
                offset = ends[partition]
                size = len(key) + len(headers) + len(value) + ROW_OVERHEAD
                places.append((partition, offset))
                records.append((partition << SHIFT | offset, stamp, size, key, headers, value))
                ends[partition] = offset + 1
                grown[partition] += size
            connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", records)
            states = {
                partition: _Partition(state.start, ends[partition], state.bytes + grown[partition], stamp) if grown[partition] else state
                for partition, state in before.items()
            }
            self._since_retention += len(rows)
            self._retain(connection, states, now)
            _save(connection, {number: state for number, state in states.items() if state != before[number]})
        return places

    def read(self, positions: Mapping[int, int], limit: int = 1000) -> list[Record]:
        """As `EventLog.read`, oldest first over all given partitions: by time of append, then by partition and offset."""
        if limit <= 0:
            return []
        found: list[tuple[float, int, bytes, bytes, int]] = []
        with self._snapshot() as connection:
            self._check(positions, _states(connection))
            heads = [
                connection.execute(
                    "SELECT timestamp, place, headers, value, size FROM records WHERE place >= ? AND place < ? ORDER BY place LIMIT ?",
                    (partition << SHIFT | max(offset, 0), (partition + 1) << SHIFT, limit),
                )
                for partition, offset in positions.items()
            ]
            room = READ_BYTES
            for row in islice(heapq.merge(*heads, key=lambda row: (row[0], row[1])), limit):
                found.append(row)
                room -= row[4]
                if room <= 0:
                    break
            for head in heads:
                head.close()
        return [self._record(place, timestamp, headers, value) for timestamp, place, headers, value, _ in found]

    def wait_for(self, positions: Mapping[int, int], timeout: float) -> bool:
        """Wait until an event stands at or after one of `positions`; False when `timeout` seconds brought none."""
        return grown_beyond(self.end_positions, positions, timeout, pause=POLL_SECONDS)

    def start_positions(self) -> dict[int, int]:
        with self._snapshot() as connection:
            return {partition: state.start for partition, state in _states(connection).items()}

    def end_positions(self) -> dict[int, int]:
        with self._snapshot() as connection:
            return {partition: state.next for partition, state in _states(connection).items()}

    def positions_at(self, time: float) -> dict[int, int]:
        with self._snapshot() as connection:
            return {partition: _first_at(connection, partition, state, time) for partition, state in _states(connection).items()}

    def partition_of(self, model: str) -> int:
        return zlib.crc32(model.encode()) % self.partitions

    def set_aside(self, reason: str, message: str, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Keep a message that can't be accepted, with the reason; credentials in its headers are dropped."""
        with self._transaction() as connection:
            dead_letters.store(
                connection,
                timestamp=self._clock(),
                reason=reason,
                message=message,
                headers=headers,
                body=body,
                keep=self._max_dead_letters,
            )

    def dead_letters(self) -> list[DeadLetter]:
        """Those still kept, oldest first."""
        with self._snapshot() as connection:
            return dead_letters.load(connection)

    def dead_letter_counts(self) -> dict[str, int]:
        """How many were ever set aside, by reason."""
        with self._snapshot() as connection:
            return dead_letters.counts(connection)

    def count_dead_letters(self, counts: Mapping[str, int]) -> None:
        """Count messages, by reason, of which nothing could be kept."""
        with self._transaction() as connection:
            dead_letters.count(connection, counts)

    def close(self) -> None:
        with self._lock, self._reader_lock:
            for connection in (self._reader, self._connection):
                if connection is not None and self._process == os.getpid():
                    connection.close()
            self._reader = self._connection = None

    def _retain(self, connection: sqlite3.Connection, states: dict[int, _Partition], now: float) -> None:
        """Drop the oldest records that are too old or too many, a bounded number at a time; `states` is brought up to date."""
        total = sum(state.bytes for state in states.values())
        due = self._since_retention >= RETENTION_EVERY_EVENTS or abs(now - self._retained_at) >= RETENTION_EVERY_SECONDS
        if not due and total <= self._retention_bytes:
            return
        # Four times what came in since the last time: it catches up without making one append wait long.
        step = 4 * max(self._since_retention, RETENTION_EVERY_EVENTS)
        heads = [
            connection.execute(
                "SELECT timestamp, place, size FROM records WHERE place >= ? AND place < ? ORDER BY place",
                (partition << SHIFT | state.start, (partition + 1) << SHIFT),
            )
            for partition, state in states.items()
        ]
        dropped: set[int] = set()
        for timestamp, place, size in islice(heapq.merge(*heads), step):
            if timestamp >= now - self._retention_seconds and total <= self._retention_bytes:
                break
            total -= size
            partition = place >> SHIFT
            state = states[partition]
            states[partition] = state._replace(start=(place & (1 << SHIFT) - 1) + 1, bytes=state.bytes - size)
            dropped.add(partition)
        for head in heads:
            head.close()
        for partition in dropped:
            connection.execute(
                "DELETE FROM records WHERE place >= ? AND place < ?", (partition << SHIFT, partition << SHIFT | states[partition].start)
            )
        self._since_retention = 0
        self._retained_at = now

    def _record(self, place: int, timestamp: float, headers: bytes, value: bytes) -> Record:
        try:
            event = from_kafka_text(orjson.loads(headers), value)
        except (EventError, ValueError, TypeError, AttributeError) as error:
            raise self._damaged(place, error) from error
        return Record(*_split(place), timestamp, event)

    def _damaged(self, place: int, error: Exception) -> LogCorrupt:
        partition, offset = _split(place)
        return LogCorrupt(f"event log {self.path}: the record at partition {partition}, offset {offset} is damaged: {error}")

    def _check(self, positions: Mapping[int, int], states: Mapping[int, _Partition]) -> None:
        for partition, offset in positions.items():
            if partition not in states:
                raise LogCorrupt(f"event log {self.path} has partitions 0 to {self.partitions - 1}; a position names partition {partition}")
            if offset > states[partition].next:
                # Silence would be worse: a reader would skip what comes until the log has grown up to its position.
                raise LogCorrupt(
                    f"event log {self.path}: position {offset} of partition {partition} lies beyond its end {states[partition].next};"
                    " the positions belong to another log, or this one was replaced or restored: start from its start positions"
                )

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._using("BEGIN IMMEDIATE", self._lock, reading=False)

    def _snapshot(self) -> AbstractContextManager[sqlite3.Connection]:
        """For reading: on a connection of its own, so that neither a reader nor a writer waits for the other."""
        return self._using("BEGIN", self._reader_lock, reading=True)

    @contextmanager
    def _using(self, begin: str, lock: threading.Lock, *, reading: bool) -> Iterator[sqlite3.Connection]:
        with lock:
            if self._process != os.getpid():
                raise LogUnavailable(
                    f"event log {self.path} was opened by process {self._process}; open it again in this one (pid {os.getpid()})"
                )
            connection = self._reader if reading else self._connection
            if connection is None:
                raise LogUnavailable(f"event log {self.path} is closed; open it again")
            try:
                connection.execute(begin)
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    # SQLite has rolled back by itself after some errors (a full disk).
                    if connection.in_transaction:
                        with suppress(sqlite3.Error):
                            connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._translated(error) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False)

    def _open(self, partitions: int) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise LogCorrupt(f"event log {self.path} is a folder; give the path of a file, for example {self.path / 'events.db'}")
        except OSError as error:
            raise LogUnavailable(
                f"event log {self.path}: its folder can't be made ({error.strerror}); give a path in a folder that can be written"
            ) from error
        deadline = time.monotonic() + self._busy_timeout
        while True:
            connection = None
            try:
                connection = self._connect()
                self.partitions = self._prepare(connection, partitions)
                return connection
            except sqlite3.Error as error:
                if connection is not None:
                    connection.close()
                # Going to WAL mode does not wait for another process that is just making the file: try again.
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise self._translated(error) from error
                time.sleep(POLL_SECONDS)
            except BaseException:
                if connection is not None:
                    connection.close()
                raise

    def _prepare(self, connection: sqlite3.Connection, partitions: int) -> int:
        """Make the tables if the file is new, else check that they are ours; gives the number of partitions."""
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "driftloop_meta" not in tables:
            raise LogCorrupt(
                f"{self.path} is a database of something else ({', '.join(sorted(tables)[:3])}), no event log; give another path"
            )
        if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise LogUnavailable(f"event log {self.path}: this file system can't do SQLite's WAL mode; put the log on a local disk")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        if not tables:
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'driftloop_meta'").fetchone():
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.executemany("INSERT INTO driftloop_meta VALUES (?, ?)", [("format", FORMAT), ("partitions", partitions)])
                    connection.executemany("INSERT INTO partitions VALUES (?, 0, 0, 0, 0.0)", [(number,) for number in range(partitions)])
                connection.execute("COMMIT")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        meta = dict(connection.execute("SELECT name, value FROM driftloop_meta").fetchall())
        if meta.get("format") != FORMAT:
            raise LogCorrupt(
                f"event log {self.path} has format {meta.get('format')}; this driftloop reads format {FORMAT}:"
                " use the version of driftloop that made it, or another path"
            )
        return int(meta["partitions"])

    def _translated(self, error: sqlite3.Error) -> LogError:
        code = _code(error)
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return LogCorrupt(f"event log {self.path} is damaged or no event log ({error}); move it away or give another path")
        if code == sqlite3.SQLITE_FULL:
            return LogFull(f"event log {self.path}: the disk is full; free some space, or lower the log's retention ({error})")
        advice = {
            sqlite3.SQLITE_BUSY: f"another process held it for over {self._busy_timeout:g} s; try again, or end the process that holds it",
            sqlite3.SQLITE_READONLY: "it can't be written; give this user write permission on the file and its folder",
            sqlite3.SQLITE_CANTOPEN: "it can't be opened; the folder must be there and writable by this user",
            sqlite3.SQLITE_IOERR: "the disk failed or has no room; check its space, quota and health",
        }.get(code, "SQLite failed")
        return LogUnavailable(f"event log {self.path}: {advice} ({error})")


def _encoded(event: Event) -> tuple[bytes, bytes, bytes]:
    """Key, headers and value, as they are kept."""
    key, headers, value = lasting_message(event)
    return key.encode(), orjson.dumps(headers), value


def _split(place: int) -> tuple[int, int]:
    return place >> SHIFT, place & (1 << SHIFT) - 1


def _states(connection: sqlite3.Connection) -> dict[int, _Partition]:
    rows = connection.execute("SELECT partition, start, next, bytes, timestamp FROM partitions ORDER BY partition")
    return {partition: _Partition(*state) for partition, *state in rows}


def _first_at(connection: sqlite3.Connection, partition: int, state: _Partition, time: float) -> int:
    """Halve the stretch: a partition's times never go back."""
    low, high = state.start, state.next
    while low < high:
        middle = (low + high) // 2
        (stamp,) = connection.execute("SELECT timestamp FROM records WHERE place = ?", (partition << SHIFT | middle,)).fetchone()
        low, high = (middle + 1, high) if stamp < time else (low, middle)
    return low


def _save(connection: sqlite3.Connection, states: Mapping[int, _Partition]) -> None:
    connection.executemany(
        "UPDATE partitions SET start = ?, next = ?, bytes = ?, timestamp = ? WHERE partition = ?",
        [(*state, partition) for partition, state in states.items()],
    )


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
