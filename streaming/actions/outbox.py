"""The outbox: what was decided on and is still to be done, each entry until the log itself says that it was done.

An entry's key is made of deterministic ids, and a decision is a function of the log. So the outbox needs no disk of its own:
a watcher that takes a partition over, after a crash or from another member, takes the entries of the snapshot, comes to the
later decisions again as it reads on, and strikes out whatever it reads an `io.driftloop.action.finished` event of. Until it
has read to where the log ended when it took over, it performs nothing of that partition.

Entries are performed *at least once*: a process that dies between the action and its event performs the action again. Handlers
therefore hand the key to the receiver (an event id, an `Idempotency-Key` header, a run id), and a receiver that knows it does
nothing twice. Payloads are JSON and hold no secrets: a webhook's URL is the handler's, never the entry's.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import orjson

from inference.errors import ActionError, LogError
from inference.event import ACTION_FINISHED, Event, deterministic_id, own_event

SOURCE = "driftloop/watch"
MAX_NOTE = 500

End = Literal["done", "failed", "expired"]


@dataclass(frozen=True, slots=True)
class Item:
    """Something to do: `key` is the same in every replay, `payload` plain JSON values without secrets."""

    key: str
    kind: str
    payload: Mapping[str, Any]
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An item in the outbox. `attempts` counts the failures since the last success or "later"; `note` is what the handler
    last said (its memory between calls); times are seconds since 1970."""

    key: str
    kind: str
    payload: Mapping[str, Any]
    model: str
    partition: int
    created: float
    next_at: float
    attempts: int = 0
    last_error: str = ""
    note: str = ""


@dataclass(slots=True)
class _Partition:
    held: bool
    entries: dict[str, Entry] = field(default_factory=dict)
    performing: set[str] = field(default_factory=set)
    # Its end was read while it is being performed here: our own event came before the call returned, or it is another's.
    told: set[str] = field(default_factory=set)


