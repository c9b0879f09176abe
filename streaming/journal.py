"""What the watcher said, in files for people and for the live view: outcomes.jsonl and status.json in the state folder.

Nothing that decides reads them.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson

from inference.errors import ServiceError

log = logging.getLogger(__name__)

_MAX_BYTES = 64_000_000
_REMEMBERED = 20_000
"""Ids of the newest outcomes: a watcher that starts from a snapshot says again what it said since that was taken."""


class Journal:
    """Appends outcomes, one JSON object a line and each id once, to at most two files of 64 MB; replaces the status as a whole.

    ServiceError when the folder can't be written at the start; a disk that fills up later is logged once and changes nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failing = False
        self._known: dict[str, None] = {}
        path = folder / "outcomes.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._read(folder / "outcomes.1.jsonl")
            self._file: IO[bytes] = path.open("ab")
            self._file.truncate(self._read(path))
        except OSError as error:
            raise ServiceError(
                f"the state folder {folder} cannot be written: {error.strerror}; give one that this process may write to"
            ) from error

    def outcome(self, outcome: Mapping[str, Any]) -> None:
        if outcome["id"] in self._known:
            return
        self._remember(outcome["id"])
        with self._forgiving():
            self._file.write(orjson.dumps(outcome) + b"\n")
            self._file.flush()
            if self._file.tell() > _MAX_BYTES:
                self._make_room(self._folder / "outcomes.jsonl")

    def status(self, status: Mapping[str, Any]) -> None:
        with self._forgiving():
            temporary = self._folder / ".status.json"
            temporary.write_bytes(orjson.dumps(status))
            temporary.replace(self._folder / "status.json")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _make_room(self, path: Path) -> None:
        # Whatever of this fails, there is an open file to go on with, and the next line tries again.
        with contextlib.suppress(FileNotFoundError):
            path.replace(self._folder / "outcomes.1.jsonl")
        full, self._file = self._file, path.open("wb")
        full.close()

    def _read(self, path: Path) -> int:
        """Remember what the file holds and give the length of its whole lines: a kill may have cut the last one."""
        length = 0
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                length += len(line)
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._remember(orjson.loads(line)["id"])
        return length

    def _remember(self, id_: str) -> None:
        self._known[id_] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failing:
                log.error("the journal in %s cannot be written: %s", self._folder, error.strerror)
            self._failing = True
        else:
            self._failing = False
