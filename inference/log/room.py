"""Whether an embedded log may grow: within its own bound, and on its disk."""

import os
import sqlite3
from pathlib import Path

from inference.errors import LogFull, LogUnavailable

WAL_BYTES = 64 * 1024 * 1024
"""What SQLite's WAL may keep of the disk, and what is kept free for it."""
_PAGE_BYTES = 4096


def check_room(path: Path, connection: sqlite3.Connection, total: int, bound: int) -> None:
    """LogFull when the log's `total` bytes are more than its `bound`, or the disk is nearly full."""
    if total > bound:
        raise LogFull(f"event log {path} is full: {total} bytes where {bound} may be; it must be drained first")
    try:
        disk = os.statvfs(path.parent)
    except OSError as error:
        raise LogUnavailable(f"event log {path}: its folder is gone ({error.strerror}); start again in one that stays") from error
    # Before anything can be dropped, what is in the WAL must find a place in the database, too: a disk filled to the last byte
    # could never be freed again. Pages that were dropped stay in the file, to be used again.
    (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    free = disk.f_bavail * disk.f_frsize + pages * _PAGE_BYTES
    kept_free = min(WAL_BYTES, disk.f_blocks * disk.f_frsize // 2)
    if free < kept_free:
        raise LogFull(f"event log {path}: its disk is full: {free} bytes are free, {kept_free} must be; make room, or wait for it")
