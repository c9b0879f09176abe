"""The watcher as the only reader of an event hub, against a double of the service: who owns a partition, and from where it is read."""

import threading
import time

import pytest
from amqp_double import AmqpDouble
from test_eventhubs_amqp import connection, event, ids

from inference.errors import LogCorrupt, LogUnavailable, SnapshotError
from inference.log import open_feed, open_log
from inference.log.eventhubs_feed import EventHubsFeed
from streaming.testing import poll_until


class Keeper:
    """An owner that remembers positions as a snapshot store does, for whoever comes next, and everything that it was told."""

    def __init__(self, positions=None):
        self.saved = {} if positions is None else positions
        self.told = []
        self.failing = False

    def assigned(self, partitions):
        if self.failing:
            raise SnapshotError("the store is away")
        self.told.append(("assigned", tuple(partitions)))
        return {number: self.saved[number] for number in partitions if number in self.saved}

    def revoked(self, partitions):
        self.told.append(("revoked", tuple(partitions)))

    def lost(self, partitions):
        self.told.append(("lost", tuple(partitions)))

    def heard(self, what):
        return [number for told, numbers in self.told if told == what for number in numbers]


@pytest.fixture
def double():
    with AmqpDouble({"hub": 3}) as running:
        yield running


@pytest.fixture
def log(double):
    opened = open_log(connection(double))
    yield opened
    opened.close()


@pytest.fixture
def feeds(double):
    """Makes feeds, and closes them."""
    made = []

    def make(owner, **more):
        made.append(EventHubsFeed(connection(double), "driftloop", owner, standby=0.3, **more))
        return made[-1]

    yield make
    for feed in made:
        feed.close()


def owns_all(feed):
    return all(feed.owns(number) for number in range(3))


def polled(feed, until, timeout=15.0, *others):
    """Poll until it holds; gives the records, and how often the log was away."""
    records, away = [], 0
    deadline = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < deadline, "it did not come to that"
        for one in (feed, *others):
            try:
                got = one.poll(100, 0.02)
            except LogUnavailable:
                away += 1
                got = []
            records += got if one is feed else []
    return records, away


def for_a_while(seconds, feed, *others):
    until = time.monotonic() + seconds
    polled(feed, lambda: time.monotonic() > until, 15.0, *others)


def take(feed, count):
    taken = []
    deadline = time.monotonic() + 10
    while len(taken) < count and time.monotonic() < deadline:
        taken += feed.poll(100, 0.1)
    return taken


def test_a_watcher_reads_every_partition_from_where_its_owner_says_and_from_the_oldest_where_it_does_not(double, log, feeds):
    log.append([event(number, f"ns/m{number % 20}") for number in range(100)])
    ends = log.end_positions()
    assert min(ends.values()) > 3
    double.forget("hub", 1, 2)
    owner = Keeper({0: 3})
    feed = feeds(owner)
    records, _ = polled(feed, lambda: owns_all(feed))
    records += take(feed, 95 - len(records))
    assert owner.told == [("assigned", (0, 1, 2))]
    for number, first in {0: 3, 1: 2, 2: 0}.items():
        assert [record.offset for record in records if record.partition == number] == list(range(first, ends[number]))


def test_new_events_come_within_a_moment_and_a_poll_waits_no_longer_than_it_may(double, log, feeds):
    feed = feeds(Keeper(log.end_positions()))
    polled(feed, lambda: owns_all(feed))
    began = time.monotonic()
    assert feed.poll(10, 0.5) == []
    assert 0.4 < time.monotonic() - began < 1.5
    threading.Timer(0.2, log.append, ([event(1)],)).start()
    began = time.monotonic()
    assert ids(feed.poll(10, 10.0)) == ["e1"]
    assert time.monotonic() - began < 5


def test_claiming_a_partition_fetches_nothing_from_it(double, log, feeds):
    log.append([event(number) for number in range(50)])
    feed = feeds(Keeper(log.end_positions()))
    polled(feed, lambda: owns_all(feed))
    assert double.counts["given out"] == 0


