"""The spool's files: events in the order in which they came, in frames, in files that are appended to and dropped whole.

    <number of its first event>.frames      frame after frame
    frame = header (payload's length, its CRC, number of events, time of append, CRC of all that) and payload

A payload is what the caller makes of it. Whatever a kill or a power cut left half written at the end is cut off when the files are
opened again. A frame that was damaged later is told as such; what comes behind it can still be read if only its payload was.
"""

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inference.errors import LogCorrupt

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<IIId")
_CHECK = struct.Struct("<I")
HEAD_BYTES = _HEADER.size + _CHECK.size
_SUFFIX = ".frames"
_DIGITS = 20
# Its absence (macOS) costs only time.
_sync = getattr(os, "fdatasync", os.fsync)


class Frame(NamedTuple):
    """Where a frame stands: number of its first event, how many it holds, when they were appended, and its bytes in the file."""

    first: int
    events: int
    time: float
    start: int
    length: int
    checksum: int | None

    @property
    def end(self) -> int:
        """The file's byte behind it."""
        return self.start + HEAD_BYTES + self.length

    @property
    def end_number(self) -> int:
        """The number of the event behind its last."""
        return self.first + self.events


class Segment:
    """One file. `size` bytes of it are frames; `first` and `end` are the numbers of its first event and of the one behind its last."""

    def __init__(self, path: Path, first: int, *, size: int = 0, end: int | None = None) -> None:
        self.path = path
        self.first = first
        self.end = first if end is None else end
        self.size = size
        self.dirty = False
        """Whether a power cut may take some of it."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @classmethod
    def make(cls, folder: Path, first: int) -> "Segment":
        """A new file; OSError when that fails."""
        return cls(folder / f"{first:0{_DIGITS}}{_SUFFIX}", first)

    def append(self, payload: bytes, count: int, now: float) -> None:
        """Add a frame as a whole; OSError when that fails, and then nothing was added."""
        head = _HEADER.pack(len(payload), zlib.crc32(payload), count, now)
        frame = b"".join((head, _CHECK.pack(zlib.crc32(head)), payload))
        try:
            written = 0
            while written < len(frame):
                written += os.pwrite(self._file, frame[written:] if written else frame, self.size + written)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.size)
            raise
        self.size += len(frame)
        self.end += count
        self.dirty = True

    def frame(self, start: int, first: int) -> Frame:
        """The frame at this byte, whose first event has this number; where none can be made out, all that is left of the file as one
        that cannot be read."""
        head = os.pread(self._file, HEAD_BYTES, start)
        if len(head) == HEAD_BYTES and _CHECK.unpack_from(head, _HEADER.size)[0] == zlib.crc32(head[: _HEADER.size]):
            length, checksum, count, time = _HEADER.unpack_from(head)
            if start + HEAD_BYTES + length <= self.size:
                return Frame(first, count, time, start, length, checksum)
        return Frame(first, self.end - first, 0.0, start, self.size - start - HEAD_BYTES, None)

    def payload(self, frame: Frame) -> bytes:
        """LogCorrupt when it is not what was written."""
        payload = os.pread(self._file, frame.length, frame.start + HEAD_BYTES) if frame.checksum is not None else b""
        if len(payload) != frame.length or zlib.crc32(payload) != frame.checksum:
            raise LogCorrupt(f"{self.path} is damaged at byte {frame.start}")
        return payload

    def recover(self) -> None:
        """Find the end of a file that another process wrote, and cut off what is no whole frame."""
        self.size = os.fstat(self._file).st_size
        at, self.end = 0, self.first
        while at < self.size:
            frame = self.frame(at, self.end)
            if frame.checksum is None or (frame.end == self.size and not self._is_whole(frame)):
                logger.warning("%s: %d bytes at its end are no whole frame and are cut off", self.path, self.size - at)
                os.ftruncate(self._file, at)
                self.size = at
                break
            at, self.end = frame.end, frame.end_number

    def _is_whole(self, frame: Frame) -> bool:
        try:
            self.payload(frame)
        except LogCorrupt:
            return False
        return True

    def sync(self) -> None:
        """Wait until the disk has it."""
        self.dirty = False
        _sync(self._file)
        # Else it could take the file's name.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        os.close(self._file)

    def remove(self) -> None:
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def found_in(folder: Path) -> Iterator[Segment]:
    """The segments that are there, oldest first, ready to be read; of all but the newest it is known where they end."""
    named = sorted((int(path.stem), path) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())
    for place, (first, path) in enumerate(named):
        if place + 1 < len(named):
            yield Segment(path, first, size=path.stat().st_size, end=named[place + 1][0])
        else:
            newest = Segment(path, first)
            newest.recover()
            yield newest