class Outbox:
    """Entries by partition of the log; safe for several threads.

    `publish` appends one event to the log. `owns` tells whether a partition is ours for certain: nothing is begun without it.
    """

    def __init__(
        self,
        publish: Callable[[Event], object],
        *,
        owns: Callable[[int], bool] = lambda _: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._publish = publish
        self._owns = owns
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._changes = 0
        self._partitions: dict[int, _Partition] = {}
        self._ended: Counter[tuple[str, str]] = Counter()

    def open(self, partition: int, state: Sequence[Mapping[str, Any]] = (), *, held: bool = False) -> None:
        """The partition is ours, with the entries that a snapshot had (`state`). `held`: perform nothing of it before `release`."""
        with self._changed:
            entries = {one["key"]: Entry(**one) for one in state}
            self._partitions[partition] = _Partition(held, entries)
            self.wake()

    def release(self, partition: int) -> None:
        """What the log told up to the takeover has been read: its entries may be performed."""
        with self._changed:
            self._partitions[partition].held = False
            self.wake()

    def put_all(self, items: Iterable[Item], *, partition: int, model: str, now: float) -> int:
        """Add the entries whose key is new, all or none of them, and say how many."""
        plain = [(item, orjson.loads(orjson.dumps(item.payload, option=orjson.OPT_SERIALIZE_NUMPY))) for item in items]
        with self._changed:
            entries = self._partitions[partition].entries
            before = len(entries)
            for item, payload in plain:
                entry = Entry(item.key, item.kind, payload, model, partition, created=now, next_at=max(now, item.not_before))
                entries.setdefault(item.key, entry)
            self.wake()
            return len(entries) - before

    def read(self, partition: int, event: Event) -> None:
        """An event of the log says that an entry was performed, by us or by whoever had the partition before."""
        try:
            key = orjson.loads(event.data)["key"]
        except (ValueError, KeyError, TypeError):
            return
        with self._changed:
            held = self._partitions.get(partition)
            if held is None or not isinstance(key, str):
                return
            if key in held.performing:
                held.told.add(key)
            else:
                held.entries.pop(key, None)

    def take(self, now: float, kind: str) -> Entry | None:
        """The entry that has been due for longest and may be performed now; it is ours until one of the calls below gives it back."""
        with self._changed:
            due = [
                entry
                for number, partition in self._partitions.items()
                if not partition.held and self._owns(number)
                for entry in partition.entries.values()
                if entry.kind == kind and entry.next_at <= now and entry.key not in partition.performing
            ]
            if not due:
                return None
            entry = min(due, key=lambda one: one.next_at)
            self._partitions[entry.partition].performing.add(entry.key)
            return entry

    def done(self, entry: Entry, note: str = "") -> None:
        """The entry was performed. ActionError, as for every end, when the log cannot be told now: call again."""
        self._end(entry, "done", note)

    def failed(self, entry: Entry, error: str) -> None:
        """A try failed and there will be no other."""
        self._end(entry, "failed", error)

    def expired(self, entry: Entry, error: str) -> None:
        """The entry waited too long to be of use."""
        self._end(entry, "expired", error)

    def later(self, entry: Entry, at: float, note: str) -> None:
        """The entry goes on at `at`, as intended: its failures so far are forgotten."""
        self._give_back(replace(entry, next_at=at, note=_writable(note), attempts=0))

    def retry(self, entry: Entry, at: float, error: str) -> None:
        """A try failed; the next one is at `at`."""
        self._give_back(replace(entry, next_at=at, last_error=_writable(error), attempts=entry.attempts + 1))

    def suspend(self, partitions: Iterable[int], timeout: float) -> bool:
        """Begin nothing more of these partitions and wait for what is in progress; False when that takes longer than `timeout` seconds."""
        with self._changed:
            known = [self._partitions[number] for number in partitions if number in self._partitions]
            for partition in known:
                partition.held = True
            return self._changed.wait_for(lambda: not any(partition.performing for partition in known), timeout)

    def state(self, partition: int) -> list[dict[str, Any]]:
        """The entries of a partition as plain values, for `open`; without those whose end has been read."""
        with self._changed:
            known = self._partitions[partition]
            # Whoever opens this reads on behind that event, and would never strike the entry out.
            return [asdict(entry) for entry in known.entries.values() if entry.key not in known.told]

    def forget(self, partition: int) -> None:
        """The partition is no longer ours."""
        with self._changed:
            self._partitions.pop(partition, None)

    def entries(self, kind: str | None = None) -> list[Entry]:
        """What is still to be done."""
        with self._changed:
            everything = [entry for partition in self._partitions.values() for entry in partition.entries.values()]
        return [entry for entry in everything if kind is None or entry.kind == kind]

    def counts(self) -> dict[str, dict[str, int]]:
        """What is pending, and what came to which end in this process, by kind: {"slack": {"pending": 1, "done": 3}}."""
        counts: dict[str, dict[str, int]] = {}
        with self._changed:
            for (kind, end), count in self._ended.items():
                counts.setdefault(kind, {})[end] = count
            for entry in self.entries():
                of_kind = counts.setdefault(entry.kind, {})
                of_kind["pending"] = of_kind.get("pending", 0) + 1
        return counts

    @property
    def changes(self) -> int:
        """Grows with everything that may make an entry due; for `wait`."""
        with self._changed:
            return self._changes

    def wait(self, since: int, seconds: float) -> None:
        """Wait until `changes` is no longer `since`, at most so long: what came between looking and waiting is not missed."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != since, seconds)

    def wake(self) -> None:
        """End every `wait`."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _end(self, entry: Entry, end: End, note: str) -> None:
        data = {"key": entry.key, "kind": entry.kind, "end": end, "note": _writable(note[:MAX_NOTE])}
        id_ = deterministic_id("action", entry.key)
        event = own_event(ACTION_FINISHED, data, model=entry.model, source=SOURCE, id_=id_, now=self._clock())
        try:
            self._publish(event)
        except LogError as error:
            raise ActionError(f"{entry.kind} {entry.key} is {end}, and the log cannot be told: {error}") from error
        with self._changed:
            self._ended[entry.kind, end] += 1
            partition = self._partitions.get(entry.partition)
            if partition is not None:
                partition.entries.pop(entry.key, None)
                partition.performing.discard(entry.key)
                partition.told.discard(entry.key)
            self.wake()

    def _give_back(self, entry: Entry) -> None:
        with self._changed:
            partition = self._partitions.get(entry.partition)
            # Not where the partition has been forgotten, or came back meanwhile with another memory of it.
            if partition is not None and entry.key in partition.performing:
                partition.entries[entry.key] = entry
                if entry.key in partition.told:
                    del partition.entries[entry.key]
                partition.performing.discard(entry.key)
                partition.told.discard(entry.key)
            self.wake()


def _writable(text: str) -> str:
    """A text without half characters, which neither JSON nor a snapshot can hold."""
    return text.encode(errors="replace").decode()


@dataclass(frozen=True, slots=True)
class Done:
    """The action was performed; `note` says what came of it."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Nothing went wrong, but there is more to do in `seconds`; `note` is handed to the handler again as `entry.note`."""

    seconds: float
    note: str = ""


Result = Done | Later

Handler = Callable[[Entry], Result]
"""Performs one entry. Called on a thread of its kind, never twice at once; the same entry may come again after a crash.

ActionError(retry=True) asks for another try, ActionError(retry=False) gives the entry up. Any other exception counts as
ActionError(retry=True). Its text is told to the log: it must not hold a secret.
"""
