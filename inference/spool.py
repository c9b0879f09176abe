"""The gateway's spool: events wait on this disk until the log, which may be away, has them.

The gateway acknowledges what stands in the spool, an embedded log of its own; the forwarder carries it to the log in order and
drops it here once the log has it. A crash in between carries it twice, and readers drop doubles; nothing is lost.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from inference.errors import EventError, LogError
from inference.event import to_http
from inference.log import EventLog, Record
from inference.log.embedded import EmbeddedLog

logger = logging.getLogger(__name__)

_BATCH = 1000
_IDLE = 0.25
_LONGEST_PAUSE = 5.0


class Forwarder(threading.Thread):
    """Carries the spool's events to the log that `connect` opens, until `stop`; a log that is away is tried for ever.

    An event that the log refuses for good (too large) is set aside in the spool's dead letters.
    """

    def __init__(self, spool: EmbeddedLog, connect: Callable[[], EventLog]) -> None:
        super().__init__(name="forwarder", daemon=True)
        self._spool = spool
        self._connect = connect
        self._target: EventLog | None = None
        self._ended = threading.Event()
        self.forwarded = 0
        self.away = False

    def run(self) -> None:
        pause = 0.0
        while True:
            try:
                moved = self._carry()
            except LogError as error:
                if not self.away:
                    logger.warning("the log is away, events wait in the spool: %s", error)
                self.away = True
                pause = min(max(2 * pause, 0.1), _LONGEST_PAUSE)
                if self._ended.wait(pause):
                    break
                continue
            if self.away:
                logger.warning("the log is back")
            self.away, pause = False, 0.0
            if not moved and self._ended.is_set():
                break
        if self._target is not None:
            self._target.close()

    def stop(self, timeout: float = 10.0) -> None:
        """Carry what is there while the log takes it, then end; the rest stays in the spool for the next start."""
        self._ended.set()
        self.join(timeout)

    def _carry(self) -> bool:
        """Move one batch; False when there was nothing."""
        positions = self._spool.start_positions()
        records = self._spool.read(positions, _BATCH)
        if not records:
            self._spool.wait_for(positions, 0.0 if self._ended.is_set() else _IDLE)
            return False
        if self._target is None:
            self._target = self._connect()
        try:
            self._target.append([record.event for record in records])
        except EventError:
            self._one_by_one(self._target, records)
        self._spool.drop_before(_after(records))
        self.forwarded += len(records)
        return True

    def _one_by_one(self, target: EventLog, records: Sequence[Record]) -> None:
        for record in records:
            try:
                target.append([record.event])
            except EventError as error:
                headers, body = to_http(record.event)
                self._spool.set_aside(f"refused_{error.reason}", str(error), headers, body)
                logger.error("an event of %s is set aside: %s", record.event.model, error)


def _after(records: Sequence[Record]) -> dict[int, int]:
    return {record.partition: record.offset + 1 for record in records}
