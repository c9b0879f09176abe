"""What was only just put into the spool is handed over in memory: the same events in the same order, and not more than a bound."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.errors import LogUnavailable
from inference.event import Event
from inference.spool import Forwarder, Spool
from inference.spool import forwarder as forwarder_module
from inference.spool import fresh as fresh_module
from streaming.testing import poll_until


def event(number, model="m0", size=2):
    return Event(f"e{number}", "pod", "t", extensions={"namespace": "ns", "inferenceservicename": model}, data=b"x" * size)


class Target:
    """A log; while `away` it takes nothing."""

    def __init__(self):
        self.got, self.away = [], False

    def append(self, events):
        if self.away:
            raise LogUnavailable("away")
        self.got += events

    def ids(self):
        return [one.id for one in self.got]

    def close(self):
        pass


@pytest.fixture
def spool(tmp_path):
    log = Spool(tmp_path / "spool")
    yield log
    log.close()


@pytest.fixture
def target():
    return Target()


@pytest.fixture
def forwarder(spool, target):
    return Forwarder(spool, lambda: target)


def damage(spool):
    """From now on nobody can read what stands there."""
    for segment in spool._segments:
        segment.path.write_bytes(b"\xff" * segment.path.stat().st_size)


def emptied(spool):
    return poll_until(lambda: spool.start == spool.end, timeout=20)


def test_what_was_only_just_put_there_is_not_read_from_the_disk_again(forwarder, spool, target):
    for start in range(0, 3000, 30):
        spool.append([event(number, f"m{number % 5}") for number in range(start, start + 30)])
    damage(spool)
    forwarder.start()
    assert emptied(spool)
    forwarder.stop()
    assert target.ids() == [f"e{number}" for number in range(3000)]
    assert forwarder.forwarded == 3000
    assert (spool._fresh.events, spool._fresh.bytes) == (0, 0)


def test_what_comes_is_noticed_at_once_and_so_is_the_end(forwarder, spool, target, monkeypatch):
    monkeypatch.setattr(forwarder_module, "_IDLE", 30.0)
    forwarder.start()
    time.sleep(0.3)
    spool.append([event(1)])
    assert poll_until(lambda: target.ids() == ["e1"], timeout=5)
    assert emptied(spool)
    time.sleep(0.3)
    asked, take = [], spool.take
    monkeypatch.setattr(spool, "take", lambda *arguments: asked.append(1) or take(*arguments))
    time.sleep(0.3)
    assert len(asked) < 5, "it waits, and does not ask again and again"
    began = time.monotonic()
    forwarder.stop(20.0)
    assert not forwarder.is_alive()
    assert time.monotonic() - began < 5


def test_no_more_than_a_bound_is_kept_in_memory_and_what_is_not_kept_is_read_from_the_disk(forwarder, spool, target, monkeypatch):
    monkeypatch.setattr(fresh_module, "FRESH_EVENTS", 10)
    monkeypatch.setattr(fresh_module, "FRESH_BYTES", 2_500)
    number, kept = 0, []
    for count, size in [(4, 2)] * 6 + [(11, 2), (3, 2), (1, 2_501), (2, 900), (2, 900), (9, 2)]:
        spool.append([event(number + each, f"m{each % 3}", size) for each in range(count)])
        number += count
        kept = [message for batch in spool._fresh._batches for message in batch.messages]
        assert len(kept) == spool._fresh.events <= 10
        assert sum(len(message.value) for message in kept) <= spool._fresh.bytes <= 2_500
    assert kept
    forwarder.start()
    assert emptied(spool)
    forwarder.stop()
    assert target.ids() == [f"e{each}" for each in range(number)]


def test_a_log_that_is_away_is_given_the_same_again_when_it_is_back(forwarder, spool, target):
    target.away = True
    forwarder.start()
    spool.append([event(number) for number in range(5)])
    assert poll_until(lambda: forwarder.away)
    spool.append([event(number) for number in range(5, 9)])
    target.away = False
    assert emptied(spool)
    spool.append([event(9)])
    assert emptied(spool)
    forwarder.stop()
    assert target.ids() == [f"e{number}" for number in range(10)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 5)),
        st.tuples(st.just("carry"), st.booleans()),
        st.tuples(st.just("limit"), st.integers(1, 4)),
        st.tuples(st.just("restart"), st.booleans()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_however_events_come_and_the_log_fails_and_the_gateway_ends_each_arrives_once_and_in_order(steps, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(forwarder_module, "_IDLE", 0.0)
    monkeypatch.setattr(fresh_module, "FRESH_EVENTS", 8)
    folder, target, number = tmp_path_factory.mktemp("s"), Target(), 0
    spool = Spool(folder)
    forwarder = Forwarder(spool, lambda: target)
    for step, how in [*steps, ("limit", 3), *[("carry", False)] * 40]:
        if step == "append":
            spool.append([event(number + each) for each in range(how)])
            number += how
        elif step == "limit":
            forwarder._limit = how
        elif step == "restart":
            spool.close()
            spool = Spool(folder)
            forwarder = Forwarder(spool, lambda: target)
        else:
            target.away = how
            try:
                forwarder._carry()
            except LogUnavailable:
                assert target.away
        assert spool.end == number
        assert spool.start == len(target.got)
    assert target.ids() == [f"e{each}" for each in range(number)]
    spool.close()
