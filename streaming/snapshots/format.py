"""A snapshot as bytes: plain values only, so that reading one can run nothing, and a digest over all of it.

8 bytes    DRIFTSNP
2 bytes    the format's number, big-endian, as all numbers here
4 bytes    the header's length
32 bytes   BLAKE2b of everything before and after it
header     MessagePack: partition, position, log, written, body (its length), versions
body       MessagePack: a map of the sections that the watcher's parts made
"""

import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata
from typing import Any

import msgspec

from inference.errors import SnapshotError

FORMAT = 1
MAX_BYTES = 1024**3
"""Of one snapshot, written or read; one with 50,000 identities and a window of 1,000 rows of 20 columns has one thousandth."""
MAX_DEPTH = 64

_MAGIC = b"DRIFTSNP"
_PREFIX = struct.Struct(">8sHI")
_DIGEST = 32
_SCALARS = frozenset({type(None), bool, int, float, str, bytes})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that was remembered of `partition` when everything before offset `position` had been read, by section.

    `body` holds plain values: None, bool, int (64 bits), float, str, bytes, and lists and dicts (with str keys) of them. Dicts keep
    their order.
    """

    partition: int
    position: int
    body: dict[str, Any]


class _Header(msgspec.Struct):
    partition: int
    position: int
    log: str
    written: float
    body: int
    versions: dict[str, str]


def encode(snapshot: Snapshot, log_identity: str, *, now: float | None = None) -> bytes:
    """The snapshot as a file's content; SnapshotError when its body holds anything but plain values, or is too large.

    `now` (seconds since 1970) is when it is written: for people, and no part of the memory.
    """
    try:
        _check_plain(snapshot.body)
        body = msgspec.msgpack.encode(snapshot.body)
        written = time.time() if now is None else now
        header = _Header(snapshot.partition, snapshot.position, log_identity, written, len(body), _versions())
        head = msgspec.msgpack.encode(header)
    except (ValueError, TypeError, OverflowError) as error:
        raise SnapshotError(f"what is remembered of partition {snapshot.partition} cannot be stored: {error}") from error
    prefix = _PREFIX.pack(_MAGIC, FORMAT, len(head))
    data = b"".join((prefix, _digest(prefix, head, body), head, body))
    if len(data) > MAX_BYTES:
        raise SnapshotError(f"the snapshot of partition {snapshot.partition} has {len(data)} bytes; at most {MAX_BYTES} are written")
    return data


def decode(data: bytes, log_identity: str, *, partition: int | None = None) -> Snapshot:
    """What `encode` made into `data`; SnapshotError when it is damaged, of a newer format, of another log or another partition."""
    if len(data) < _PREFIX.size + _DIGEST or not data.startswith(_MAGIC):
        raise SnapshotError(f"{len(data)} bytes that are no snapshot: they do not begin like one, or end before its header does")
    _, number, header_length = _PREFIX.unpack_from(data)
    if number != FORMAT:
        raise SnapshotError(
            f"it is of format {number}, and this driftloop reads format {FORMAT}: run the one that wrote it, or a newer one"
        )
    content = memoryview(data)
    head = content[_PREFIX.size + _DIGEST :][:header_length]
    body = content[_PREFIX.size + _DIGEST :][header_length:]
    if data[_PREFIX.size : _PREFIX.size + _DIGEST] != _digest(content[: _PREFIX.size], head, body):
        raise SnapshotError(f"it is damaged: its {len(data)} bytes are not what was written")
    try:
        header = msgspec.msgpack.decode(head, type=_Header)
        if header.body != len(body):
            raise SnapshotError(f"it is damaged: a body of {len(body)} bytes, and its header says {header.body}")
        found = msgspec.msgpack.decode(body)
        _check_plain(found)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise SnapshotError(f"its content cannot be read: {error}") from error
    if type(found) is not dict:
        raise SnapshotError(f"its body is a {type(found).__name__}, and should be a map of sections")
    if header.log != log_identity:
        raise SnapshotError(f"it is of the log {header.log[:200]!r}, not of {log_identity!r}")
    if partition is not None and header.partition != partition:
        raise SnapshotError(f"it is of partition {header.partition}, not of {partition}")
    return Snapshot(header.partition, header.position, found)


def _check_plain(value: object, depth: int = 0) -> None:
    """TypeError for anything that would not come back as it was put in."""
    kind = type(value)
    if kind in _SCALARS:
        return
    if depth > MAX_DEPTH:
        raise TypeError(f"values in more than {MAX_DEPTH} lists and maps")
    members: Collection[object]
    if isinstance(value, dict) and kind is dict:
        if set(map(type, value)) - {str}:
            raise TypeError(f"a map with keys that are no texts: {', '.join(sorted(type(key).__name__ for key in value))[:100]}")
        members = value.values()
    elif isinstance(value, list) and kind is list:
        members = value
    else:
        raise TypeError(f"a {kind.__name__}, which is no plain value")
    if not _SCALARS.issuperset(map(type, members)):
        for member in members:
            _check_plain(member, depth + 1)


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = blake2b(digest_size=_DIGEST)
    for part in parts:
        digest.update(part)
    return digest.digest()


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {}
    for name in ("driftloop", "river", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found
