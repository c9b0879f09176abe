"""What every feed keeps: each partition has one owner, who says where it starts, and nothing is read before or behind his back."""

import threading
import time
from importlib.util import find_spec

import pytest
from watchers import make_topic

from inference.errors import LogUnavailable, SnapshotError
from inference.event import Event
from inference.log import open_feed, open_log
from inference.log.connection import Connection
from streaming.testing import poll_until

KAFKAS = [name for name, package in (("kafka-python", "kafka"), ("librdkafka", "confluent_kafka")) if find_spec(package)]


def event(number):
    extensions = {"namespace": "ns", "inferenceservicename": f"m{number % 12}"}
    return Event(f"e{number}", "pod-1", "io.driftloop.label", "2026-10-01T00:00:00Z", "application/json", extensions, b"{}")


class Positions:
    """An owner that keeps positions where its successor finds them, as snapshots do."""

    def __init__(self, store, errors=()):
        self.store, self.errors = store, list(errors)
        self.now, self.gave_back = {}, []

    def assigned(self, partitions):
        if self.errors:
            raise self.errors.pop(0)
        self.now |= {number: self.store.get(number, 0) for number in partitions}
        return {number: self.store[number] for number in partitions if number in self.store}

    def revoked(self, partitions):
        self.gave_back += partitions
        for number in partitions:
            self.store[number] = self.now.pop(number)

    def lost(self, partitions):
        for number in partitions:
            self.now.pop(number)


class Member(threading.Thread):
    """Polls until told to stop, and checks that each partition comes without a gap from where its owner wanted it."""

    def __init__(self, connection, store, seen, *, errors=(), group="g", name=None):
        super().__init__(daemon=True)
        self.owner, self.seen, self.ended = Positions(store, errors), seen, threading.Event()
        self.log = open_log(connection)
        self.feed = open_feed(connection, self.log, self.owner, group=group, member=name, session=6.0)
        self.errors, self.paused, self.wrong = [], threading.Event(), []
        self.start()

    def run(self):
        while not self.ended.is_set():
            if self.paused.is_set():
                time.sleep(0.05)
                continue
            try:
                records = self.feed.poll(50, 0.2)
            except (LogUnavailable, SnapshotError) as error:
                self.errors.append(error)
                time.sleep(0.05)
                continue
            for record in records:
                if self.owner.now.get(record.partition) != record.offset:
                    self.wrong.append((record.partition, record.offset, dict(self.owner.now)))
                self.owner.now[record.partition] = record.offset + 1
                self.seen.append((record.partition, record.offset))
            self.feed.commit(self.owner.now)
        self.feed.close()
        self.log.close()

    def owned(self):
        return {number for number in range(6) if self.feed.owns(number)}

    def stop(self):
        self.ended.set()
        self.join(20)
        assert not self.is_alive()
        assert self.wrong == []


@pytest.fixture(params=["embedded", *KAFKAS])
def connection(request, tmp_path):
    if request.param == "embedded":
        return Connection(url=str(tmp_path / "log.db"))
    bootstrap = request.getfixturevalue("kafka")
    return Connection(url=f"kafka://{bootstrap}/{make_topic(bootstrap, 6)}", client=request.param)


def append(connection, first, count):
    log = open_log(connection)
    places = log.append([event(number) for number in range(first, first + count)])
    log.close()
    return sorted(places)


def test_it_reads_from_where_its_owner_says_and_gives_everything_back_at_the_end(connection):
    places = append(connection, 0, 120)
    busiest = max({number for number, _ in places}, key=[number for number, _ in places].count)
    offsets = [offset for number, offset in places if number == busiest]
    store, seen = {busiest: offsets[3]}, []
    member = Member(connection, store, seen)
    wanted = [place for place in places if place[0] != busiest or place[1] >= offsets[3]]
    assert poll_until(lambda: len(seen) >= len(wanted), timeout=20)
    assert member.owned() >= {number for number, _ in places}
    later = append(connection, 200, 30)
    assert poll_until(lambda: len(seen) >= len(wanted) + 30, timeout=20)
    member.stop()
    assert sorted(seen) == sorted(wanted + later)
    assert member.owned() == set()
    assert all(store[number] == offset + 1 for number, offset in dict(sorted(later)).items())


