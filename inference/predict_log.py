"""The predict log: each answered request as one JSON line in a rotated file, for `driftloop serve --predict-log FILE`.

    {"time": "...Z", "id": "<ce-id>", "model": "default/iris-sklearn", "version": "1", "inputs": [[..]], "outputs": [..]}

`inputs` has one list per row, in the order of the model's schema; `outputs` one prediction per row. `id` is the prediction's
event id where the tap is on or the client sent a Ce-Id, so that labels can name it. It is a convenience for people and
scripts: the product itself learns from the event log only.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Self, cast

import orjson

from inference.errors import ServiceError
from inference.event import now_text

logger = logging.getLogger(__name__)

MAX_BYTES = 50 * 2**20
BACKUPS = 5
_WARNING_SECONDS = 60.0


class PredictLog:
    """Appends lines; the file is opened at once, so that ServiceError comes at the start and never later.

    A line that cannot be written afterwards (a full disk) is counted in `lost` and warned about, never raised.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, backups: int = BACKUPS, clock: Callable[[], float] = time.time) -> None:
        self.lost = 0
        self._path = Path(path)
        self._clock = clock
        self._warned = float("-inf")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _File(self._path, max_bytes, backups, self._failed)
        except OSError as error:
            raise ServiceError(
                f"the predict log {path} cannot be written: {error.strerror}; name a file in a folder you may write to"
            ) from error

    def write(self, *, id_: str, model: str, version: str, inputs: list[list[Any]], outputs: list[Any]) -> None:
        line = {"time": now_text(self._clock()), "id": id_, "model": model, "version": version, "inputs": inputs, "outputs": outputs}
        try:
            text = orjson.dumps(line, default=str).decode()
        except (TypeError, ValueError) as error:
            self._failed(error)
            return
        self._file.handle(logging.makeLogRecord({"msg": text}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()

    def _failed(self, error: BaseException) -> None:
        self.lost += 1
        now = time.monotonic()
        if now - self._warned >= _WARNING_SECONDS:
            self._warned = now
            logger.warning("the predict log %s lost %d line(s) so far: %s (predictions go on)", self._path, self.lost, error)


class _File(RotatingFileHandler):
    def __init__(self, path: Path, max_bytes: int, backups: int, failed: Callable[[BaseException], None]) -> None:
        self._on_failure = failed
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        try:
            if _ends_mid_line(Path(self.baseFilename)):
                # A crash or a full disk cut the last line short; the next one must not be lost with it.
                stream.write("\n")
        except OSError:
            stream.close()
            raise
        return stream

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        import sys

        error = cast("BaseException", sys.exc_info()[1])
        stream, self.stream = self.stream, cast("TextIOWrapper", None)  # None: the next line opens the file anew
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.close()
        self._on_failure(error)


def _ends_mid_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
