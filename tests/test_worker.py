"""The worker: every entry is tried, bounded and in time, nothing blocks another kind, and no action is repeated while the log is away."""

import itertools
import logging
import threading
import time

import orjson
import pytest

from inference.errors import ActionError, LogUnavailable
from inference.event import Event
from streaming.actions.outbox import Done, Entry, Item, Later, Outbox
from streaming.actions.worker import Policy, Worker
from streaming.testing import open_outbox, poll_until, put, told_ends


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class AwayLog:
    """Takes events while it is there; counts what it refused."""

    def __init__(self) -> None:
        self.away = True
        self.refused = 0
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        if self.away:
            self.refused += 1
            raise LogUnavailable("the log is locked")
        self.events.append(event)


@pytest.fixture
def told() -> list[Event]:
    """What the log was told."""
    return []


@pytest.fixture
def outbox(told: list[Event]) -> Outbox:
    return open_outbox(told)


def ends(told: list[Event]) -> list[tuple[str, str, str]]:
    return [(end["key"], end["end"], end["note"]) for end in told_ends(told)]


def test_an_action_that_succeeds_is_done_with_its_note(outbox: Outbox, told: list[Event]) -> None:
    put(outbox, "k", "slack", {"a": [1]}, now=time.time())
    seen: list[Entry] = []
    worker = Worker(outbox, {"slack": lambda entry: seen.append(entry) or Done("sent")})
    assert worker.run_due() == 1
    assert worker.run_due() == 0
    assert seen[0].payload == {"a": [1]}
    assert ends(told) == [("k", "done", "sent")]


