"""The outbox: nothing lost, nothing twice that the log knows of, nothing begun without owning the partition."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from inference.errors import ActionError, LogUnavailable
from inference.event import ACTION_FINISHED, Event
from inference.log.embedded import EmbeddedLog
from streaming.actions.outbox import MAX_NOTE, Entry, Item, Outbox
from streaming.actions.webhook import Webhook
from streaming.actions.worker import Worker
from streaming.testing import Receiver, open_outbox, put, told_ends

MODEL = "default/iris"


@pytest.fixture
def told() -> list[Event]:
    """What the log was told."""
    return []


@pytest.fixture
def outbox(told: list[Event]) -> Outbox:
    return open_outbox(told, clock=lambda: 1_800_000_000.0)


def taken(outbox: Outbox, now: float = 1e12, kind: str = "slack") -> Entry:
    entry = outbox.take(now, kind)
    assert entry is not None
    return entry


def keys(entries: Iterable[Entry]) -> list[str]:
    return [entry.key for entry in entries]


def through_json(outbox: Outbox, partition: int = 0) -> list[dict[str, Any]]:
    state: list[dict[str, Any]] = orjson.loads(orjson.dumps(outbox.state(partition)))
    return state


def test_a_known_key_is_put_once_and_keeps_its_first_payload(outbox: Outbox) -> None:
    assert put(outbox, "d1:slack", "slack", {"text": "one"}, now=1.0)
    assert not put(outbox, "d1:slack", "slack", {"text": "two"}, now=2.0)
    assert outbox.entries() == [Entry("d1:slack", "slack", {"text": "one"}, MODEL, 0, created=1.0, next_at=1.0)]


def test_several_items_are_put_all_or_none(outbox: Outbox) -> None:
    with pytest.raises(TypeError):
        outbox.put_all([Item("a", "slack", {}), Item("b", "slack", {"x": object()})], partition=0, model=MODEL, now=1.0)
    assert outbox.entries() == []
    assert outbox.put_all([Item("a", "slack", {}), Item("b", "webhook", {})], partition=0, model=MODEL, now=1.0) == 2
    assert outbox.put_all([Item("b", "webhook", {}), Item("c", "webhook", {})], partition=0, model=MODEL, now=1.0) == 1
    assert keys(outbox.entries("webhook")) == ["b", "c"]


def test_a_payload_is_plain_values_from_the_start_and_nobody_elses(outbox: Outbox) -> None:
    import numpy as np

    payload = {"score": np.float64(0.5), "rows": (1, 2), "nan": float("nan")}
    put(outbox, "k", "slack", payload, now=1.0)
    payload["rows"] = ()
    assert taken(outbox).payload == {"score": 0.5, "rows": [1, 2], "nan": None}


def test_an_entry_is_due_at_its_time_and_not_before(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0, not_before=50.0)
    assert outbox.take(49.0, "slack") is None
    assert taken(outbox, 50.0).key == "k"


def test_the_entry_that_is_due_for_longest_comes_first_over_all_partitions(outbox: Outbox) -> None:
    outbox.open(1)
    for key, partition, at in [("c", 0, 3.0), ("a", 0, 1.0), ("b", 1, 2.0), ("other", 1, 0.0)]:
        kind = "webhook" if key == "other" else "slack"
        outbox.put_all([Item(key, kind, {})], partition=partition, model=MODEL, now=at)
    assert [taken(outbox).key for _ in range(3)] == ["a", "b", "c"]


def test_what_was_taken_is_nobody_elses_until_it_is_given_back(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    entry = taken(outbox)
    assert outbox.take(1e12, "slack") is None
    outbox.retry(entry, 5.0, "no route")
    assert outbox.take(4.9, "slack") is None
    assert taken(outbox, 5.0) == Entry("k", "slack", {}, MODEL, 0, created=1.0, next_at=5.0, attempts=1, last_error="no route")


def test_later_forgets_the_failures_and_retry_keeps_the_note(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    outbox.retry(taken(outbox), 5.0, "no route")
    outbox.later(taken(outbox), 6.0, "step 1")
    outbox.retry(taken(outbox), 7.0, "no answer")
    (entry,) = outbox.entries()
    assert (entry.attempts, entry.note, entry.last_error, entry.next_at) == (1, "step 1", "no answer", 7.0)


@pytest.mark.parametrize("end", ["done", "failed", "expired"])
def test_an_end_is_told_to_the_log_as_one_event_of_the_entrys_model(outbox: Outbox, told: list[Event], end: str) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    entry = taken(outbox)
    getattr(outbox, end)(entry, "x" * 2000)
    (event,) = told
    assert (event.type, event.model, event.source, event.time) == (ACTION_FINISHED, MODEL, "driftloop/watch", "2027-01-15T08:00:00.000000Z")
    assert told_ends(told) == [{"key": "k", "kind": "slack", "end": end, "note": "x" * MAX_NOTE}]
    assert outbox.entries() == []
    assert outbox.counts() == {"slack": {end: 1}}


def test_the_event_of_an_end_has_the_same_id_whoever_tells_it(told: list[Event]) -> None:
    for now in (1.0, 2.0):
        outbox = open_outbox(told)
        put(outbox, "k", "slack", {}, now=now)
        put(outbox, "other", "slack", {}, now=now + 1)
        outbox.done(taken(outbox), f"at {now}")
    outbox.done(taken(outbox))
    assert told[0].id == told[1].id != told[2].id


def test_counts_are_what_is_pending_and_what_ended_in_this_process(outbox: Outbox) -> None:
    for number in range(4):
        put(outbox, f"s{number}", "slack", {}, now=float(number))
    put(outbox, "w", "webhook", {}, now=1.0)
    outbox.done(taken(outbox))
    outbox.done(taken(outbox))
    outbox.failed(taken(outbox), "404")
    assert outbox.counts() == {"slack": {"done": 2, "failed": 1, "pending": 1}, "webhook": {"pending": 1}}


def test_the_state_opens_a_successor_that_goes_on_with_every_entry(outbox: Outbox) -> None:
    put(outbox, "a", "slack", {"n": [1, None, "ü"]}, now=1.0, not_before=3.0)
    put(outbox, "b", "retrain", {}, now=1.0)
    put(outbox, "c", "retrain", {}, now=2.0)
    outbox.later(taken(outbox, kind="retrain"), 9.0, "run 1 goes on")
    outbox.retry(taken(outbox, kind="retrain"), 8.0, "no route")
    successor = open_outbox([], state=through_json(outbox))
    assert successor.entries() == outbox.entries()
    assert len(successor.entries()) == 3


def test_an_entry_in_progress_stands_in_the_state_for_whoever_comes_after_a_crash(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    taken(outbox)
    assert taken(open_outbox([], state=through_json(outbox))).key == "k"


def test_partitions_have_their_own_entries_and_their_own_end(outbox: Outbox) -> None:
    outbox.open(1)
    put(outbox, "a", "slack", {}, now=1.0)
    outbox.put_all([Item("b", "slack", {})], partition=1, model="default/wine", now=2.0)
    assert ([entry["key"] for entry in outbox.state(0)], [entry["key"] for entry in outbox.state(1)]) == (["a"], ["b"])
    outbox.forget(0)
    assert keys(outbox.entries()) == ["b"]
    assert taken(outbox).model == "default/wine"
    outbox.forget(7)


def test_a_held_partition_performs_nothing_before_its_release(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    held = Outbox(lambda event: None)
    held.open(0, through_json(outbox), held=True)
    put(held, "new", "slack", {}, now=2.0)
    assert held.take(1e12, "slack") is None
    assert keys(held.entries()) == ["k", "new"]
    held.release(0)
    assert taken(held).key == "k"


def test_nothing_is_begun_of_a_partition_that_is_not_ours_for_certain() -> None:
    ours = {0: True, 1: False}
    outbox = Outbox(lambda event: None, owns=ours.__getitem__)
    for partition in ours:
        outbox.open(partition)
        outbox.put_all([Item(f"k{partition}", "slack", {})], partition=partition, model=MODEL, now=-partition)
    assert taken(outbox).key == "k0"
    assert outbox.take(1e12, "slack") is None
    ours[1] = True
    assert taken(outbox).key == "k1"


def test_what_the_log_says_was_done_is_struck_out(outbox: Outbox, told: list[Event]) -> None:
    other = open_outbox([])
    for key in ("a", "b"):
        put(outbox, key, "slack", {}, now=1.0)
        put(other, key, "slack", {}, now=1.0)
    outbox.done(taken(outbox))
    other.read(1, told[0])
    assert keys(other.entries()) == ["a", "b"]
    other.read(0, told[0])
    assert keys(other.entries()) == ["b"]
    assert other.counts() == {"slack": {"pending": 1}}
    other.read(0, told[0])


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"7", b"{}", b'{"key": 7}', b'{"key": ["k"]}', b'{"key": {"k": 1}}', b'{"key": null}']
)
def test_an_event_that_says_nothing_sensible_strikes_out_nothing(outbox: Outbox, data: bytes) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    outbox.read(0, Event("1", "somebody", ACTION_FINISHED, data=data))
    assert keys(outbox.entries()) == ["k"]


def test_our_own_event_that_comes_before_the_call_returns_changes_nothing() -> None:
    seen: list[int] = []

    def publish(event: Event) -> None:
        outbox.read(0, event)
        seen.append(len(outbox.entries()))

    outbox = open_outbox([])
    outbox = Outbox(publish)
    outbox.open(0)
    put(outbox, "k", "slack", {}, now=1.0)
    outbox.done(taken(outbox))
    assert seen == [1]
    assert outbox.counts() == {"slack": {"done": 1}}


@pytest.mark.parametrize("how", ["later", "retry"])
def test_what_another_told_the_end_of_while_we_were_at_it_goes_on_no_more(outbox: Outbox, how: str) -> None:
    told_by_another: list[Event] = []
    another = open_outbox(told_by_another)
    for one in (outbox, another):
        put(one, "k", "slack", {}, now=1.0)
    entry = taken(outbox)
    another.done(taken(another))
    outbox.read(0, told_by_another[0])
    getattr(outbox, how)(entry, 3.0, "once more")
    assert outbox.entries() == [] and outbox.suspend([0], 0.0)


@pytest.mark.parametrize("how", ["done", "later"])
def test_that_an_entry_was_told_is_not_remembered_longer_than_the_entry(how: str) -> None:
    told: list[Event] = []
    outbox = open_outbox(told)
    put(outbox, "k", "slack", {}, now=1.0)
    entry = taken(outbox)
    outbox.done(entry)
    put(outbox, "k", "slack", {}, now=1.0)
    entry = taken(outbox)
    outbox.read(0, told[0])
    outbox.done(entry) if how == "done" else outbox.later(entry, 1.0, "")
    put(outbox, "k", "slack", {}, now=1.0)
    outbox.later(taken(outbox), 1.0, "goes on")
    assert [entry.note for entry in outbox.entries()] == ["goes on"]


def test_an_entry_whose_end_was_read_is_in_no_snapshot_even_before_its_call_returns() -> None:
    """A snapshot's position is behind the event then: nobody who opens it would ever read the event and strike the entry out."""
    states: list[list[dict[str, Any]]] = []

    def publish(event: Event) -> None:
        states.append(outbox.state(0))
        outbox.read(0, event)
        states.append(outbox.state(0))

    outbox = Outbox(publish)
    outbox.open(0)
    put(outbox, "k", "slack", {}, now=1.0)
    put(outbox, "after", "slack", {}, now=2.0)
    outbox.done(taken(outbox))
    assert [[entry["key"] for entry in state] for state in states] == [["k", "after"], ["after"]]


