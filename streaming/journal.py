"""What the watcher said, in files for people and for the live view: outcomes.jsonl and status.json in the state folder.

Nothing that decides reads them. The journal is written anew at each start, since a started watcher reads the log again.
"""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import orjson

from inference.errors import ServiceError

log = logging.getLogger(__name__)

_MAX_BYTES = 64_000_000


class Journal:
    """Appends outcomes, one JSON object a line, to at most two files of 64 MB; replaces the status as a whole.

    ServiceError when the folder can't be written at the start; a disk that fills up later is logged once and changes nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failing = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = (folder / "outcomes.jsonl").open("wb")
        except OSError as error:
            raise ServiceError(
                f"the state folder {folder} cannot be written: {error.strerror}; give one that this process may write to"
            ) from error

    def outcome(self, outcome: Mapping[str, Any]) -> None:
        with self._forgiving():
            self._file.write(orjson.dumps(outcome) + b"\n")
            self._file.flush()
            if self._file.tell() > _MAX_BYTES:
                self._file.close()
                (self._folder / "outcomes.jsonl").replace(self._folder / "outcomes.1.jsonl")
                self._file = (self._folder / "outcomes.jsonl").open("wb")

    def status(self, status: Mapping[str, Any]) -> None:
        with self._forgiving():
            temporary = self._folder / ".status.json"
            temporary.write_bytes(orjson.dumps(status))
            temporary.replace(self._folder / "status.json")

    @contextlib.contextmanager
    def _forgiving(self) -> Any:
        try:
            yield
        except OSError as error:
            if not self._failing:
                log.error("the journal in %s cannot be written: %s", self._folder, error.strerror)
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
