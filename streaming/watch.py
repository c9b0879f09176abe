"""The always-on consumer: follows the log, drives the fleet, hands every outcome on.

It keeps nothing of its own: started again, it reads the log from its start, comes to the same outcomes with the same ids,
and whoever performs them knows by the id what was done before.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from inference.errors import DriftloopError
from inference.log import Record
from streaming.core.fleet import Fleet
from streaming.core.verdict import Outcome

log = logging.getLogger(__name__)

Perform = Callable[[Outcome], None]
"""Takes one outcome and makes it durable before it returns; DriftloopError when it can't now (it is offered again)."""

_STATUS_EVERY = 0.25


class Watch:
    """Batches in, outcomes out, until the batches end. `status` hears where every model stands, at most four times a second."""

    def __init__(self, fleet: Fleet, perform: Perform, status: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
        self._fleet = fleet
        self._perform = perform
        self._status = status
        self._stop = stop
        self._records = 0
        self._told = float("-inf")

    def run(self, batches: Iterable[list[Record]]) -> None:
        for records in batches:
            self._records += len(records)
            for outcome in self._fleet.feed(records):
                self._hand_on(outcome)
            self._tell(caught_up=not records)
        self._told = float("-inf")
        self._tell(caught_up=True)

    def _hand_on(self, outcome: Outcome) -> None:
        """An outcome that can't be made durable holds everything up: going on would lose it."""
        pause = 0.1
        while not self._stop.is_set():
            try:
                self._perform(outcome)
                return
            except DriftloopError as error:
                log.error("an outcome of %s waits: %s", type(outcome).__name__, error)
                self._stop.wait(pause)
                pause = min(2 * pause, 10.0)

    def _tell(self, *, caught_up: bool) -> None:
        now = time.monotonic()
        if now - self._told >= _STATUS_EVERY:
            self._told = now
            self._status({**self._fleet.status(), "records": self._records, "caught_up": caught_up})