def test_an_end_that_the_log_cannot_be_told_now_keeps_the_entry_out_of_reach_until_it_is_told() -> None:
    log: list[Event] = []
    away = [LogUnavailable("locked")]

    def publish(event: Event) -> None:
        if away:
            raise away[0]
        log.append(event)

    outbox = Outbox(publish)
    outbox.open(0)
    put(outbox, "k", "slack", {}, now=1.0)
    entry = taken(outbox)
    with pytest.raises(ActionError, match="slack k is done, and the log cannot be told: locked") as caught:
        outbox.done(entry, "sent")
    assert caught.value.retry and caught.value.__cause__ is away[0]
    assert outbox.take(1e12, "slack") is None
    assert outbox.counts() == {"slack": {"pending": 1}}
    away.clear()
    outbox.done(entry, "sent")
    assert [end["key"] for end in told_ends(log)] == ["k"]
    assert outbox.counts() == {"slack": {"done": 1}}


def test_suspended_partitions_begin_nothing_more_and_are_waited_for(outbox: Outbox) -> None:
    outbox.open(1)
    put(outbox, "a", "slack", {}, now=1.0)
    put(outbox, "b", "slack", {}, now=2.0)
    outbox.put_all([Item("c", "slack", {})], partition=1, model=MODEL, now=3.0)
    entry = taken(outbox)
    began = time.monotonic()
    assert not outbox.suspend([0, 5], 0.1)
    assert 0.05 < time.monotonic() - began < 2.0
    assert taken(outbox).key == "c"
    threading.Timer(0.1, outbox.later, (entry, 1.0, "goes on")).start()
    began = time.monotonic()
    assert outbox.suspend([0], 30.0)
    assert time.monotonic() - began < 10.0
    assert outbox.take(1e12, "slack") is None
    assert keys(outbox.entries()) == ["a", "b", "c"]
    # Partition 1 still has one in progress, which is none of partition 0's business.
    assert outbox.suspend([0], 0.0) and not outbox.suspend([0, 1], 0.0)


