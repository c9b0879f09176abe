"""The worker: performs the outbox's entries, one thread per kind, with bounded retries.

One thread per kind, because a webhook that hangs must not hold up a retraining run; within a kind entries go one after
the other. Nothing that a handler does can end a thread: an error is that entry's failure.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inference.errors import ActionError
from streaming.actions.outbox import Done, Entry, Handler, Later, Outbox, Result

log = logging.getLogger(__name__)

_MAX_TEXT = 1000


@dataclass(frozen=True, slots=True)
class Policy:
    """How hard to try: at most `attempts` failures in a row, the n-th followed by a wait of about `first_wait` * 2^(n-1)
    seconds, at most `longest_wait`; an entry older than `max_age` seconds is of no use any more and expires."""

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 300.0
    max_age: float = 86_400.0

    def wait(self, failures: int, chance: float) -> float:
        """Seconds after the given number of failures; `chance` in [0, 1) spreads them over the upper half of the full wait."""
        full = min(self.longest_wait, self.first_wait * 2.0 ** min(failures - 1, 60))
        return full * (0.5 + 0.5 * chance)


class Worker:
    """Performs due entries through `handlers`, by kind. Entries of other kinds stay where they are.

    `start` and `stop` run it in threads; `run_due` is one pass in the caller's thread. Use one or the other, and one worker per outbox.
    """

    def __init__(
        self,
        outbox: Outbox,
        handlers: Mapping[str, Handler],
        *,
        policies: Mapping[str, Policy] | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        poll: float = 0.25,
    ) -> None:
        self._outbox = outbox
        self._handlers = dict(handlers)
        self._policies = {kind: (policies or {}).get(kind, Policy()) for kind in handlers}
        self._clock = clock
        self._chance = chance
        self._poll = poll
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to perform entries."""
        self._stopping.clear()
        self._threads = [threading.Thread(target=self._run, args=(kind,), name=f"outbox-{kind}", daemon=True) for kind in self._handlers]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Start no further entry and wait at most `timeout` seconds for those in progress; False when one is still going.

        What was cut off stays pending and is performed again by the next worker.
        """
        self._stopping.set()
        self._outbox.wake()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def drain(self, timeout: float) -> bool:
        """Wait until no entry of a kind we perform is pending; False when that took longer than `timeout` seconds."""
        end = time.monotonic() + timeout
        while any(self._outbox.counts().get(kind, {}).get("pending") for kind in self._handlers):
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        return True

    def run_due(self) -> int:
        """Perform every entry that is due now, once, and say how many; a worker that was started needs no such call."""
        performed = 0
        now = self._clock()
        for kind in self._handlers:
            while (entry := self._outbox.take(now, kind)) is not None:
                self._perform(entry)
                performed += 1
        return performed

    def _run(self, kind: str) -> None:
        while True:
            # Before looking for either, so that neither a stop nor an entry is slept through.
            seen = self._outbox.changes
            if self._stopping.is_set():
                return
            entry = self._outbox.take(self._clock(), kind)
            if entry is not None:
                self._perform(entry)
            else:
                self._outbox.wait(seen, self._poll)

    def _perform(self, entry: Entry) -> None:
        policy = self._policies[entry.kind]
        age = self._clock() - entry.created
        if age > policy.max_age:
            reason = f"not done within {policy.max_age:.0f} s" + (f"; last error: {entry.last_error}" if entry.last_error else "")
            log.error("%s %s expired: %s", entry.kind, entry.key, reason)
            self._note(lambda: self._outbox.expired(entry, reason))
            return
        try:
            result = self._handlers[entry.kind](entry)
        except ActionError as error:
            self._went_wrong(entry, policy, str(error), error.retry)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its entry's failure, never the worker's
            self._went_wrong(entry, policy, f"{type(error).__name__}: {error}", True)
        else:
            self._went_well(entry, result)

    def _went_well(self, entry: Entry, result: Result) -> None:
        match result:
            case Done(note):
                log.info("%s %s done%s", entry.kind, entry.key, f": {note}" if note else "")
                self._note(lambda: self._outbox.done(entry, note))
            case Later(seconds, note):
                at = self._clock() + max(0.0, seconds)
                self._note(lambda: self._outbox.later(entry, at, note))

    def _went_wrong(self, entry: Entry, policy: Policy, reason: str, retry: bool) -> None:
        reason = reason[:_MAX_TEXT]
        failures = entry.attempts + 1
        if retry and failures < policy.attempts:
            wait = policy.wait(failures, self._chance())
            log.info("%s %s: try %d of %d failed, next in %.1f s: %s", entry.kind, entry.key, failures, policy.attempts, wait, reason)
            at = self._clock() + wait
            self._note(lambda: self._outbox.retry(entry, at, reason))
        else:
            log.error("%s %s failed for good after %d %s: %s", entry.kind, entry.key, failures, "try" if failures == 1 else "tries", reason)
            self._note(lambda: self._outbox.failed(entry, reason))

    def _note(self, write: Callable[[], None]) -> None:
        # The action was performed: until the log knows it nothing else of this kind may be, or it would be done over and over.
        troubled = False
        while True:
            try:
                return write()
            except ActionError as error:
                if not self._threads:
                    raise
                if not troubled:
                    log.error("%s; trying on", error)
                troubled = True
            if self._stopping.wait(1.0):
                return None