def test_while_the_owner_cannot_say_where_to_start_nothing_is_read_and_nothing_lost(connection):
    places = append(connection, 0, 60)
    seen = []
    member = Member(connection, {}, seen, errors=[SnapshotError("away"), LogUnavailable("away"), SnapshotError("still away")])
    assert poll_until(lambda: len(member.errors) == 3, timeout=20)
    assert poll_until(lambda: len(seen) >= 60, timeout=20)
    member.stop()
    assert sorted(seen) == places


@pytest.fixture
def shared(connection):
    if not connection.url.startswith("kafka"):
        pytest.skip("the embedded log has one watcher")
    return connection


@pytest.mark.slow
def test_members_share_and_hand_over_without_a_gap(shared):
    store, seen = {}, []
    places = append(shared, 0, 100)
    first = Member(shared, store, seen)
    assert poll_until(lambda: len(first.owned()) == 6, timeout=20)
    second = Member(shared, store, seen)
    assert poll_until(lambda: len(second.owned()) == 3 == len(first.owned()), timeout=30)
    assert not first.owned() & second.owned()
    places += append(shared, 100, 100)
    assert poll_until(lambda: len(seen) >= 200, timeout=20)
    first.stop()
    assert poll_until(lambda: len(second.owned()) == 6, timeout=30)
    places += append(shared, 200, 100)
    assert poll_until(lambda: len(seen) >= 300, timeout=20)
    second.stop()
    assert sorted(seen) == sorted(places)


@pytest.mark.slow
def test_a_static_member_that_comes_back_in_time_gets_its_partitions_and_moves_no_others(shared):
    store, seen = {}, []
    first, second = Member(shared, store, seen, name="one"), Member(shared, store, seen, name="two")
    assert poll_until(lambda: len(first.owned()) == 3 == len(second.owned()), timeout=30)
    kept, had, given = second.owned(), first.owned(), list(second.owner.gave_back)
    first.stop()
    again = Member(shared, store, seen, name="one")
    assert poll_until(lambda: again.owned() == had, timeout=5)
    assert second.owned() == kept
    assert second.owner.gave_back == given
    again.stop()
    second.stop()


@pytest.mark.slow
def test_who_was_out_of_it_for_longer_than_its_session_owns_nothing_and_is_told_that_it_lost(shared):
    """As a process that was stopped, or hung: the others have its partitions."""
    store, seen = {}, []
    places = append(shared, 0, 60)
    first = Member(shared, store, seen)
    assert poll_until(lambda: len(seen) == 60, timeout=20)
    first.paused.set()
    assert poll_until(lambda: not first.owned(), timeout=10), "a lease that is not renewed ends by itself"
    first.paused.clear()
    assert poll_until(lambda: len(first.owned()) == 6, timeout=30)
    places += append(shared, 100, 30)
    assert poll_until(lambda: len(seen) >= 90, timeout=20)
    first.stop()
    assert sorted(set(seen)) == sorted(places)


@pytest.mark.slow
def test_a_broker_that_goes_away_is_told_and_reading_goes_on_when_it_is_back(broker, tmp_path):
    started = broker("start", "--port", 0, "--folder", tmp_path / "b", "--detach")
    assert started.returncode == 0, started.stderr
    bootstrap = started.stdout.split()[-1]
    try:
        topic = make_topic(bootstrap, 6)
        connections = [Connection(url=f"kafka://{bootstrap}/{topic}", client=client) for client in KAFKAS]
        places = append(connections[0], 0, 60)
        members = [Member(connection, {}, [], group=connection.client) for connection in connections]
        assert poll_until(lambda: all(len(member.seen) == 60 for member in members), timeout=20)
        assert broker("stop", "--folder", tmp_path / "b").returncode == 0
        assert poll_until(lambda: all(member.errors for member in members), timeout=30)
        again = broker("start", "--port", bootstrap.rpartition(":")[2], "--folder", tmp_path / "b", "--detach")
        assert again.returncode == 0, again.stderr
        places += append(connections[0], 100, 30)
        for member in members:
            assert poll_until(lambda seen=member.seen: len(set(seen)) >= 90, timeout=60)
            assert sorted(set(member.seen)) == sorted(places)
            member.stop()
    finally:
        broker("stop", "--folder", tmp_path / "b")
