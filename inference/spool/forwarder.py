"""The forwarder: carries the spool's events to the log in order, and drops them from the spool once the log has them."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

from inference.episode import Episode
from inference.errors import DriftloopError, EventError, LogError, LogThrottled, LogUnavailable
from inference.event import Message, from_kafka_text
from inference.log import EventLog
from inference.spool.fresh import Numbered
from inference.spool.store import Spool

logger = logging.getLogger(__name__)

_BATCH = 1000
_SMALLEST_BATCH = 50
_IDLE = 0.25
_LINGER = 0.1
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_SHORTEST_THROTTLE, _LONGEST_THROTTLE = 0.5, 60.0


class Forwarder(threading.Thread):
    """Carries the spool's events to the log that `connect` opens, until `stop`; a log that is away is tried for ever.

    An event that the log refuses for good (too large) is set aside in the spool's dead letters. A log that throttles is not
    away: it is asked less often, for less at a time.
    """

    def __init__(self, spool: Spool, connect: Callable[[], EventLog]) -> None:
        super().__init__(name="forwarder", daemon=True)
        self._spool = spool
        self._connect = connect
        self._target: EventLog | None = None
        self._ended = threading.Event()
        self._deadline = float("inf")
        self._at = spool.start
        self._carried = False
        # Numbers beyond `_at` that are on the log for certain, though others before them are not.
        self._known: set[int] = set()
        self._limit = _BATCH
        self._trouble = Episode(logger)
        self.state: Literal["ok", "throttled", "away"] = "ok"
        self.forwarded = 0
        self.throttled = 0
        """How often the log asked for a slower pace."""

    @property
    def away(self) -> bool:
        return self.state == "away"

    def status(self) -> dict[str, Any]:
        """How the log is, what was carried to it, and what waits; LogError when the spool can't tell."""
        waiting = self._spool.extent()
        age = 0.0 if waiting.oldest is None else max(0.0, time.time() - waiting.oldest)
        spool = {"events": waiting.events, "bytes": waiting.bytes, "oldest_seconds": round(age, 3)}
        return {"state": self.state, "forwarded": self.forwarded, "throttled": self.throttled, "spool": spool}

    def run(self) -> None:
        pause, mistake = 0.0, ""
        while time.monotonic() < self._deadline:
            try:
                moved = self._carry()
            except _SpoolFailed as failed:
                self._trouble.failed("the spool fails, nothing is carried from it: %s", failed)
                pause = _longer(pause)
            except LogThrottled as error:
                pause = self._throttle(error, pause)
                # A stop is no reason to give up: the log will take more.
                if self._ended.is_set():
                    time.sleep(max(0.0, min(pause, self._deadline - time.monotonic())))
                else:
                    self._ended.wait(pause)
                continue
            except DriftloopError as error:
                self._is_away(str(error))
                pause = _longer(pause)
            except Exception as error:
                # Whatever it is, the events are safe here, and somebody must hear of it.
                if mistake != (mistake := repr(error)):
                    logger.exception("carrying events to the log failed")
                self._is_away(f"{type(error).__name__}: {error}")
                pause = _longer(pause)
            else:
                pause, mistake = 0.0, ""
                if moved:
                    self._went_well(moved)
                elif self._ended.is_set():
                    break
                continue
            with suppress(LogError):
                # What waits for long should be safe from more than a kill.
                self._spool.sync()
            if self._ended.wait(pause):
                break
        if self._target is not None:
            self._target.close()

    def stop(self, timeout: float = 10.0) -> None:
        """Carry what is there while the log takes it, for at most `timeout` seconds; the rest stays in the spool for the next start."""
        self._deadline = time.monotonic() + timeout
        self._ended.set()
        self._spool.arrived.set()
        self.join(timeout)

    def _carry(self) -> int:
        """Move one batch; how many events that were."""
        if self._target is None:
            self._target = self._connect()
        try:
            self._drop()
            self._spool.arrived.clear()
            records = self._spool.take(self._at, self._limit)
            if not records:
                if not self._ended.is_set():
                    self._spool.arrived.wait(_IDLE)
                return 0
        except LogError as error:
            raise _SpoolFailed(str(error)) from error
        self._deliver(self._target, records)
        try:
            self._drop()
        except LogError as error:
            # They are on the log, and this process knows: they are dropped later, and not carried again.
            self._trouble.failed("the spool fails, what was carried stays in it: %s", error)
        return len(records)

    def _drop(self) -> None:
        if self._carried:
            self._spool.drop_before(self._at)
            self._carried = False

    def _deliver(self, target: EventLog, records: Sequence[Numbered]) -> None:
        """Append them and remember; of those that the log refuses for good, half by half, each is set aside."""
        new = [record for record in records if record[0] not in self._known] if self._known else records
        try:
            if new:
                _append(target, [message for _, message in new])
        except EventError as error:
            if len(records) > 1:
                middle = len(records) // 2
                self._deliver(target, records[:middle])
                self._deliver(target, records[middle:])
                return
            self._set_aside(new[0][1], error)
        except LogUnavailable as error:
            self._known |= {new[index][0] for index in error.appended}
            raise
        self._carried = True
        self._at = records[-1][0] + 1
        self._known -= {number for number, _ in records}
        self.forwarded += len(records)

    def _set_aside(self, message: Message, error: EventError) -> None:
        try:
            self._spool.set_aside(f"refused_{error.reason}", str(error), message.headers, message.value)
        except LogError as failed:
            raise _SpoolFailed(str(failed)) from failed
        logger.error("an event of %s is set aside: %s", message.key, error)

    def _is_away(self, why: str) -> None:
        if self.state != "away":
            logger.warning("the log is away, events wait in the spool: %s", why)
        self.state = "away"

    def _throttle(self, error: LogThrottled, pause: float) -> float:
        """Seconds to wait: what the log asks for, else longer each time."""
        if self.state != "throttled":
            logger.info("the log asks for a slower pace, events wait in the spool: %s", error)
        self.state = "throttled"
        self.throttled += 1
        self._limit = max(_SMALLEST_BATCH, self._limit // 2)
        return min(error.pause or max(2 * pause, _SHORTEST_THROTTLE), _LONGEST_THROTTLE)

    def _went_well(self, moved: int) -> None:
        if self.state != "ok":
            logger.log(logging.WARNING if self.state == "away" else logging.INFO, "the log is back")
        self.state = "ok"
        self._trouble.succeeded("the spool works again after %d failures")
        if moved < self._limit and not self._ended.is_set():
            # A few more make the next batch worth its while.
            self._ended.wait(_LINGER)
        self._limit = min(_BATCH, 2 * self._limit)


def _append(target: EventLog, messages: Sequence[Message]) -> None:
    """As they are, if the log takes them so: to read events from them and write them anew would be half of all the work here."""
    append_messages = getattr(target, "append_messages", None)
    if append_messages is not None:
        append_messages(messages)
    else:
        target.append([from_kafka_text(headers, value) for _, headers, value in messages])


def _longer(pause: float) -> float:
    return min(max(2 * pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)


class _SpoolFailed(Exception):
    """It is the spool that fails, not the log."""
