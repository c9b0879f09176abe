"""The spool in front of a log that goes away: everything acknowledged arrives, once per key in order, and nothing is held in memory."""

import logging
import threading
import time

import pytest

from inference.errors import EventError, LogThrottled, LogUnavailable, SettingsError
from inference.event import Event, from_kafka_text
from inference.spool import Forwarder, Spool
from streaming.testing import poll_until


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
    log = Spool(tmp_path / "spool")
    yield log
    log.close()


def wait_empty(spool, timeout=20):
    end = time.monotonic() + timeout
    while spool.start != spool.end:
        assert time.monotonic() < end
        time.sleep(0.01)


def told(caplog):
    """What we logged; clients of other tests may still have something to say."""
    return [record for record in caplog.records if record.name.startswith("inference.")]


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
    assert spool.start == spool.end


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
    assert len(spool.read(spool.start)) == 15
    release.set()
    wait_empty(spool)
    forwarder.stop()
    assert [e.id for e in target.got] == [f"e{n}" for n in range(15)]


class Throttling(Target):
    """Asks for a slower pace on its first calls, telling for how long or not."""

    def __init__(self, times, pause=None):
        super().__init__()
        self.times, self.pause, self.at = times, pause, []

    def append(self, events):
        self.at.append((time.monotonic(), len(events)))
        if len(self.at) <= self.times:
            error = LogThrottled("send less")
            error.pause = self.pause
            raise error
        return super().append(events)


def test_a_log_that_throttles_is_not_away_and_is_asked_less_often_for_less(spool, caplog):
    caplog.set_level(logging.INFO, logger="inference")
    spool.append([event(number) for number in range(400)])
    target = Throttling(times=2)
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    assert poll_until(lambda: forwarder.throttled == 1)
    assert (forwarder.state, forwarder.away) == ("throttled", False)
    assert forwarder.status()["state"] == "throttled"
    wait_empty(spool)
    forwarder.stop()
    assert [e.id for e in target.got] == [f"e{n}" for n in range(400)]
    assert (forwarder.state, forwarder.throttled) == ("ok", 2)
    (first, second, third), sizes = [at for at, _ in target.at[:3]], [size for _, size in target.at[:3]]
    assert second - first > 0.45
    assert third - second > 0.9, "longer each time"
    assert sizes == [400, 400, 250], "half a batch, then half of that"
    assert [(record.levelname, "away" in record.getMessage()) for record in told(caplog)] == [("INFO", False)] * 2


def test_the_pause_is_the_one_that_the_log_asks_for(spool):
    spool.append([event(1)])
    target = Throttling(times=1, pause=0.05)
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    wait_empty(spool)
    forwarder.stop()
    assert 0.04 < target.at[1][0] - target.at[0][0] < 0.45


def test_a_stop_is_bounded_in_time_and_leaves_the_rest_of_a_slow_logs_events_for_the_next_start(spool):
    class Slow(Target):
        def append(self, events):
            time.sleep(0.3)
            return super().append(events)

    spool.append([event(number) for number in range(5000)])
    target = Slow()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    assert poll_until(lambda: target.calls == 1)
    began = time.monotonic()
    forwarder.stop(0.5)
    assert time.monotonic() - began < 1.0
    forwarder.join(5)
    assert 2000 <= len(target.got) < 5000, "it went on until the time was over"
    assert spool.extent().events == 5000 - len(target.got)
    rest = Target()
    second = Forwarder(spool, lambda: rest)
    second.start()
    wait_empty(spool)
    second.stop()
    assert [e.id for e in target.got + rest.got] == [f"e{n}" for n in range(5000)]


def test_a_stop_waits_for_a_throttling_log_as_long_as_it_may(spool):
    spool.append([event(1)])
    target = Throttling(times=2, pause=0.2)
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    assert poll_until(lambda: forwarder.throttled == 1)
    forwarder.stop(5.0)
    assert [e.id for e in target.got] == ["e1"]


def test_what_a_failing_log_is_known_to_have_is_not_sent_again(spool):
    """A log whose first partition had answered before it went away."""

    class Partly(Target):
        def append(self, events):
            self.calls += 1
            if self.calls == 1:
                had = [index for index, e in enumerate(events) if e.model == "ns/a"]
                self.got += [events[index] for index in had]
                error = LogUnavailable("away")
                error.appended = frozenset(had)
                raise error
            self.got += events
            return []

    spool.append([event(number, "a" if number % 3 else "b") for number in range(30)])
    target = Partly()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    wait_empty(spool)
    forwarder.stop()
    assert sorted(int(e.id[1:]) for e in target.got) == list(range(30)), "each once"
    for model in ("ns/a", "ns/b"):
        mine = [int(e.id[1:]) for e in target.got if e.model == model]
        assert mine == sorted(mine)
    assert forwarder._known == set()


