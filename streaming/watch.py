"""The always-on consumer: follows the partitions it owns, drives the fleet, hands every outcome on, and keeps its place.

Its memory is a function of the log: of what stands on a partition up to a position. A snapshot holds both, so that whoever
takes the partition over, after a crash or in a group, loads it, reads on from there, and says what an undisturbed watcher
would have said. Outcomes said again have the same ids, and what was done about them stands on the log itself.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from inference import event as events
from inference.errors import DriftloopError, LogUnavailable, SnapshotError
from inference.log import EventLog, Feed, Record
from streaming.actions.outbox import Outbox
from streaming.core.fleet import Fleet
from streaming.dispatch import Dispatch
from streaming.reader import BATCH, after
from streaming.snapshots import Snapshot, SnapshotStore, encode

log = logging.getLogger(__name__)

Status = Callable[[dict[str, Any]], None]
"""Hears where everything stands, at most four times a second."""

_STATUS_EVERY = 0.25
_IDLE = 0.25
_LONGEST_PAUSE = 5.0
_NOTHING_COMES = 5.0
_LAST_ACTIONS = 10.0
"""Seconds that a partition is kept for what is being done about it, before another member gets it."""


class Watch:
    """Records in, outcomes out, until `stop`; the `Owner` of the feed that it runs on.

    A snapshot of each partition is taken every `every` seconds of reading, when the partition is revoked, and at the end.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatch: Dispatch,
        outbox: Outbox,
        store: SnapshotStore,
        event_log: EventLog,
        *,
        log_identity: str,
        every: float = 30.0,
        status: Status = lambda _: None,
        stop: threading.Event,
    ) -> None:
        self._fleet = fleet
        self._dispatch = dispatch
        self._outbox = outbox
        self._store = store
        self._event_log = event_log
        self._log_identity = log_identity
        self._every = every
        self._status = status
        self._stop = stop
        self._positions: dict[int, int] = {}
        self._saved: dict[int, int] = {}
        # Where the log ended when a partition was taken over: until there, what was decided may have been done already.
        self._ends: dict[int, int] = {}
        self._records = 0
        self._told = float("-inf")
        self._next_save = time.monotonic() + every
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        self._writing: Future[None] | None = None
        self._troubled = False
        self._consistent = True
        self._idle_since: float | None = None

    def run(self, feed: Feed) -> None:
        """Until `stop` is set; a log or a snapshot store that is away is tried again, with a growing pause."""
        pause = 0.1
        try:
            while not self._stop.is_set():
                try:
                    records = feed.poll(BATCH, _IDLE)
                except (LogUnavailable, SnapshotError) as error:
                    if pause == 0.1:
                        log.warning("cannot read on, trying again: %s", error)
                    self._stop.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                if pause > 0.1:
                    log.warning("reading on")
                    pause = 0.1
                self._take(records)
                feed.commit(self._positions)
                self._save_in_time()
                self._tell(caught_up=not records)
        finally:
            self._told = float("-inf")
            self._tell(caught_up=True)
            feed.close()
            self._writer.shutdown()

    # What the feed asks of its owner

    def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Load, so that the feed can seek and go on."""
        starts, ends = self._event_log.start_positions(), self._event_log.end_positions()
        for partition in partitions:
            self._restore(partition, starts[partition], ends[partition])
        log.info("partitions %s are read from %s", _numbers(partitions), _numbers(self._positions[number] for number in partitions))
        return {number: self._positions[number] for number in partitions}

    def revoked(self, partitions: Sequence[int]) -> None:
        """Finish what is being done, save, let go."""
        if not self._outbox.suspend(partitions, _LAST_ACTIONS):
            log.warning("partitions %s go while an action of theirs is still going on; it may be performed again", _numbers(partitions))
        try:
            self._written()
            for partition in partitions if self._consistent else ():
                if self._positions[partition] != self._saved.get(partition):
                    self._store.save(partition, self._positions[partition], self._snapshot(partition))
        finally:
            self.lost(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget: somebody else may be at work on them."""
        log.info("partitions %s are let go", _numbers(partitions))
        for partition in partitions:
            self._outbox.forget(partition)
            self._dispatch.forget(partition)
            self._fleet.forget(partition)
            for known in (self._positions, self._saved, self._ends):
                known.pop(partition, None)

    # The loop's own steps

    def _take(self, records: Sequence[Record]) -> None:
        # From here to the end the memory is ahead of the positions: whatever ends us in between, nothing may be saved.
        self._consistent = False
        self._records += len(records)
        for outcome in self._fleet.feed(records):
            self._dispatch(outcome)
        # After the outcomes: an action's end stands behind the decision it belongs to.
        for record in records:
            if record.event.type == events.ACTION_FINISHED:
                self._outbox.read(record.partition, record.event)
        self._positions = after(self._positions, records)
        self._consistent = True
        if self._ends:
            self._release(idle=not records)

    def _release(self, *, idle: bool) -> None:
        """Perform what is decided on a partition from where the log ended at the takeover, or once nothing more comes: the last
        offsets before an end may hold no record (a transaction's marker)."""
        now = time.monotonic()
        self._idle_since = (self._idle_since or now) if idle else None
        nothing_comes = self._idle_since is not None and now - self._idle_since >= _NOTHING_COMES
        for partition, end in [*self._ends.items()]:
            if self._positions[partition] >= end or nothing_comes:
                del self._ends[partition]
                self._outbox.release(partition)

    def _restore(self, partition: int, start: int, end: int) -> None:
        snapshot = self._store.load(partition)
        if snapshot is not None and snapshot.position > end:
            of = f"of position {snapshot.position}, and the log ends at {end}"
            log.error("the snapshot of partition %d is %s: it is of a log that is no more, and deleted", partition, of)
            self._store.discard(partition)
            snapshot = None
        if snapshot is not None and not self._restored(snapshot):
            snapshot = None
        if snapshot is None:
            self._fleet.forget(partition)
            self._dispatch.forget(partition)
            self._outbox.open(partition, held=start < end)
        elif snapshot.position < start:
            log.error("partition %d: the log no longer has offsets %d to %d; they are skipped", partition, snapshot.position, start - 1)
        self._saved[partition] = snapshot.position if snapshot else start
        self._positions[partition] = position = max(start, self._saved[partition])
        self._ends.pop(partition, None)
        if position < end:
            self._ends[partition] = end
        else:
            self._outbox.release(partition)

    def _restored(self, snapshot: Snapshot) -> bool:
        """Whether the memory in the snapshot, which came whole from the store, is one that this version understands."""
        partition, body = snapshot.partition, snapshot.body
        try:
            notices = self._fleet.restore(partition, body["fleet"])
            self._dispatch.restore(partition, body["dispatch"])
            self._outbox.open(partition, body["outbox"], held=True)
        except (SnapshotError, KeyError, TypeError) as error:
            log.error("partition %d is read from its start, its snapshot is of no use: %s", partition, error)
            return False
        for notice in notices:
            self._dispatch(notice)
        return True

    def _snapshot(self, partition: int) -> bytes:
        sections: Mapping[str, Callable[[int], Any]] = {
            "fleet": self._fleet.state,
            "dispatch": self._dispatch.state,
            "outbox": self._outbox.state,
        }
        body = {name: state(partition) for name, state in sections.items()}
        return encode(Snapshot(partition, self._positions[partition], body), self._log_identity)

    def _save_in_time(self) -> None:
        """Take the snapshots on this thread, where the memory stands still; write them on another, where a slow store holds up nothing."""
        if time.monotonic() < self._next_save or (self._writing is not None and not self._writing.done()):
            return
        self._next_save = time.monotonic() + self._every
        moved = [number for number, position in self._positions.items() if position != self._saved.get(number)]
        try:
            taken = [(number, self._positions[number], self._snapshot(number)) for number in moved]
        except SnapshotError as error:
            self._complain(error)
            return
        self._saved |= {number: position for number, position, _ in taken}
        self._writing = self._writer.submit(self._write, taken)

    def _write(self, taken: Iterable[tuple[int, int, bytes]]) -> None:
        try:
            for partition, position, content in taken:
                self._store.save(partition, position, content)
        except DriftloopError as error:
            self._complain(error)
        else:
            if self._troubled:
                log.warning("snapshots are written again")
            self._troubled = False

    def _complain(self, error: DriftloopError) -> None:
        if not self._troubled:
            log.error("no snapshot can be written, a restart will read more of the log again: %s", error)
        self._troubled = True

    def _written(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _tell(self, *, caught_up: bool) -> None:
        now = time.monotonic()
        if now - self._told >= _STATUS_EVERY:
            self._told = now
            positions = {str(number): offset for number, offset in sorted(self._positions.items())}
            told = {"records": self._records, "caught_up": caught_up, "positions": positions, "actions": self._outbox.counts()}
            self._status({**self._fleet.status(), **told})


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