def test_no_partition_starves_behind_a_busy_one(log, feeds):
    models = {log.partition_of(f"ns/m{number}"): f"ns/m{number}" for number in range(20)}
    feed = feeds(Keeper())
    polled(feed, lambda: owns_all(feed))
    log.append([event(number, models[0]) for number in range(300)] + [event(900, models[2])])
    assert poll_until(lambda: feed._seats[0].receiver.waiting > 100 and feed._seats[2].receiver.waiting)
    assert any(record.partition == 2 for _ in range(3) for record in feed.poll(10, 0.1))


def test_the_younger_watcher_takes_over_and_the_older_one_stands_by_until_it_ends(double, log, feeds):
    old, new = Keeper(), Keeper()
    first = feeds(old)
    polled(first, lambda: owns_all(first))
    second = feeds(new)
    polled(second, lambda: owns_all(second), 15, first)
    assert sorted(old.heard("lost")) == [0, 1, 2]
    assert [first.owns(number) for number in range(3)] == [False] * 3
    attached = double.counts["receivers"]
    for_a_while(1.2, first, second)
    assert double.counts["receivers"] == attached, "they took it from each other"
    second.close()
    assert new.told[-1] == ("revoked", (0, 1, 2))
    log.append([event(1)])
    records, _ = polled(first, lambda: owns_all(first))
    assert ids(records or take(first, 1)) == ["e1"]


def test_it_is_not_asked_where_to_read_on_before_the_other_is_cut_off(double, feeds, monkeypatch):
    monkeypatch.setattr("inference.log.eventhubs_feed._SETTLE_SECONDS", 0.0)
    order = []

    class Old(Keeper):
        def lost(self, partitions):
            raise AssertionError("nobody polls, so nobody tells it")

    class New(Keeper):
        def assigned(self, partitions):
            order.extend(epoch == old_level for number, epoch in double.receivers() if number in partitions)
            return super().assigned(partitions)

    first = feeds(Old())
    polled(first, lambda: owns_all(first))
    old_level = double.receivers()[0][1]
    second = feeds(New())
    polled(second, lambda: owns_all(second))
    assert order == [False] * 3, "by partition, whether the older one still read it"


def test_a_watcher_that_starts_with_a_lower_level_waits_its_turn(double, feeds):
    first = feeds(Keeper(), level=1000)
    polled(first, lambda: owns_all(first))
    waiting = Keeper()
    second = feeds(waiting, level=500)
    for_a_while(1.0, second, first)
    assert waiting.told == []
    assert owns_all(first)
    first.close()
    polled(second, lambda: owns_all(second))


def test_what_was_cut_is_lost_and_then_read_anew_from_where_the_owner_says(double, log, feeds):
    owner = Keeper()
    feed = feeds(owner)
    polled(feed, lambda: owns_all(feed))
    log.append([event(number) for number in range(10)])
    place = log.partition_of("ns/m")
    read = take(feed, 10)
    owner.saved = {place: 6}
    double.cut()
    assert poll_until(lambda: not feed.owns(place), 5)
    polled(feed, lambda: sorted(owner.heard("lost")) == [0, 1, 2])
    records, _ = polled(feed, lambda: owns_all(feed))
    records += take(feed, 4 - len(records))
    assert ids(read) == [f"e{number}" for number in range(10)]
    assert [record.offset for record in records] == [6, 7, 8, 9]


def test_one_partition_may_be_lost_while_the_others_are_read_on(double, log, feeds):
    owner = Keeper(log.end_positions())
    feed = feeds(owner)
    polled(feed, lambda: owns_all(feed))
    double.detach("Partitions/1", "amqp:link:detach-forced")
    _, away = polled(feed, lambda: owner.heard("lost") == [1])
    assert feed.owns(0)
    assert feed.owns(2)
    _, again = polled(feed, lambda: owns_all(feed))
    assert away + again == 0, "the log is not away while something can be read"
    assert owner.told == [("assigned", (0, 1, 2)), ("lost", (1,)), ("assigned", (1,))]


