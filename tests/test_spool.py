"""The spool in front of a log that goes away: everything acknowledged arrives, once per key in order, and nothing is held in memory."""

import threading
import time

import pytest

from inference.errors import EventError, LogUnavailable
from inference.event import Event
from inference.log.embedded import EmbeddedLog
from inference.spool import Forwarder


def event(number, model="m", data=b"{}"):
    return Event(f"e{number}", "pod", "io.driftloop.label", extensions={"namespace": "ns", "inferenceservicename": model}, data=data)


class Target:
    """A log that is away on the calls it is told to be, delivers part of a batch before it fails, and refuses what is too large."""

    def __init__(self, away=()):
        self.got, self.calls, self.away, self.closed = [], 0, set(away), False

    def append(self, events):
        self.calls += 1
        if any(len(e.data) > 1000 for e in events):
            raise EventError("too_large", "larger than the broker takes")
        if self.calls in self.away:
            self.got += events[: len(events) // 2]
            raise LogUnavailable("away")
        self.got += events
        return []

    def close(self):
        self.closed = True


@pytest.fixture
def spool(tmp_path):
    log = EmbeddedLog(tmp_path / "spool.db", refuse_when_full=True)
    yield log
    log.close()


def wait_empty(spool, timeout=20):
    end = time.monotonic() + timeout
    while spool.start_positions() != spool.end_positions():
        assert time.monotonic() < end
        time.sleep(0.01)


def first_seen(events):
    return list(dict.fromkeys(e.id for e in events))


def test_events_arrive_in_order_and_are_dropped_here(spool):
    spool.append([event(number) for number in range(50)])
    target = Target()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    spool.append([event(number) for number in range(50, 80)])
    wait_empty(spool)
    forwarder.stop()
    assert [e.id for e in target.got] == [f"e{n}" for n in range(80)]
    assert target.closed
    assert forwarder.forwarded == 80


def test_a_stop_carries_what_is_there_while_the_log_takes_it(spool):
    spool.append([event(number) for number in range(2500)])
    target = Target()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    forwarder.stop()
    assert len(target.got) == 2500
    assert spool.start_positions() == spool.end_positions()


def test_a_log_that_is_away_and_takes_half_loses_nothing_and_keeps_the_order(spool):
    target = Target(away={1, 2, 4})
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    for start in range(0, 200, 20):
        spool.append([event(number) for number in range(start, start + 20)])
        time.sleep(0.02)
    wait_empty(spool)
    forwarder.stop()
    assert first_seen(target.got) == [f"e{n}" for n in range(200)]


def test_a_log_that_cannot_be_opened_is_tried_again(spool):
    spool.append([event(1)])
    target, tries = Target(), []

    def connect():
        tries.append(1)
        if len(tries) < 3:
            raise LogUnavailable("refused")
        return target

    forwarder = Forwarder(spool, connect)
    forwarder.start()
    wait_empty(spool)
    forwarder.stop()
    assert len(tries) == 3
    assert [e.id for e in target.got] == ["e1"]


def test_an_event_the_log_refuses_is_set_aside_and_the_rest_goes_on(spool):
    spool.append([event(1), event(2, data=b"x" * 2000), event(3)])
    target = Target()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    wait_empty(spool)
    forwarder.stop()
    assert [e.id for e in target.got] == ["e1", "e3"]
    (letter,) = spool.dead_letters()
    assert (letter.reason, letter.length) == ("refused_too_large", 2000)


def test_stopped_while_the_log_is_away_the_rest_waits_for_the_next_start(spool):
    spool.append([event(number) for number in range(5)])

    def away():
        raise LogUnavailable("away")

    first = Forwarder(spool, away)
    first.start()
    time.sleep(0.3)
    first.stop()
    assert not first.is_alive()
    assert first.away
    target = Target()
    second = Forwarder(spool, lambda: target)
    second.start()
    wait_empty(spool)
    second.stop()
    assert [e.id for e in target.got] == [f"e{n}" for n in range(5)]


def test_only_what_the_log_has_is_dropped(spool):
    spool.append([event(number) for number in range(10)])
    entered, release = threading.Event(), threading.Event()

    class Slow(Target):
        def append(self, events):
            entered.set()
            release.wait(10)
            return super().append(events)

    target = Slow()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    entered.wait(10)
    spool.append([event(number) for number in range(10, 15)])
    assert len(spool.read(spool.start_positions())) == 15
    release.set()
    wait_empty(spool)
    forwarder.stop()
    assert [e.id for e in target.got] == [f"e{n}" for n in range(15)]
