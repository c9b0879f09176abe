"""The outbox: actions that were decided on, kept on disk until each is done, and the worker that performs them.

A decision is put into the outbox under a key made of deterministic ids, so a watcher that restarts and reads the same
stretch of the log again puts nothing twice. The worker performs each entry *at least once*: a process that dies between
the action and its note performs the action again after the restart, under the same key. Handlers therefore hand the key
to the receiver (an event id, an `Idempotency-Key` header, a run id), and a receiver that knows it does nothing twice.

Payloads are JSON and hold no secrets: a webhook's URL is the handler's, never the entry's.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from inference.errors import ActionError, ServiceError

State = Literal["pending", "done", "failed", "expired"]

_FORMAT = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    payload BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at REAL NOT NULL,
    created REAL NOT NULL,
    last_error TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS waiting ON entries (kind, next_at) WHERE state = 'pending';
"""
_COLUMNS = "key, kind, payload, state, attempts, next_at, created, last_error, note"


@dataclass(frozen=True, slots=True)
class Item:
    """Something to do: `key` is the same in every replay, `payload` plain JSON values without secrets."""

    key: str
    kind: str
    payload: Mapping[str, Any]
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An item in the outbox. `attempts` counts the failures since the last success or "later"; `note` is what the handler
    last said (its memory between calls); times are seconds since 1970."""

    key: str
    kind: str
    payload: Mapping[str, Any]
    state: State
    attempts: int
    next_at: float
    created: float
    last_error: str
    note: str


class Outbox:
    """Entries in one SQLite file; safe for several threads, and for a kill at any moment.

    ServiceError when the file cannot be made or is no outbox; ActionError when it cannot be read or written later on.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._changed = threading.Condition(threading.RLock())
        self._changes = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            advice = "give a state folder that this process can write to"
            raise ServiceError(f"the outbox {self.path} cannot be used: {error}; {advice}") from error

    def put(self, key: str, kind: str, payload: Mapping[str, Any], *, now: float, not_before: float = 0.0) -> bool:
        """Add one entry; False, and nothing is changed, when the key is known."""
        return self.put_all([Item(key, kind, payload, not_before)], now=now) == 1

    def put_all(self, items: Iterable[Item], *, now: float) -> int:
        """Add the entries whose key is new, all or none of them, and say how many; they are on disk when this returns."""
        rows = [(i.key, i.kind, orjson.dumps(i.payload, option=orjson.OPT_SERIALIZE_NUMPY), max(now, i.not_before), now) for i in items]
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany("INSERT OR IGNORE INTO entries (key, kind, payload, next_at, created) VALUES (?, ?, ?, ?, ?)", rows)
            added = connection.total_changes - before
            self.wake()
        return added

    def due(self, now: float, *, kind: str | None = None, limit: int = 100) -> list[Entry]:
        """The pending entries whose time has come, the longest waiting first."""
        where, arguments = ("AND kind = ?", [kind]) if kind is not None else ("", [])
        return self._select(f"WHERE state = 'pending' AND next_at <= ? {where} ORDER BY next_at, number LIMIT ?", [now, *arguments, limit])

    def done(self, key: str, note: str = "") -> None:
        """The entry was performed."""
        self._update(key, "state = 'done', note = ?, last_error = ''", [note])

    def later(self, key: str, at: float, note: str) -> None:
        """The entry goes on at `at`, as intended: its failures so far are forgotten."""
        self._update(key, "next_at = ?, note = ?, attempts = 0", [at, note])

    def retry(self, key: str, at: float, error: str) -> None:
        """A try failed; the next one is at `at`."""
        self._update(key, "next_at = ?, last_error = ?, attempts = attempts + 1", [at, error])

    def failed(self, key: str, error: str) -> None:
        """A try failed and there will be no other."""
        self._update(key, "state = 'failed', last_error = ?, attempts = attempts + 1", [error])

    def expired(self, key: str, error: str) -> None:
        """The entry waited too long to be of use."""
        self._update(key, "state = 'expired', last_error = ?", [error])

    def get(self, key: str) -> Entry | None:
        return next(iter(self._select("WHERE key = ?", [key])), None)

    def entries(self, *, kind: str | None = None, state: State | None = None) -> list[Entry]:
        """All entries, oldest first."""
        wanted = [("kind = ?", kind), ("state = ?", state)]
        clauses = [clause for clause, value in wanted if value is not None]
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        return self._select(f"{where} ORDER BY number", [value for _, value in wanted if value is not None])

    def counts(self) -> dict[str, dict[str, int]]:
        """How many entries of each kind are in which state: {"slack": {"done": 3}}."""
        with self._guarded() as connection:
            rows = connection.execute("SELECT kind, state, count(*) FROM entries GROUP BY kind, state").fetchall()
        counts: dict[str, dict[str, int]] = {}
        for kind, state, count in rows:
            counts.setdefault(kind, {})[state] = count
        return counts

    @property
    def changes(self) -> int:
        """Grows with each `put_all` and `wake`; for `wait`."""
        with self._changed:
            return self._changes

    def wait(self, since: int, seconds: float) -> None:
        """Wait until `changes` is no longer `since`, at most so long: what came between looking and waiting is not missed."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != since, seconds)

    def wake(self) -> None:
        """End every `wait`."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._connection.close()

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA journal_mode = WAL")
        # A decision is rare and must outlive a power cut, so every commit is synced.
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _FORMAT):
            raise ServiceError(f"{self.path} is an outbox of format {version}; this driftloop reads format {_FORMAT}")
        connection.executescript(_TABLE)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        with self._changed:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise ActionError(f"the outbox {self.path} cannot be used: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    def _select(self, rest: str, arguments: list[Any]) -> list[Entry]:
        with self._guarded() as connection:
            # `rest` is one of the constant clauses above; every value is bound.
            rows = connection.execute(f"SELECT {_COLUMNS} FROM entries {rest}", arguments).fetchall()  # noqa: S608
        return [Entry(key, kind, orjson.loads(payload), *others) for key, kind, payload, *others in rows]

    def _update(self, key: str, assignments: str, arguments: list[Any]) -> None:
        with self._guarded() as connection:
            connection.execute(f"UPDATE entries SET {assignments} WHERE key = ? AND state = 'pending'", [*arguments, key])  # noqa: S608


@dataclass(frozen=True, slots=True)
class Done:
    """The action was performed; `note` says what came of it."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing went wrong, but there is more to do in `seconds`; `note` is handed to the handler again as `entry.note`."""

    seconds: float
    note: str = ""


Result = Done | Later

Handler = Callable[[Entry], Result]
"""Performs one entry. Called on a thread of its kind, never twice at once; the same entry may come again after a crash.

ActionError(retry=True) asks for another try, ActionError(retry=False) gives the entry up. Any other exception counts as
ActionError(retry=True). Its text is stored and logged: it must not hold a secret.
"""