def test_what_ends_after_its_partition_is_gone_is_told_and_changes_nothing_else(outbox: Outbox, told: list[Event]) -> None:
    for key in ("a", "b", "c"):
        put(outbox, key, "slack", {}, now=1.0)
    first, second, third = (taken(outbox) for _ in range(3))
    outbox.forget(0)
    outbox.done(first)
    outbox.later(second, 1.0, "")
    outbox.retry(third, 1.0, "")
    assert [end["key"] for end in told_ends(told)] == ["a"]
    assert outbox.entries() == []


def test_what_is_given_back_to_a_partition_that_came_again_leaves_its_newer_memory_alone(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    old = taken(outbox)
    outbox.open(0, [{**through_json(outbox)[0], "note": "newer"}])
    outbox.later(old, 1.0, "older")
    assert [entry.note for entry in outbox.entries()] == ["newer"]
    outbox.open(0)
    outbox.retry(old, 1.0, "older")
    assert outbox.entries() == []


def test_an_end_of_a_partition_that_came_again_strikes_the_entry_out_there_too(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    old = taken(outbox)
    outbox.open(0, through_json(outbox), held=True)
    outbox.done(old)
    assert outbox.entries() == []


def test_a_wait_ends_at_once_when_something_changed_meanwhile(outbox: Outbox) -> None:
    seen = outbox.changes
    outbox.wake()
    began = time.monotonic()
    outbox.wait(seen, 30.0)
    assert time.monotonic() - began < 5.0
    seen = outbox.changes
    threading.Timer(0.05, outbox.wake).start()
    outbox.wait(seen, 30.0)
    assert 0.02 < time.monotonic() - began < 5.0
    outbox.wait(outbox.changes, 0.01)


def test_a_successor_performs_what_was_not_told_and_only_that_under_the_same_key() -> None:
    log: list[Event] = []
    performed: dict[str, list[str]] = {"crashed": [], "successor": []}
    crashed = open_outbox(log)
    for key in ("told", "failed", "untold", "unbegun", "going on"):
        put(crashed, key, "slack", {"of": key}, now=1.0)
    state = through_json(crashed)

    def perform(outbox: Outbox, who: str) -> Entry:
        entry = taken(outbox)
        performed[who].append(f"{entry.key} {entry.payload['of']}")
        return entry

    crashed.done(perform(crashed, "crashed"))
    crashed.failed(perform(crashed, "crashed"), "404")
    perform(crashed, "crashed")

    successor = Outbox(log.append)
    successor.open(0, state, held=True)
    for event in [*log]:
        successor.read(0, event)
    successor.release(0)
    while successor.entries():
        successor.done(perform(successor, "successor"))
    assert performed == {
        "crashed": ["told told", "failed failed", "untold untold"],
        "successor": ["untold untold", "unbegun unbegun", "going on going on"],
    }
    assert sorted(end["key"] for end in told_ends(log)) == ["failed", "going on", "told", "unbegun", "untold"]


class Owners:
    """One partition of a log, under owners that come and go.

    The log holds decisions (a key each) and the ends that were told. An owner reads it from the position of the newest snapshot, and
    holds the partition until it has read what was there when it came. `begun` is the entry that the worker's thread is at; `acted`:
    it has been performed and not been told.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str | Event] = []
        self.log_away, self.ours = False, True
        self.performed: Counter[str] = Counter()
        # Performed in a moment of which nobody knew, so that it may have been performed again.
        self.repeatable: set[str] = set()
        self.snapshot: tuple[list[dict[str, Any]], int] = ([], 0)
        self.begun: Entry | None = None
        self.begun_here = self.acted = False
        self.outbox = self.new_outbox()
        self.open()

    def new_outbox(self) -> Outbox:
        return Outbox(self.publish, owns=lambda partition: self.ours and partition == 0, clock=lambda: self.now)

    def publish(self, event: Event) -> None:
        if self.log_away:
            raise LogUnavailable("away")
        self.log.append(event)

    def open(self) -> None:
        self.begun_here = False
        state, self.position = self.snapshot
        self.until = len(self.log)
        self.outbox.open(0, state, held=True)
        self.read_on(0)

    @property
    def held(self) -> bool:
        return self.position < self.until

    # What may happen; `number` is 0 to 11

    def decide(self, number: int) -> None:
        self.log += [f"decision at {len(self.log) + more}" for more in range(number % 3)]

    def read_on(self, number: int) -> None:
        for record in self.log[self.position : self.position + number]:
            self.position += 1
            if isinstance(record, Event):
                self.outbox.read(0, record)
            else:
                assert put(self.outbox, record, "slack", {"of": record}, now=self.now)
        if not self.held:
            self.outbox.release(0)

    def let_time_pass(self, number: int) -> None:
        self.now += number

    def change_what_is_there(self, number: int) -> None:
        self.ours, self.log_away = number not in (0, 1), number in (2, 3)

    def work(self, number: int) -> None:
        if self.begun is None:
            entry = self.outbox.take(self.now, "slack")
            if entry is not None:
                assert self.ours and not self.held
                assert entry.payload == {"of": entry.key} and entry.next_at <= self.now
                self.begun, self.begun_here = entry, True
            elif self.ours and not self.held:
                assert all(waiting.next_at > self.now for waiting in self.outbox.entries())
        elif self.acted:
            self.tell(["done", "failed", "expired"][number % 3])
        elif number in (0, 1):
            give_back = self.outbox.later if number else self.outbox.retry
            give_back(self.begun, self.now + 3, "note")
            self.begun = None
        else:
            self.performed[self.begun.key] += 1
            self.acted = True

    def tell(self, end: str) -> None:
        try:
            getattr(self.outbox, end)(self.begun, "note")
        except ActionError:
            assert self.log_away
        else:
            assert not self.log_away
            self.begun, self.acted = None, False

    def take_a_snapshot(self, number: int) -> None:
        self.snapshot = through_json(self.outbox), self.position

    def crash(self, number: int) -> None:
        if self.begun is not None and self.acted:
            self.repeatable.add(self.begun.key)
        self.begun, self.acted = None, False
        self.outbox = self.new_outbox()
        self.open()

    def lose_and_get_back(self, number: int) -> None:
        # What its thread is at goes on, and may end behind the place up to which the partition is held.
        if self.begun is not None:
            self.repeatable.add(self.begun.key)
        self.outbox.forget(0)
        self.open()

    def hand_over(self, number: int) -> None:
        assert self.outbox.suspend([0], 0.0) is (self.begun is None or not self.begun_here)
        assert self.outbox.take(self.now + 1e9, "slack") is None
        if self.begun is None:
            self.take_a_snapshot(0)
            self.outbox = self.new_outbox()
            self.open()
        elif not self.held:
            self.outbox.release(0)

    def settle(self) -> None:
        self.ours, self.log_away = True, False
        while self.begun is not None:
            self.work(2)
        self.read_on(len(self.log))
        self.now += 100.0
        while self.outbox.entries():
            self.work(2)


WHAT_HAPPENS = (
    [Owners.decide] * 2
    + [Owners.read_on] * 4
    + [Owners.work] * 10
    + [Owners.let_time_pass, Owners.change_what_is_there, Owners.take_a_snapshot]
    + [Owners.crash, Owners.lose_and_get_back, Owners.hand_over]
)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=30, max_size=90))
def test_whatever_happens_every_entry_comes_to_its_end_and_is_performed_again_only_where_nobody_knew(happens: bytes) -> None:
    owners = Owners()
    for one in happens:
        number, which = divmod(one, len(WHAT_HAPPENS))
        note(f"{WHAT_HAPPENS[which].__name__} {number}")
        WHAT_HAPPENS[which](owners, number)
    owners.settle()
    decided = {record for record in owners.log if isinstance(record, str)}
    ends = Counter(end["key"] for end in told_ends(record for record in owners.log if isinstance(record, Event)))
    assert owners.performed.keys() == ends.keys() == decided
    assert all(owners.performed[key] == ends[key] == 1 for key in decided - owners.repeatable)


DIES = """
    import os, signal, sys
    from pathlib import Path
    from pydantic import SecretStr
    from inference.log.embedded import EmbeddedLog
    from streaming.actions.outbox import Outbox
    from streaming.actions.webhook import Webhook
    from streaming.actions.worker import Worker
    from streaming.testing import put

    log = EmbeddedLog(Path(sys.argv[1]), partitions=1)
    post = Webhook(SecretStr(sys.argv[2]))

    def dies_before_the_second_note(entry):
        done = post(entry)
        if entry.key == "decision-2:webhook":
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    outbox = Outbox(lambda event: log.append([event]), clock=lambda: 1_800_000_000.0)
    outbox.open(0)
    for number in (1, 2):
        payload = {"id": f"decision-{number}", "verdict": {"model": "default/iris"}}
        put(outbox, f"decision-{number}:webhook", "webhook", payload, now=1_800_000_000.0)
    Worker(outbox, {"webhook": dies_before_the_second_note}, clock=lambda: 1_800_000_000.0).run_due()
"""


def test_a_kill_between_the_action_and_its_event_repeats_that_action_alone_under_the_same_key(tmp_path: Path) -> None:
    with Receiver() as receiver:
        url = receiver.url("/hook")
        command = [sys.executable, "-c", textwrap.dedent(DIES), str(tmp_path / "log.db"), url]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
        assert len(receiver.requests) == 2
        log = EmbeddedLog(tmp_path / "log.db")
        outbox = Outbox(lambda event: log.append([event]), clock=lambda: 1_800_000_005.0)
        outbox.open(0, held=True)
        for number in (1, 2):
            # It comes to the same decisions, at the same place of the log.
            payload = {"id": f"decision-{number}", "verdict": {"model": MODEL}}
            assert put(outbox, f"decision-{number}:webhook", "webhook", payload, now=1_800_000_000.0)
        worker = Worker(outbox, {"webhook": Webhook(SecretStr(url))}, clock=lambda: 1_800_000_005.0)
        assert worker.run_due() == 0
        for record in log.read(log.start_positions()):
            outbox.read(record.partition, record.event)
        outbox.release(0)
        assert worker.run_due() == 1
        _, first, second = receiver.requests
        told = [record.event for record in log.read(log.start_positions())]
        log.close()
    assert first.headers["ce-id"] == second.headers["ce-id"] == "decision-2"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == "decision-2:webhook"
    assert (first.headers["ce-time"], first.body) == (second.headers["ce-time"], second.body)
    assert [(end["key"], end["end"]) for end in told_ends(told)] == [("decision-1:webhook", "done"), ("decision-2:webhook", "done")]
    assert outbox.counts() == {"webhook": {"done": 1}}
