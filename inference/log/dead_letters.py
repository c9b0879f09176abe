"""Dead letters: what could not be accepted, kept beside the embedded log with the reason, bounded in number and size."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

MAX_BODY = 65_536
MAX_HEADERS = 100
MAX_VALUE = 4_096
MAX_MESSAGE = 2_000
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
SECRET_WORDS = ("token", "secret", "password", "api-key", "apikey", "credential")

SCHEMA = (
    "CREATE TABLE dead_letters (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp REAL NOT NULL, reason TEXT NOT NULL,"
    " message TEXT NOT NULL, headers BLOB NOT NULL, length INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE dead_letter_counts (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message set aside. `body` is its beginning (at most 64 KiB); `length` is how long the body that was received is."""

    timestamp: float
    reason: str
    message: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    length: int


def without_secrets(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that may be stored: credentials are dropped, the rest is bounded in number and length."""
    kept = [
        (name, value[:MAX_VALUE])
        for name, value in headers
        if name.lower() not in SECRET_HEADERS and not any(word in name.lower() for word in SECRET_WORDS)
    ]
    return kept[:MAX_HEADERS]


def store(
    connection: sqlite3.Connection,
    *,
    timestamp: float,
    reason: str,
    message: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    keep: int,
) -> None:
    """Add one inside the caller's transaction, count it, and let the oldest beyond `keep` go."""
    encoded = orjson.dumps([(_text(name), _text(value)) for name, value in without_secrets(headers)])
    identity = connection.execute(
        "INSERT INTO dead_letters (timestamp, reason, message, headers, length, body) VALUES (?, ?, ?, ?, ?, ?)",
        (timestamp, reason, _text(message[:MAX_MESSAGE]), encoded, len(body), body[:MAX_BODY]),
    ).lastrowid
    count(connection, {reason: 1})
    connection.execute("DELETE FROM dead_letters WHERE id <= ?", ((identity or 0) - keep,))


def count(connection: sqlite3.Connection, counts: Mapping[str, int]) -> None:
    """Count some more, by reason, inside the caller's transaction."""
    connection.executemany(
        "INSERT INTO dead_letter_counts (reason, count) VALUES (?, ?) ON CONFLICT (reason) DO UPDATE SET count = count + excluded.count",
        list(counts.items()),
    )


def load(connection: sqlite3.Connection) -> list[DeadLetter]:
    """Those still kept, oldest first."""
    rows = connection.execute("SELECT timestamp, reason, message, headers, body, length FROM dead_letters ORDER BY id")
    return [
        DeadLetter(timestamp, reason, message, tuple((name, value) for name, value in orjson.loads(headers)), body, length)
        for timestamp, reason, message, headers, body, length in rows
    ]


def counts(connection: sqlite3.Connection) -> dict[str, int]:
    """How many were ever set aside, by reason; those that had to go are in the number."""
    return dict(connection.execute("SELECT reason, count FROM dead_letter_counts ORDER BY reason").fetchall())


def _text(text: str) -> str:
    # A lone surrogate (undecodable bytes that came through a lenient decoder) can't be stored as UTF-8.
    return text.encode("utf-8", "replace").decode()
