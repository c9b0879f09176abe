"""The spool itself: a queue of events on this disk that survives a kill, the newest of which are at hand in memory."""

import errno
import fcntl
import logging
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from inference.errors import LogCorrupt, LogFull, LogUnavailable, ServiceError
from inference.event import Event, Message, lasting_message
from inference.log.dead_letters import DeadLetter
from inference.log.embedded import EmbeddedLog
from inference.spool.fresh import Fresh, Numbered
from inference.spool.segments import Frame, Segment, found_in

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 1024 * 1024
READ_BYTES = 16 * 1024 * 1024
"""A read stops here even below its limit."""
KEPT_FREE = 64 * 1024 * 1024
"""Of the disk, for what else there is on it; half of a small one."""
DAMAGED = "lost_spool_damaged"

_POSITION = struct.Struct("<QI")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message]).decode


class Extent(NamedTuple):
    """Events that wait, their bytes on the disk, and when the oldest came (seconds since 1970; None: there are none)."""

    events: int
    bytes: int
    oldest: float | None


class Spool:
    """Events in the order in which they were appended, until they are dropped.

    An append is all or nothing, and survives a kill of the process; a power cut may take what came after the last `sync`. A spool that
    holds `max_bytes`, or whose disk is nearly full, refuses events rather than lose some. One process has a spool; in it, one thread
    appends and another one takes and drops. What cannot be accepted is set aside here, too.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = 2_000_000_000, max_dead_letters: int = 1_000, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = min(SEGMENT_BYTES, max(65_536, max_bytes // 8))
        self._clock = clock
        self._lock = threading.Lock()
        self._fresh = Fresh()
        self.arrived = threading.Event()
        """Set when something was appended."""
        with self._translated():
            folder.mkdir(parents=True, exist_ok=True)
            self._held = _held(folder)
            self._letters = EmbeddedLog(folder / "dead-letters.db", partitions=1, max_dead_letters=max_dead_letters)
            self._position = os.open(folder / "position", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._segments = deque(found_in(folder))
            # A power cut may have taken events that were carried before it: their numbers are not given anew.
            self._start = max(self._stored(), self._segments[0].first if self._segments else 0)
            self._end = max(self._segments[-1].end if self._segments else 0, self._start)
            self._place = (0, self._segments[0].first if self._segments else 0)
            self._advance(self._start)

    @property
    def start(self) -> int:
        """The number of the oldest event that waits, or of the next one to come."""
        return self._start

    @property
    def end(self) -> int:
        """The number of the next event to come."""
        return self._end

    def append(self, events: Sequence[Event]) -> None:
        """EventError: one of them would not be the same after its way through a log; LogFull: there is no room. Then none is here."""
        if not events:
            return
        messages = [lasting_message(event) for event in events]
        payload = _encode(messages)
        with self._lock, self._translated():
            self._check_room()
            newest = self._newest()
            newest.append(payload, len(messages), self._clock())
            self._fresh.put(self._end, messages, len(payload))
            self._end = newest.end
        self.arrived.set()

    def take(self, number: int, limit: int) -> list[Numbered]:
        """At most `limit` events from this number on, in order, from memory if they are there. Every one before it was carried."""
        with self._lock:
            fresh = self._fresh.take(number, limit)
        return fresh or self.read(number, limit)

    def read(self, number: int, limit: int = 1_000) -> list[Numbered]:
        """As `take`, from the disk. What was damaged there is counted among the dead letters, and left out."""
        found: list[Numbered] = []
        with self._lock, self._translated():
            frames = list(self._frames(number, limit))
        given_up = number
        for segment, frame in frames:
            try:
                messages = _decode(segment.payload(frame))
            except (OSError, LogCorrupt, msgspec.MsgspecError) as error:
                if found:
                    break
                given_up = frame.end_number
                self._give_up(max(number, frame.first), given_up, error)
                continue
            skipped = max(0, number - frame.first)
            found += enumerate(messages[skipped : skipped + limit - len(found)], frame.first + skipped)
        if not found and given_up > number:
            self.drop_before(given_up)
        return found

    def drop_before(self, number: int) -> None:
        """Somebody else has every event before this number now."""
        with self._lock, self._translated():
            if number > self._end:
                raise LogCorrupt(f"the spool {self._folder} ends at {self._end}, before {number}")
            if number > self._start:
                stored = number.to_bytes(8, "little")
                os.pwrite(self._position, stored + zlib.crc32(stored).to_bytes(4, "little"), 0)
                self._advance(number)

    def extent(self) -> Extent:
        """How much waits; dead letters are not in it."""
        with self._lock, self._translated():
            oldest = next((frame.time for _, frame in self._frames(self._start, 1)), None)
            return Extent(self._end - self._start, self._bytes(), oldest) if self._end > self._start else Extent(0, 0, None)

    def sync(self) -> None:
        """Wait until what waits is safe from a power cut, too."""
        with self._lock:
            written = [segment for segment in self._segments if segment.dirty]
        with self._translated():
            for segment in written:
                segment.sync()

    def set_aside(self, reason: str, message: str, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Keep a message that can't be accepted, with the reason; credentials in its headers are dropped."""
        self._letters.set_aside(reason, message, headers, body)

    def dead_letters(self) -> list[DeadLetter]:
        """Those still kept, oldest first."""
        return self._letters.dead_letters()

    def dead_letter_counts(self) -> dict[str, int]:
        """How many were ever set aside, by reason."""
        return self._letters.dead_letter_counts()

    def count_dead_letters(self, counts: Mapping[str, int]) -> None:
        """Count messages, by reason, of which nothing could be kept."""
        self._letters.count_dead_letters(counts)

    def close(self) -> None:
        with self._lock:
            for segment in self._segments:
                segment.close()
            self._segments.clear()
            os.close(self._position)
            os.close(self._held)
            self._letters.close()

    def _stored(self) -> int:
        """The number before which everything was dropped; 0 when nothing or no such number is stored: then some are carried twice."""
        stored = os.pread(self._position, _POSITION.size, 0)
        if len(stored) < _POSITION.size or _POSITION.unpack(stored)[1] != zlib.crc32(stored[:8]):
            return 0
        return int(_POSITION.unpack(stored)[0])

    def _newest(self) -> Segment:
        """The segment that takes the next frame."""
        newest = self._segments[-1] if self._segments else None
        if newest is None or newest.end != self._end or newest.size >= self._segment_bytes:
            if newest is None:
                self._place = (0, self._end)
            newest = Segment.make(self._folder, self._end)
            self._segments.append(newest)
        return newest

    def _bytes(self) -> int:
        return sum([segment.size for segment in self._segments]) - (self._place[0] if self._segments else 0)

    def _check_room(self) -> None:
        waiting = self._bytes()
        if waiting >= self._max_bytes:
            raise LogFull(f"the spool {self._folder} is full: {waiting} bytes where {self._max_bytes} may be; the log must take some first")
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            raise LogUnavailable(
                f"the spool {self._folder}: its folder is gone ({error.strerror}); start again in one that stays"
            ) from error
        free, kept = disk.f_bavail * disk.f_frsize, min(KEPT_FREE, disk.f_blocks * disk.f_frsize // 2)
        if free < kept:
            raise LogFull(
                f"the spool {self._folder}: its disk is full: {free} bytes are free, {kept} must be; make room, or wait for the log"
            )

    def _advance(self, number: int) -> None:
        """Remove what lies wholly before this number, and go to the frame that holds it."""
        self._start = number
        while len(self._segments) > 1 and self._segments[1].first <= number:
            self._segments.popleft().remove()
            self._place = (0, self._segments[0].first)
        for _, frame in self._frames(number, 1):
            self._place = (frame.start, frame.first)
            return
        if self._segments:
            # Nothing waits. What was carried may be all that the disk is full of.
            if self._segments[0].size >= self._segment_bytes // 16:
                self._segments.popleft().remove()
            else:
                self._place = (self._segments[0].size, self._segments[0].end)

    def _frames(self, number: int, limit: int) -> Iterator[tuple[Segment, Frame]]:
        """The frames that hold `limit` events from this number on. The rest of a segment in which none can be made out is one of its own,
        and holds nothing that can be read."""
        events, room = 0, READ_BYTES
        for place, segment in enumerate(self._segments):
            at, first = (0, segment.first) if place else self._place
            while at < segment.size:
                frame = segment.frame(at, first)
                if frame.end_number > number:
                    yield segment, frame
                    events, room = events + frame.end_number - max(number, first), room - frame.length
                    if events >= limit or room <= 0:
                        return
                at, first = frame.end, frame.end_number

    def _give_up(self, first: int, end: int, error: Exception) -> None:
        logger.error("the spool %s: %d events are lost: %s", self._folder, end - first, error)
        self.count_dead_letters({DAMAGED: end - first})

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise LogFull(f"the spool {self._folder}: its disk is full; make room, or wait for the log") from error
            raise LogUnavailable(
                f"the spool {self._folder} cannot be read or written ({error.strerror}); give a folder of this user's on a disk that works"
            ) from error


def _held(folder: Path) -> int:
    """The lock of a spool; ServiceError when another process has it."""
    held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise ServiceError(f"a gateway is at work on the spool {folder}: stop it, or give this one a folder of its own") from None
    return held
