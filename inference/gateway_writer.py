"""The gateway's writer: one thread that puts everything which came meanwhile onto the log in one transaction (group commit)."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

from inference.errors import EventError, LogError
from inference.event import Event

BATCH_EVENTS = 1_000
BATCH_BYTES = 16 * 1024 * 1024
GATHER_SECONDS = 0.005
"""How long a transaction may be put off while events go on arriving; a transaction costs as much as the writing of ten events."""

logger = logging.getLogger(__name__)


class Letter(NamedTuple):
    """A message to be set aside, with the reason."""

    reason: str
    message: str
    headers: list[tuple[str, str]]
    body: bytes


Work = Event | Letter
Done = Callable[[Exception | None], None]


class Intake(Protocol):
    """Where events are put: the embedded log, or the spool in front of another."""

    def append(self, events: Sequence[Event]) -> object:
        """All or nothing; EventError when one of them can't stand there, else LogError."""
        ...

    def set_aside(self, reason: str, message: str, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """Keep a message that can't be accepted."""
        ...

    def count_dead_letters(self, counts: Mapping[str, int]) -> None:
        """Count messages of which nothing is kept."""
        ...

    def dead_letter_counts(self) -> dict[str, int]:
        """How many there ever were, by reason."""
        ...


class Writer:
    """Used from one event loop only. What is put is written in the order in which it was put."""

    def __init__(self, log: Intake) -> None:
        self._log = log
        self._queue: deque[tuple[Work, Done]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log-writer")
        self.batches = 0
        self.lost: Counter[str] = Counter()
        """Events lost for good by reason, not yet among the log's dead-letter counts: they get there with the next transaction."""

    @property
    def depth(self) -> int:
        """How much waits for the next transaction."""
        return len(self._queue)

    def put(self, work: Work, done: Done) -> None:
        """Have it written; `done` is called on the loop with what became of it: None, an EventError or a LogError."""
        self._queue.append((work, done))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())

    async def close(self) -> None:
        """Write what still waits, then let the thread go."""
        if self._task is not None:
            await self._task
        if self.lost:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, [], self.lost)
        self._thread.shutdown()

    async def _drain(self) -> None:
        """Write until the queue is empty; what comes while one transaction runs makes up the next."""
        queue = self._queue
        while queue:
            await self._gather()
            batch: list[tuple[Work, Done]] = []
            size = 0
            while queue and len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
                batch.append(queue.popleft())
                work = batch[-1][0]
                size += len(work.data if isinstance(work, Event) else work.body)
            lost, self.lost = self.lost, Counter()
            works = [work for work, _ in batch]
            outcomes, lost = await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, works, lost)
            self.lost.update(lost)
            self.batches += 1
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                try:
                    done(outcome)
                except Exception:  # one answer that fails must not cost the others theirs
                    logger.exception("an answer failed")
        self._task = None

    async def _gather(self) -> None:
        """Let the loop take in what is there to be taken in: the core has better things to do than one transaction for each few events."""
        queue, before, now = self._queue, 0, asyncio.get_running_loop().time
        began = now()
        while before < len(queue) < BATCH_EVENTS and now() - began < GATHER_SECONDS:
            before = len(queue)
            await asyncio.sleep(0)

    def _commit(self, batch: Sequence[Work], lost: Counter[str]) -> tuple[list[Exception | None], Counter[str]]:
        """Runs on the thread: all events in one transaction; what became of each, and the losses that are still to be counted.

        It must not raise, or the senders would wait for ever.
        """
        events = [work for work in batch if isinstance(work, Event)]
        together = self._try(partial(self._log.append, events)) if events else None
        alone = isinstance(together, EventError) and len(events) > 1
        outcomes: list[Exception | None] = []
        for work in batch:
            if isinstance(work, Letter):
                outcomes.append(self._try(partial(self._log.set_aside, *work)))
            elif alone:  # one of them can't stand on the log, which must not cost the others their place
                outcomes.append(self._try(partial(self._log.append, [work])))
            else:
                outcomes.append(together)
        if lost and not isinstance(together, LogError) and self._try(partial(self._log.count_dead_letters, lost)) is None:
            lost = Counter()
        return outcomes, lost

    def _try(self, step: Callable[[], object]) -> Exception | None:
        try:
            step()
        except (EventError, LogError) as error:
            return error
        except Exception as error:
            logger.exception("the log's writer failed")
            return LogError(f"the log's writer failed: {type(error).__name__}")
        return None