def test_failures_are_tried_again_ever_later_and_then_given_up_with_one_error_line(
    outbox: Outbox, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    clock, times = Clock(), []

    def fails(entry: Entry) -> Done:
        times.append(clock.now)
        raise ActionError("the receiver is away")

    put(outbox, "k", "slack", {}, now=clock.now)
    worker = Worker(
        outbox, {"slack": fails}, policies={"slack": Policy(attempts=5, first_wait=2.0, longest_wait=7.0)}, clock=clock, chance=lambda: 0.5
    )
    seen = []
    while outbox.entries():
        (entry,) = outbox.entries()
        seen.append((entry.attempts, entry.last_error))
        clock.now = entry.next_at
        assert worker.run_due() == 1
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([1.5, 3.0, 5.25, 5.25])
    assert seen == [(0, ""), *((n, "the receiver is away") for n in range(1, 5))]
    assert ends(told) == [("k", "failed", "the receiver is away")]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and "the receiver is away" in errors[0].message and "5 tries" in errors[0].message


def test_the_tries_so_far_are_counted_on_by_a_successor_with_the_snapshot(outbox: Outbox) -> None:
    clock, performed = Clock(), []

    def fails(entry: Entry) -> Done:
        performed.append(entry.attempts)
        raise ActionError("the receiver is away")

    put(outbox, "k", "slack", {}, now=clock.now)
    while outbox.entries():
        clock.now += 1000.0
        Worker(outbox, {"slack": fails}, policies={"slack": Policy(attempts=3)}, clock=clock).run_due()
        outbox = open_outbox([], state=outbox.state(0))
    assert performed == [0, 1, 2]


def test_a_failure_that_another_try_cannot_help_is_final(outbox: Outbox, told: list[Event]) -> None:
    def refuses(entry: Entry) -> Done:
        raise ActionError("404", retry=False)

    put(outbox, "k", "slack", {}, now=time.time())
    assert Worker(outbox, {"slack": refuses}).run_due() == 1
    assert ends(told) == [("k", "failed", "404")]
    assert outbox.entries() == []


def test_jitter_spreads_the_waits_over_the_upper_half() -> None:
    policy = Policy(first_wait=4.0, longest_wait=100.0)
    assert policy.wait(1, 0.0) == 2.0
    assert policy.wait(1, 1.0) == 4.0
    assert policy.wait(10_000, 1.0) == 100.0


def test_later_is_no_failure_and_hands_the_note_back(outbox: Outbox, told: list[Event]) -> None:
    clock, notes = Clock(), []

    def steps(entry: Entry) -> Done | Later:
        notes.append((entry.note, entry.attempts))
        if len(notes) == 2:
            raise ActionError("once")
        return Done("end") if len(notes) == 4 else Later(5.0, f"step {len(notes)}")

    put(outbox, "k", "retrain", {}, now=clock.now)
    worker = Worker(outbox, {"retrain": steps}, policies={"retrain": Policy(attempts=2)}, clock=clock, chance=lambda: 1.0)
    for _ in range(4):
        worker.run_due()
        clock.now += 5.0
    assert notes == [("", 0), ("step 1", 0), ("step 1", 1), ("step 3", 0)]
    assert outbox.counts() == {"retrain": {"done": 1}}
    assert ends(told) == [("k", "done", "end")]


def test_an_entry_that_waited_too_long_expires_without_being_performed(
    outbox: Outbox, told: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    clock, performed = Clock(), []
    put(outbox, "k", "slack", {}, now=clock.now)
    entry = outbox.take(clock.now, "slack")
    assert entry is not None
    outbox.retry(entry, clock.now, "connection refused")
    clock.now += 61.0
    Worker(outbox, {"slack": lambda e: performed.append(e) or Done()}, policies={"slack": Policy(max_age=60.0)}, clock=clock).run_due()
    assert performed == []
    assert ends(told) == [("k", "expired", "not done within 60 s; last error: connection refused")]
    assert outbox.counts() == {"slack": {"expired": 1}}
    assert "connection refused" in caplog.text


def test_an_unexpected_exception_is_that_entrys_failure_and_the_worker_goes_on(outbox: Outbox, told: list[Event]) -> None:
    def handler(entry: Entry) -> Done:
        return Done(str(1 // entry.payload["n"]))

    worker = Worker(outbox, {"slack": handler}, policies={"slack": Policy(attempts=2, first_wait=0.01)}, poll=0.01)
    outbox.put_all([Item("bad", "slack", {"n": 0}), Item("good", "slack", {"n": 1})], partition=0, model="default/iris", now=time.time())
    worker.start()
    assert worker.drain(10.0)
    assert worker.stop(5.0)
    assert sorted(ends(told)) == [("bad", "failed", "ZeroDivisionError: integer division or modulo by zero"), ("good", "done", "1")]


@pytest.mark.parametrize("how", ["done", "failed", "retry", "later"])
def test_half_a_character_in_what_a_handler_says_ends_no_thread_and_spoils_no_snapshot(outbox: Outbox, told: list[Event], how: str) -> None:
    said = "no file a\udc80b"

    def handler(entry: Entry) -> Done | Later:
        if entry.key == "good":
            return Done()
        if how in ("failed", "retry"):
            raise ActionError(said, retry=how == "retry")
        return Done(said) if how == "done" else Later(60.0, said)

    worker = Worker(outbox, {"slack": handler}, poll=0.01)
    put(outbox, "bad", "slack", {}, now=time.time() - 1.0)
    put(outbox, "good", "slack", {}, now=time.time())
    worker.start()
    assert poll_until(lambda: ("good", "done", "") in ends(told))
    assert worker.stop(5.0)
    left = orjson.loads(orjson.dumps(outbox.state(0)))
    assert [end[2] for end in ends(told) if end[0] == "bad"] + [one["last_error"] + one["note"] for one in left] == ["no file a?b"]


def test_a_kind_that_hangs_holds_up_no_other_and_stop_is_bounded(outbox: Outbox) -> None:
    release = threading.Event()
    worker = Worker(outbox, {"webhook": lambda e: release.wait(30.0) and Done(), "retrain": lambda e: Done("started")}, poll=0.01)
    put(outbox, "w", "webhook", {}, now=time.time())
    worker.start()
    put(outbox, "r", "retrain", {}, now=time.time())
    assert poll_until(lambda: outbox.counts().get("retrain", {}).get("done") == 1)
    assert not worker.drain(0.1)
    began = time.monotonic()
    assert not worker.stop(0.2)
    assert time.monotonic() - began < 2.0
    assert [entry.key for entry in outbox.entries()] == ["w"]
    release.set()
    assert worker.stop(5.0)


def test_something_put_wakes_the_worker_at_once(outbox: Outbox) -> None:
    worker = Worker(outbox, {"slack": lambda e: Done()}, poll=30.0)
    worker.start()
    time.sleep(0.1)
    put(outbox, "k", "slack", {}, now=time.time())
    assert worker.drain(5.0)
    assert worker.stop(5.0)


@pytest.mark.parametrize("held", [False, True])
def test_a_partition_that_is_opened_with_entries_or_released_wakes_the_worker_at_once(outbox: Outbox, held: bool) -> None:
    put(outbox, "k", "slack", {}, now=time.time())
    state = outbox.state(0)
    outbox.forget(0)
    worker = Worker(outbox, {"slack": lambda e: Done()}, poll=30.0)
    worker.start()
    time.sleep(0.1)
    outbox.open(0, state, held=held)
    if held:
        time.sleep(0.1)
        assert outbox.counts() == {"slack": {"pending": 1}}
        outbox.release(0)
    assert worker.drain(5.0)
    assert worker.stop(5.0)


def test_entries_of_a_kind_without_a_handler_stay(outbox: Outbox) -> None:
    put(outbox, "k", "slack", {}, now=1.0)
    worker = Worker(outbox, {"webhook": lambda e: Done()})
    assert worker.run_due() == 0
    assert worker.drain(0.1)
    assert outbox.counts() == {"slack": {"pending": 1}}


def test_while_the_log_is_away_an_action_is_not_performed_over_and_over(caplog: pytest.LogCaptureFixture) -> None:
    log, performed = AwayLog(), []
    outbox = Outbox(log)
    outbox.open(0)
    worker = Worker(outbox, {"slack": lambda entry: performed.append(entry.key) or Done("sent")}, poll=0.01)
    put(outbox, "k", "slack", {}, now=time.time())
    put(outbox, "after", "slack", {}, now=time.time())
    worker.start()
    assert poll_until(lambda: log.refused >= 2)
    assert performed == ["k"]
    log.away = False
    assert worker.drain(10.0)
    assert worker.stop(5.0)
    assert performed == ["k", "after"]
    assert ends(log.events) == [("k", "done", "sent"), ("after", "done", "sent")]
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["slack k is done, and the log cannot be told: the log is locked; trying on"]


def test_a_kind_that_cannot_tell_the_log_holds_up_no_other_and_can_be_stopped() -> None:
    log = AwayLog()
    outbox = Outbox(log)
    outbox.open(0)
    worker = Worker(outbox, {"slack": lambda entry: Done(), "retrain": lambda entry: Later(0.01)}, poll=0.01)
    put(outbox, "k", "slack", {}, now=time.time())
    put(outbox, "r", "retrain", {}, now=time.time())
    worker.start()
    assert poll_until(lambda: log.refused)
    before = entry_of(outbox, "r").next_at
    assert poll_until(lambda: entry_of(outbox, "r").next_at > before)
    began = time.monotonic()
    assert worker.stop(5.0)
    assert time.monotonic() - began < 2.0
    # It was performed and nobody knows: the next one performs it again, under the same key.
    assert [entry.key for entry in outbox.entries("slack")] == ["k"]


def entry_of(outbox: Outbox, key: str) -> Entry:
    (entry,) = (entry for entry in outbox.entries() if entry.key == key)
    return entry


def test_a_worker_without_threads_says_that_the_log_is_away() -> None:
    outbox = Outbox(AwayLog())
    outbox.open(0)
    put(outbox, "k", "slack", {}, now=time.time())
    with pytest.raises(ActionError, match="slack k is done, and the log cannot be told: the log is locked"):
        Worker(outbox, {"slack": lambda entry: Done()}).run_due()


def test_an_entry_that_comes_back_at_once_waits_for_the_next_pass(outbox: Outbox) -> None:
    clock, performed = Clock(), []

    def again(entry: Entry) -> Later:
        performed.append(entry.key)
        clock.now += 1.0
        return Later(0.0)

    put(outbox, "k", "slack", {}, now=clock.now)
    worker = Worker(outbox, {"slack": again}, clock=clock)
    assert [worker.run_due() for _ in range(3)] == [1, 1, 1]
    assert performed == ["k"] * 3


def test_what_goes_on_while_its_partition_is_taken_away_is_waited_for(outbox: Outbox, told: list[Event]) -> None:
    begun, release = threading.Event(), threading.Event()

    def handler(entry: Entry) -> Done:
        begun.set()
        assert release.wait(10.0)
        return Done()

    worker = Worker(outbox, {"slack": handler}, poll=0.01)
    put(outbox, "k", "slack", {}, now=time.time())
    put(outbox, "next", "slack", {}, now=time.time())
    worker.start()
    assert begun.wait(5.0)
    began = time.monotonic()
    assert not outbox.suspend([0], 0.2)
    assert 0.15 < time.monotonic() - began < 2.0
    threading.Timer(0.2, release.set).start()
    began = time.monotonic()
    assert outbox.suspend([0], 30.0)
    assert time.monotonic() - began < 10.0
    assert ends(told) == [("k", "done", "")]
    assert [entry["key"] for entry in outbox.state(0)] == ["next"]
    time.sleep(0.1)
    assert worker.stop(5.0)
    assert len(told) == 1