def test_a_connection_on_which_not_even_signs_of_life_come_is_given_up(double, log, feeds):
    owner = Keeper(log.end_positions())
    feed = feeds(owner, silence=1.5)
    polled(feed, lambda: owns_all(feed))
    for_a_while(2.0, feed)
    assert owner.heard("lost") == [], "signs of life count"
    double.fall_silent()
    polled(feed, lambda: len(owner.heard("lost")) == 3, 6)
    polled(feed, lambda: owns_all(feed))


def test_an_owner_that_cannot_say_where_to_read_is_asked_again(double, log, feeds):
    owner = Keeper()
    owner.failing = True
    feed = feeds(owner)
    with pytest.raises(SnapshotError):
        polled(feed, lambda: False)
    with pytest.raises(SnapshotError):
        polled(feed, lambda: False)
    assert not any(feed.owns(number) for number in range(3))
    owner.failing = False
    polled(feed, lambda: owns_all(feed))
    assert owner.told == [("assigned", (0, 1, 2))]


def test_when_nothing_can_be_reached_the_log_is_away_and_when_it_is_back_reading_goes_on(double, log, feeds):
    owner = Keeper()
    feed = feeds(owner)
    polled(feed, lambda: owns_all(feed))
    double.mute = True
    double.cut()
    # Connections are taken, and nobody answers: worse than a port that is closed.
    _, away = polled(feed, lambda: len(owner.heard("lost")) == 3)
    assert away > 0
    with pytest.raises(LogUnavailable, match="the connection broke off"):
        feed.poll(10, 0.05)
    double.mute = False
    double.cut()
    log.append([event(1)])
    records, _ = polled(feed, lambda: owns_all(feed))
    assert ids(records or take(feed, 1)) == ["e1"]


def test_a_service_that_is_gone_is_told_with_the_reason():
    with AmqpDouble({"hub": 2}) as double:
        feed = EventHubsFeed(connection(double), "driftloop", Keeper())
        feed.poll(10, 1.0)
    said = []

    def told():
        try:
            feed.poll(10, 0.1)
        except LogUnavailable as error:
            said.append(str(error))
        return said and "may this machine reach it on port 5671" in said[-1] and "refused" in said[-1]

    assert poll_until(told, 15), said
    feed.close()


def test_a_consumer_group_that_is_not_there_is_told(double):
    feed = EventHubsFeed(connection(double), "elsewhere", Keeper())
    with pytest.raises(LogUnavailable, match="no such consumer group"):
        for _ in range(100):
            feed.poll(10, 0.1)
    feed.close()


def test_a_position_beyond_the_end_is_told(double, feeds):
    feed = feeds(Keeper({0: 7, 1: 7, 2: 7}))
    with pytest.raises(LogCorrupt, match="the position to read from is not on this hub"):
        for _ in range(100):
            feed.poll(10, 0.1)


def test_closing_gives_back_what_is_owned_while_it_still_is_and_is_quick(double, log):
    held = []

    class Owner(Keeper):
        def revoked(self, partitions):
            held.extend(feed.owns(number) for number in partitions)
            super().revoked(partitions)

    before = threading.active_count()
    owner = Owner()
    feed = open_feed(connection(double), log, owner, group="driftloop")
    polled(feed, lambda: owns_all(feed))
    feed.commit({0: 5})
    began = time.monotonic()
    feed.close()
    assert time.monotonic() - began < 3
    assert held == [True] * 3
    assert owner.told[-1] == ("revoked", (0, 1, 2))
    assert poll_until(lambda: not double.receivers() and threading.active_count() <= before, 5)
    feed.close()
    assert len(owner.told) == 2


def test_who_only_reads_is_told_that_a_watcher_has_the_consumer_group_for_itself(double, log):
    log.append([event(1)])
    feed = EventHubsFeed(connection(double), "$Default", Keeper())
    polled(feed, lambda: owns_all(feed))
    with pytest.raises(LogUnavailable, match="a watcher reads the consumer group '\\$Default' alone"):
        log.read({0: 0, 1: 0, 2: 0})
    feed.close()
