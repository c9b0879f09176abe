"""Where a replay that was stopped is kept until it goes on: one file for each of its processes, beside what it reads."""

import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from inference.errors import SnapshotError
from streaming.snapshots import Snapshot, decode, encode

EVERY = 30.0
"""Seconds between two states that are written while a replay goes on."""


def identity(*asked: object) -> str:
    """The same for the same question in every process, and for no other."""
    return f"replay-{blake2b(repr(asked).encode(), digest_size=8).hexdigest()}"


@dataclass
class Parked:
    """The state of one process of one replay. A replay of anything else never finds it: its name says what was asked."""

    folder: Path
    name: str
    written: float = 0.0

    @property
    def path(self) -> Path:
        return self.folder / f".driftloop-{self.name}.state"

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where nothing was. SnapshotError: it is damaged."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SnapshotError(f"{self.path}: cannot be read: {error.strerror}") from error
        try:
            return decode(data, self.name).body
        except SnapshotError as error:
            raise SnapshotError(f"{self.path}: {error}; delete it and the replay begins anew") from error

    def due(self) -> bool:
        """Whether it is time to write again; a replay that is short writes nothing."""
        if not self.written:
            self.written = time.monotonic()
        return time.monotonic() - self.written >= EVERY

    def write(self, body: dict[str, Any]) -> None:
        """All or nothing; SnapshotError when it cannot be done."""
        self.written = time.monotonic()
        beside = self.path.with_suffix(".new")
        try:
            beside.write_bytes(encode(Snapshot(0, 0, body), self.name))
            beside.replace(self.path)
        except OSError as error:
            raise SnapshotError(f"{self.path}: cannot be written: {error.strerror}") from error

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