def test_of_many_events_only_those_that_the_log_refuses_are_set_aside(spool):
    bad = {7, 8, 300, 999}
    spool.append([event(number, data=b"x" * 2000 if number in bad else b"{}") for number in range(1000)])
    target = Target()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    wait_empty(spool)
    forwarder.stop()
    assert [int(e.id[1:]) for e in target.got] == [number for number in range(1000) if number not in bad]
    assert spool.dead_letter_counts() == {"refused_too_large": 4}
    assert target.calls < 100, "half by half, not one by one"


class LockedNow(Spool):
    """A spool that can be made to fail at what is asked of it."""

    failing = frozenset()

    def drop_before(self, number):
        if "drop" in self.failing:
            raise LogUnavailable("the disk is full")
        super().drop_before(number)

    def take(self, number, limit):
        if "read" in self.failing:
            raise LogUnavailable("the disk failed")
        return super().take(number, limit)


def test_a_spool_that_can_drop_nothing_doubles_nothing_and_catches_up(tmp_path, caplog):
    spool = LockedNow(tmp_path / "spool")
    spool.failing = {"drop"}
    spool.append([event(number) for number in range(50)])
    target = Target()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    assert poll_until(lambda: len(target.got) == 50)
    time.sleep(0.3)
    assert (spool.extent().events, forwarder.state) == (50, "ok")
    spool.failing = frozenset()
    spool.append([event(50)])
    wait_empty(spool)
    forwarder.stop()
    assert [e.id for e in target.got] == [f"e{n}" for n in range(51)]
    assert [record.getMessage() for record in told(caplog)] == ["the spool fails, what was carried stays in it: the disk is full"]
    spool.close()


def test_a_spool_that_cannot_be_read_is_not_told_as_a_log_that_is_away(tmp_path, caplog):
    spool = LockedNow(tmp_path / "spool")
    spool.failing = {"read"}
    spool.append([event(1)])
    target = Target()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    assert poll_until(lambda: told(caplog))
    assert forwarder.state == "ok"
    spool.failing = frozenset()
    wait_empty(spool)
    forwarder.stop()
    assert [record.getMessage() for record in told(caplog)] == ["the spool fails, nothing is carried from it: the disk failed"]
    spool.close()


def test_a_log_that_is_away_at_the_start_is_told_before_any_event_came(spool, caplog):
    def away():
        raise LogUnavailable("nobody listens")

    forwarder = Forwarder(spool, away)
    forwarder.start()
    assert poll_until(lambda: forwarder.away)
    forwarder.stop()
    assert [record.getMessage() for record in told(caplog)] == ["the log is away, events wait in the spool: nobody listens"]


def test_while_a_log_is_away_what_waits_for_it_is_made_safe_from_a_power_cut(spool):
    spool.append([event(1)])
    target = Target(away=range(1, 1000))
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    assert poll_until(lambda: forwarder.away)
    assert poll_until(lambda: not spool._segments[0].dirty)
    forwarder.stop()


def test_its_status_tells_what_waits_and_for_how_long(spool):
    forwarder = Forwarder(spool, Target)
    spool.append([event(1), event(2)])
    time.sleep(0.06)
    told = forwarder.status()
    assert (told["state"], told["forwarded"], told["throttled"], told["spool"]["events"]) == ("ok", 0, 0, 2)
    assert told["spool"]["bytes"] > 100
    assert 0.05 < told["spool"]["oldest_seconds"] < 5


def test_whatever_goes_wrong_is_told_and_the_carrying_goes_on(spool, caplog):
    spool.append([event(1)])
    target, tries = Target(), []

    def connect():
        tries.append(1)
        if len(tries) == 1:
            raise SettingsError(["log.tls.ca: no such file"])
        if len(tries) in (2, 3):
            raise ZeroDivisionError("a mistake of ours")
        return target

    forwarder = Forwarder(spool, connect)
    forwarder.start()
    wait_empty(spool)
    forwarder.stop()
    assert [e.id for e in target.got] == ["e1"]
    assert "log.tls.ca: no such file" in caplog.text
    assert caplog.text.count("a mistake of ours") == 2, "once, with where it happened: in the traceback and at its end"
    assert forwarder.state == "ok"


def test_a_log_that_takes_messages_as_they_are_gets_them_so(spool):
    class AsTheyAre(Target):
        def append_messages(self, messages):
            self.got += messages

        def append(self, events):
            raise AssertionError("they need not be read")

    sent = [event(1, data=b"\x00\xff"), Event("\u00e9", "pod", "t", "2026-10-01T00:00:00Z", "application/json", {"namespace": "ns"}, b"")]
    spool.append(sent)
    target = AsTheyAre()
    forwarder = Forwarder(spool, lambda: target)
    forwarder.start()
    wait_empty(spool)
    forwarder.stop()
    assert sorted(from_kafka_text(m.headers, m.value).id for m in target.got) == sorted(e.id for e in sent)
    assert {m.key: from_kafka_text(m.headers, m.value) for m in target.got} == {e.model: e for e in sent}
