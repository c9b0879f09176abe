"""What was only just put into the spool is handed over in memory: the same events in the same order, and not more than a bound."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference import spool as spool_module
from inference.errors import LogUnavailable
from inference.event import Event
from inference.log.embedded import EmbeddedLog
from inference.spool import Forwarder
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

    def ids(self, model=None):
        return [one.id for one in self.got if model in (None, one.model)]

    def close(self):
        pass


@pytest.fixture
def spool(tmp_path):
    log = EmbeddedLog(tmp_path / "spool.db", refuse_when_full=True)
    yield log
    log.close()


@pytest.fixture
def target():
    return Target()


@pytest.fixture
def forwarder(spool, target):
    return Forwarder(spool, lambda: target)


def put(forwarder, spool, events):
    forwarder.fresh.put(spool.append(events), events)


def damage(spool):
    """From now on nobody can read what stands there."""
    spool._connection.execute("UPDATE records SET headers = x'ff'")


def emptied(spool):
    return poll_until(lambda: spool.start_positions() == spool.end_positions(), timeout=20)


def test_what_was_only_just_put_there_is_not_read_from_the_disk_again(forwarder, spool, target):
    for start in range(0, 3000, 30):
        put(forwarder, spool, [event(number, f"m{number % 5}") for number in range(start, start + 30)])
    damage(spool)
    forwarder.start()
    assert emptied(spool)
    forwarder.stop()
    for model in range(5):
        assert target.ids(f"ns/m{model}") == [f"e{number}" for number in range(model, 3000, 5)]
    assert forwarder.forwarded == len(target.got) == 3000
    assert forwarder.fresh._bytes == 0


def test_what_comes_is_noticed_at_once_and_so_is_the_end(forwarder, spool, target, monkeypatch):
    monkeypatch.setattr(spool_module, "_IDLE", 30.0)
    forwarder.start()
    time.sleep(0.3)
    put(forwarder, spool, [event(1)])
    assert poll_until(lambda: target.ids() == ["e1"], timeout=5)
    assert emptied(spool)
    time.sleep(0.3)
    asked = []
    spool._reader.set_trace_callback(asked.append)
    time.sleep(0.3)
    assert len(asked) < 20, "it waits, and does not ask again and again"
    began = time.monotonic()
    forwarder.stop(20.0)
    assert not forwarder.is_alive()
    assert time.monotonic() - began < 5


def test_no_more_than_a_bound_is_kept_in_memory_and_what_is_not_kept_is_read_from_the_disk(forwarder, spool, target, monkeypatch):
    monkeypatch.setattr(spool_module, "_FRESH_EVENTS", 10)
    monkeypatch.setattr(spool_module, "_FRESH_BYTES", 500)
    number = 0
    for count, size in [(4, 2)] * 6 + [(11, 2), (3, 2), (1, 501), (2, 200), (2, 200), (9, 2)]:
        put(forwarder, spool, [event(number + each, f"m{each % 3}", size) for each in range(count)])
        number += count
        kept = [one for _, _, one in forwarder.fresh._waiting]
        assert len(kept) <= 10
        assert sum(len(one.data) for one in kept) == forwarder.fresh._bytes <= 500
    assert kept
    forwarder.start()
    assert emptied(spool)
    forwarder.stop()
    assert sorted(target.ids()) == sorted(f"e{each}" for each in range(number))
    for model in range(3):
        mine = [int(identity[1:]) for identity in target.ids(f"ns/m{model}")]
        assert mine == sorted(mine)


def test_a_log_that_is_away_is_given_the_same_again_when_it_is_back(forwarder, spool, target):
    target.away = True
    forwarder.start()
    put(forwarder, spool, [event(number) for number in range(5)])
    assert poll_until(lambda: forwarder.away)
    put(forwarder, spool, [event(number) for number in range(5, 9)])
    target.away = False
    assert emptied(spool)
    put(forwarder, spool, [event(9)])
    assert emptied(spool)
    forwarder.stop()
    assert target.ids() == [f"e{number}" for number in range(10)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("told"), st.lists(st.integers(0, 4), min_size=1, max_size=5)),
        st.tuples(st.just("untold"), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
        st.tuples(st.just("carry"), st.booleans()),
        st.tuples(st.just("limit"), st.integers(1, 4)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_however_events_are_told_and_the_log_fails_each_arrives_once_and_in_order(steps, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(spool_module, "_IDLE", 0.0)
    monkeypatch.setattr(spool_module, "_FRESH_EVENTS", 8)
    spool, target, number = EmbeddedLog(tmp_path_factory.mktemp("s") / "spool.db", refuse_when_full=True), Target(), 0
    forwarder = Forwarder(spool, lambda: target)
    for step, how in [*steps, ("limit", 3), *[("carry", False)] * 40]:
        if step in ("told", "untold"):
            events = [event(number + each, f"m{model}") for each, model in enumerate(how)]
            number += len(events)
            if step == "told":
                put(forwarder, spool, events)
            else:
                spool.append(events)
        elif step == "limit":
            forwarder._limit = how
        else:
            target.away = how
            try:
                forwarder._carry()
            except LogUnavailable:
                assert target.away
    assert sorted(target.ids()) == sorted(f"e{each}" for each in range(number))
    for model in range(5):
        mine = [int(identity[1:]) for identity in target.ids(f"ns/m{model}")]
        assert mine == sorted(mine)
    spool.close()
