"""The only reader of an event hub, by AMQP: owns what the service lets it read alone, and stands by for what another reads.

Who owns a partition is the service's word: it lets in one receiver with an owner level (epoch) per partition and consumer
group, and cuts off one with a lower level. The level is the time at which the process started, so of several processes the
youngest reads all partitions and the others stand by: a new release takes over when it starts, and when it ends, another does.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inference.errors import DriftloopError
from inference.log import Owner, Record
from inference.log.connection import Connection
from inference.log.eventhubs_client import Hub
from inference.log.eventhubs_receiver import NEWEST, Receiver

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 3.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
_CLOSE_SECONDS = 2.0


@dataclass
class _Seat:
    """A partition: `receiver` claims it until it is `owned`, then reads it; without one, the next try is at `again` (monotonic)."""

    level: int
    receiver: Receiver | None = None
    owned: bool = False
    standing_by: bool = False
    again: float = 0.0
    pause: float = _FIRST_PAUSE
    leaving: Receiver | None = None
    trouble: Exception | None = None


class EventHubsFeed:
    """A `Feed` over all partitions of a hub, as `group`, a consumer group that is there already.

    A partition is claimed first, then its owner is asked where to read on, so that whoever had it is cut off by then. A
    connection that breaks is a partition that is lost and claimed again: nobody can know who had it in between. `silence`
    (seconds) is how long nothing, not even a sign of life, may come before a connection counts as broken; the service
    promises one within the half of it.
    """

    def __init__(
        self,
        connection: Connection,
        group: str,
        owner: Owner,
        *,
        credential: Any = None,
        level: int | None = None,
        silence: float = 60.0,
        standby: float = 5.0,
    ) -> None:
        self._hub = Hub(connection, credential=credential)
        self._owner = owner
        self._group = group
        self._silence = silence
        self._standby = standby
        self._changed = threading.Condition()
        start = time.time_ns() if level is None else level
        self._seats = {number: _Seat(start) for number in self._hub.partitions()}
        self._claiming_since = time.monotonic()
        self._turn = 0

    def poll(self, limit: int, timeout: float) -> list[Record]:
        deadline = time.monotonic() + timeout
        while True:
            self._tend()
            records = self._take(limit)
            left = deadline - time.monotonic()
            if records or left <= 0:
                break
            with self._changed:
                self._changed.wait_for(self._any, min(left, 0.1))
        if not records:
            self._complain()
        return records

    def commit(self, positions: Mapping[int, int]) -> None:
        """There is no place for them: by AMQP, the service does not keep how far a group is."""

    def owns(self, partition: int) -> bool:
        seat = self._seats.get(partition)
        receiver = seat.receiver if seat is not None and seat.owned else None
        return receiver is not None and receiver.attached and receiver.failure is None

    def close(self) -> None:
        owned = [number for number, seat in self._seats.items() if seat.owned]
        try:
            if owned:
                self._owner.revoked(owned)
        except DriftloopError as error:
            # Whoever comes next starts from an older snapshot and comes to the same outcomes.
            logger.error("partition %s: not everything was saved at the end: %s", _numbers(owned), error)
        finally:
            receivers = [seat.receiver for seat in self._seats.values() if seat.receiver is not None]
            for seat in self._seats.values():
                seat.owned, seat.receiver = False, None
            for receiver in receivers:
                receiver.close()
            deadline = time.monotonic() + _CLOSE_SECONDS
            for receiver in receivers:
                receiver.join(deadline)

    def _tend(self) -> None:
        """Tell the owner what is lost, claim what is free, and start with what was claimed."""
        lost: list[int] = []
        stolen: list[int] = []
        broken: list[int] = []
        for number, seat in self._seats.items():
            if seat.receiver is not None and seat.receiver.failure is not None:
                if seat.owned:
                    lost.append(number)
                if self._vacate(seat, seat.receiver):
                    (stolen if seat.standing_by else broken).append(number)
            if seat.leaving is not None and not seat.leaving.alive:
                seat.leaving = None
            if seat.receiver is None and seat.leaving is None and time.monotonic() >= seat.again:
                if not self._claimed():
                    self._claiming_since = time.monotonic()
                seat.receiver = self._receiver(number, NEWEST, seat.level)
        if stolen:
            logger.warning("%s: a younger watcher reads partitions %s; standing by", self._hub.address, _numbers(stolen))
        if broken:
            logger.warning("partitions %s cannot be read, trying again: %s", _numbers(broken), self._seats[broken[0]].trouble)
        if lost:
            self._owner.lost(lost)
        self._start()

    def _vacate(self, seat: _Seat, receiver: Receiver) -> bool:
        """Clear the seat of a receiver that failed; whether that is news."""
        receiver.close()
        seat.leaving, seat.receiver, seat.owned = receiver, None, False
        was_standing_by, had_trouble = seat.standing_by, seat.trouble is not None
        if receiver.stolen:
            seat.standing_by, seat.trouble, seat.again = True, None, time.monotonic() + self._standby
            return not was_standing_by
        if receiver.attached:
            # Our own old connection may still count for the service: only a higher level is sure to get past it.
            seat.level, seat.pause = seat.level + 1, _FIRST_PAUSE
        seat.standing_by, seat.trouble = False, self._hub.told(receiver.failure or ConnectionError())
        seat.again = time.monotonic() + seat.pause
        seat.pause = min(2 * seat.pause, _LONGEST_PAUSE)
        return not had_trouble

    def _start(self) -> None:
        """What was claimed is read from where the owner says; when it can't say now, it is asked again at the next poll."""
        claimed = self._claimed()
        unsettled = any(seat.receiver is not None and not seat.receiver.attached for seat in self._seats.values())
        # All at once where it goes: the owner asks the hub and its own store about each.
        if not claimed or (unsettled and time.monotonic() - self._claiming_since < _SETTLE_SECONDS):
            return
        positions = self._owner.assigned(claimed)
        for number in claimed:
            seat = self._seats[number]
            claim, seat.level = seat.receiver, seat.level + 1
            seat.receiver = self._receiver(number, positions.get(number, 0), seat.level)
            seat.owned, seat.standing_by, seat.trouble, seat.pause = True, False, None, _FIRST_PAUSE
            if claim is not None:
                claim.close()

    def _complain(self) -> None:
        """Raise what is wrong when nothing at all is right."""
        seats = self._seats.values()
        trouble = next((seat.trouble for seat in seats if seat.trouble is not None), None)
        if trouble is not None and not any(seat.receiver is not None and seat.receiver.attached for seat in seats):
            raise trouble.with_traceback(None)

    def _claimed(self) -> list[int]:
        return [
            number
            for number, seat in self._seats.items()
            if seat.receiver is not None and seat.receiver.attached and seat.receiver.failure is None and not seat.owned
        ]

    def _receiver(self, number: int, position: int, level: int) -> Receiver:
        return Receiver(self._hub, self._group, number, position, self._changed, level=level, silence=self._silence)

    def _any(self) -> bool:
        return any(seat.owned and seat.receiver is not None and seat.receiver.waiting for seat in self._seats.values())

    def _take(self, limit: int) -> list[Record]:
        self._turn += 1
        owned = [seat.receiver for seat in self._seats.values() if seat.owned and seat.receiver is not None]
        turn = self._turn % (len(owned) or 1)
        taken: list[Record] = []
        for receiver in [*owned[turn:], *owned[:turn]]:
            taken += receiver.take(limit - len(taken))
        return taken


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
