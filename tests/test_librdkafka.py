"""librdkafka as the client: batches that cannot overtake, errors that say what to mend, and a membership that is doubted in time."""

import logging
import time
from types import SimpleNamespace

import pytest
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed (extra `librdkafka`)")

from confluent_kafka import Producer
from eventhubs_double import KEY, STRING, USERS, EventHubsDouble, event, ids
from kafka.record.memory_records import MemoryRecords
from watchers import make_topic

from inference.errors import EventError, LogThrottled, LogUnavailable, SettingsError
from inference.event import Event, Message, to_kafka
from inference.log import librdkafka, librdkafka_feed, librdkafka_settings, open_feed, open_log
from inference.log.connection import Connection, ConnectionString, Entra, Sasl, Tls
from inference.log.credentials import EntraTokens
from inference.log.kafka import KafkaLog
from inference.log.librdkafka import LibrdkafkaLog
from inference.log.librdkafka_feed import LibrdkafkaFeed
from inference.spool import Forwarder, Spool
from streaming.reader import everything
from streaming.testing import poll_until


def to(double, topic="driftloop", **more):
    return Connection(url=f"kafka://{double.address}/{topic}", client="librdkafka", **more)


def alice(password="wonderland", mechanism="PLAIN"):
    return Sasl(kind="sasl", mechanism=mechanism, username="alice", password=SecretStr(password))


@pytest.fixture
def hasty(monkeypatch):
    """What is not there is given up sooner, for the sake of the tests' time."""
    monkeypatch.setattr(librdkafka_settings, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(librdkafka, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(librdkafka_settings, "_FIRST_SECONDS", 0.5)
    monkeypatch.setattr(librdkafka, "_LOOK_SECONDS", 0.3)
    monkeypatch.setattr(librdkafka, "_ANSWER_SECONDS", 4.0)


@pytest.fixture
def double():
    with EventHubsDouble() as opened:
        yield opened


@pytest.fixture
def log(double):
    opened = LibrdkafkaLog(to(double), patience=6.0)
    yield opened
    opened.close()


# Where and how events are put


@pytest.fixture(scope="module")
def seven():
    with EventHubsDouble(7) as double:
        logs = KafkaLog(Connection(url=f"kafka://{double.address}")), LibrdkafkaLog(to(double))
        yield double, *logs
        for log in logs:
            log.close()


@given(st.text(min_size=1, max_size=300))
def test_both_clients_agree_about_a_models_partition(seven, model):
    _, one, other = seven
    assert one.partition_of(model) == other.partition_of(model)


def test_it_is_the_partition_that_kafkas_own_clients_choose(seven):
    double, _, log = seven
    chosen = {}
    producer = Producer({"bootstrap.servers": double.address, "partitioner": "murmur2"})
    for number in range(100):
        model = f"naméspace-{number % 7}/model-{number}"
        told = lambda _, message, model=model: chosen.update({model: message.partition()})  # noqa: E731
        producer.produce("driftloop", b"", model.encode(), on_delivery=told)
    assert producer.flush(10) == 0
    assert len(set(chosen.values())) == 7
    assert chosen == {model: log.partition_of(model) for model in chosen}


def test_a_partitions_events_go_out_as_one_batch_so_that_none_can_overtake_another(double, log):
    for number in range(3):
        log.append([event(each, f"ns/m{each % 6}") for each in range(3000)])
        assert {len(partition.batches) for partition in double.topics["driftloop"] if partition.end} == {number + 1}


def test_behind_a_batch_that_failed_nothing_is_sent_and_what_is_known_to_be_there_is_told(double, log):
    events = [event(number, f"ns/m{number % 6}", size=60_000) for number in range(120)]
    double.refusals = 1
    missing = list(range(120))
    with pytest.raises(LogThrottled) as caught:
        log.append(events)
    # The first batches of the others are there; behind the one that failed is nothing, and no second batch of any.
    assert 0 < len(caught.value.appended) < 60
    for _ in range(3):
        missing = [number for number in missing if number not in {missing[index] for index in caught.value.appended}]
        double.refusals = 1
        with pytest.raises(LogThrottled) as caught:
            log.append([events[number] for number in missing])
    missing = [number for number in missing if number not in {missing[index] for index in caught.value.appended}]
    log.append([events[number] for number in missing])
    read = ids(log)
    for model in range(6):
        assert [one for one in read if int(one[1:]) % 6 == model] == [f"e{number}" for number in range(model, 120, 6)]


@pytest.mark.parametrize(("limit", "size"), [(1_046_528, 1_100_000), (100_000, 150_000)])
def test_an_event_that_is_too_large_is_refused_and_the_log_goes_on(double, log, limit, size):
    double.event_bytes = limit
    with pytest.raises(EventError, match="an event is larger than the broker takes") as caught:
        log.append([event(1, size=size)])
    assert caught.value.reason == "too_large"
    log.append([event(2)])
    assert ids(log) == ["e2"]


def test_nothing_is_appended_where_one_event_is_larger_than_any_may_be(double, log):
    with pytest.raises(EventError):
        log.append([*(event(number, size=100_000) for number in range(12)), event(12, size=1_100_000)])
    assert ids(log) == []
    headers = {"namespace": "ns", "inferenceservicename": "m", **{f"x{number}": "v" * 15_000 for number in range(60)}}
    with pytest.raises(EventError):
        log.append([Event("e1", "s", "t", extensions=headers, data=b"x" * 200_000)])


def test_many_large_events_go_out_in_requests_that_the_service_bears(double, log):
    log.append([event(number, f"ns/m{number % 6}", size=150_000) for number in range(40)])
    assert len(ids(log)) == 40
    assert double.seen["oversized"] == 0


def test_an_append_of_more_than_the_clients_queue_holds_arrives_whole():
    with EventHubsDouble(100) as double:
        log = LibrdkafkaLog(to(double))
        places = log.append([event(number, f"ns/m{number % 997}", size=0) for number in range(110_000)])
        ends = log.end_positions()
        log.close()
    assert max(ends.values()) < 2800, "of no partition are there so many that their bytes alone would part them"
    assert sorted(places) == [(number, offset) for number in range(100) for offset in range(ends[number])]


def test_messages_are_carried_as_they_are_to_the_places_that_are_told(double, log):
    odd = Event(
        "é\N{SNOWMAN}",
        "pod-1",
        "t",
        "2026-10-01T00:00:00Z",
        "text/plain",
        {"namespace": "ns", "x": "", "inferenceservicename": "ü"},
        b"\0\xff",
    )
    events = [*(event(number, f"ns/m{number % 3}") for number in range(9)), odd]
    places = log.append_messages([Message.of(one) for one in events])
    assert log.append_messages([]) == []
    assert {(record.partition, record.offset): record.event for batch in everything(log) for record in batch} == dict(
        zip(places, events, strict=True)
    )
    key, headers, value = to_kafka(odd)
    *_, batch = double.topics["driftloop"][log.partition_of(odd.model)].batches[-1]
    written = list(MemoryRecords(batch).next_batch())[-1]
    assert (written.key, written.headers, written.value) == (key, headers, value)


def test_a_spool_is_carried_to_it_from_the_disk_and_from_memory(double, log, tmp_path):
    spool, events = Spool(tmp_path / "spool"), [event(number, f"ns/m{number % 3}") for number in range(60)]
    spool.append(events[:30])
    forwarder = Forwarder(spool, lambda: LibrdkafkaLog(to(double)))
    forwarder.start()
    assert poll_until(lambda: forwarder.forwarded == 30)
    spool.append(events[30:])
    assert poll_until(lambda: forwarder.forwarded == 60)
    forwarder.stop()
    read = [record.event for batch in everything(log) for record in batch]
    assert sorted(read, key=lambda one: int(one.id[1:])) == events
    spool.close()


# A broker that is slow, or away


def test_a_broker_that_makes_us_wait_is_slow_and_not_away(double, log, monkeypatch):
    monkeypatch.setattr(librdkafka, "_LOOK_SECONDS", 0.2)
    double.hold = 1.0
    log.append([event(number) for number in range(5)])
    assert ids(log) == [f"e{number}" for number in range(5)]
    assert double.seen["throttled"] >= 2


def test_what_was_not_let_through_in_time_is_throttled_and_does_not_come_later(double):
    log = LibrdkafkaLog(to(double), patience=2.5)
    double.hold = 0.5
    with pytest.raises(LogThrottled, match="throttled by the broker") as caught:
        log.append([event(number, f"ns/m{number % 6}", size=60_000) for number in range(200)])
    double.hold = 0.0
    time.sleep(1.0)
    there = set(ids(log))
    known = {f"e{number}" for number in caught.value.appended}
    assert known <= there
    # At most the batches that were under way.
    assert 0 < len(known) <= len(there) <= len(known) + 4 * 8
    log.append([event(1000)])
    assert set(ids(log)) == there | {"e1000"}
    log.close()


def test_error_44_is_a_throttle_and_spoils_nothing_that_comes_after(double, log):
    double.refusals = 1
    with pytest.raises(LogThrottled, match=r"throttled by the broker .*; send less, or have more throughput units") as caught:
        log.append([event(1)])
    assert caught.value.appended == frozenset()
    log.append([event(2)])
    assert ids(log) == ["e2"]


def test_a_broker_that_is_gone_is_noticed_within_seconds_by_every_call(hasty):
    with EventHubsDouble() as double:
        log = LibrdkafkaLog(to(double))
        log.append([event(1)])
        assert len(log.read(log.start_positions())) == 1
    for call in (lambda: log.append([event(2)]), lambda: log.append([event(2)]), log.end_positions, lambda: log.read({0: 0})):
        began = time.monotonic()
        with pytest.raises(LogUnavailable, match="nothing listens there"):
            call()
        assert time.monotonic() - began < 6
    log.close()


def test_what_could_not_be_delivered_is_not_delivered_behind_the_callers_back(double, hasty):
    log = LibrdkafkaLog(to(double), patience=3.0)
    log.append([event(1)])
    port, double.advertised = double.port, ("127.0.0.1", 9)
    double.cut()
    with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:9 \(advertised\.listeners\), and there: nothing listens") as caught:
        log.append([event(2)])
    assert caught.value.appended == frozenset()
    double.advertised = ("127.0.0.1", port)
    assert poll_until(lambda: appended(log, event(3)), timeout=20)
    time.sleep(0.5)
    assert ids(log) == ["e1", "e3"]
    log.close()


def appended(log, one):
    try:
        return bool(log.append([one]))
    except LogUnavailable:
        return False


def test_reading_goes_on_while_connections_break(double, log):
    positions, read = log.start_positions(), []
    for number in range(3):
        assert poll_until(lambda number=number: appended(log, event(number)), timeout=20)
        double.cut()

        def all_read(number=number):
            try:
                for record in log.read(positions):
                    read.append(record.event.id)
                    positions[record.partition] = record.offset + 1
            except LogUnavailable:
                return False
            return f"e{number}" in read

        assert poll_until(all_read, timeout=20)
    assert list(dict.fromkeys(read)) == [f"e{number}" for number in range(3)]


# Who we are, and what is wrong


def test_a_connection_string_logs_in_over_tls_and_is_shown_nowhere(hasty, authority, caplog, capfd):
    auth = ConnectionString(connection_string=SecretStr(f"{STRING}\n"))
    with EventHubsDouble(users=USERS, tls=authority.server("127.0.0.1")) as double, caplog.at_level(logging.DEBUG):
        log = open_log(to(double, auth=auth, tls=Tls(ca=authority.ca)))
        log.append([event(number, f"ns/m{number % 3}") for number in range(30)])
        assert len(ids(log)) == 30
        double.users["$ConnectionString"] = "another"
        double.cut()
        with pytest.raises(LogUnavailable, match=r"refused the credentials: check `log\.auth`") as caught:
            log.append([event(30)])
        log.close()
    assert KEY not in caplog.text + str(caught.value) + repr(log.__dict__)
    assert capfd.readouterr() == ("", ""), "librdkafka would write to stderr"


@pytest.mark.parametrize(
    ("server", "connection", "says"),
    [
        ({"users": USERS}, {"auth": alice("wr0ng"), "tls": False}, r"the broker refused the credentials: check `log\.auth`"),
        ({"users": USERS}, {"auth": alice(mechanism="SCRAM-SHA-256"), "tls": False}, "no such mechanism there"),
        ({"users": USERS}, {}, r"the broker hung up: does that port want TLS \(`tls: true`\) or `auth`\?"),
        ({}, {"tls": True}, "there is no TLS on that port: another port, or `tls: false`"),
        ({"denied": {"driftloop"}}, {}, "not permitted .*: give this user the rights to read and write the topic 'driftloop'"),
        ({}, {"topic": "nowhere"}, "there is no topic 'nowhere'; make it first, or name another"),
        ({"advertised": ("127.0.0.1", 9)}, {}, r"the broker says that it is at 127\.0\.0\.1:9 \(advertised\.listeners\)"),
    ],
)
def test_what_is_wrong_is_said_within_seconds(hasty, server, connection, says):
    more = {name: server.pop(name) for name in ("denied", "advertised") if name in (server := dict(server))}
    with EventHubsDouble(**server) as double:
        for name, value in more.items():
            setattr(double, name, value)
        began = time.monotonic()
        with pytest.raises(LogUnavailable, match=says) as caught:
            open_log(to(double, **connection)).end_positions()
        assert time.monotonic() - began < 8
        assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://127.0.0.1:9", "nothing listens there: is the broker up, and is this its address"),
        ("kafka://nowhere.invalid", "no such host: check the name in the address"),
    ],
)
def test_nobody_there_is_said_within_seconds(hasty, url, says):
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=says):
        open_log(Connection(url=url, client="librdkafka"))
    assert time.monotonic() - began < 8


def test_certificates_are_looked_at_on_both_sides(hasty, authority, tmp_path):
    stranger = Authority(tmp_path)
    certificate, key = authority.files("client", "open sesame")
    known = Tls(ca=authority.ca, certificate=certificate, key=key, key_password=SecretStr("open sesame"))
    with EventHubsDouble(tls=authority.server("127.0.0.1", wants_certificate=True)) as double:
        log = open_log(to(double, tls=known))
        log.append([event(1)])
        log.close()
        with pytest.raises(LogUnavailable, match=r"does it want to know who we are, by `log\.tls\.certificate`"):
            open_log(to(double, tls=Tls(ca=authority.ca)))
        with pytest.raises(LogUnavailable, match=r"not trusted: name its authority in `log\.tls\.ca`"):
            open_log(to(double, tls=Tls(ca=stranger.ca)))
    with (
        EventHubsDouble(tls=authority.server("another.host")) as double,
        pytest.raises(LogUnavailable, match=r"not trusted.* another host"),
    ):
        open_log(to(double, tls=Tls(ca=authority.ca)))


def test_files_that_are_no_certificates_are_named(authority, tmp_path):
    certificate, key = authority.files("mine", "right")
    _, other = authority.files("another")
    (tmp_path / "no.pem").write_text("hello")
    for tls, says in (
        (Tls(ca=tmp_path / "no.pem"), r"log\.tls\.ca \S+no\.pem: cannot be used: .*no certificate"),
        (Tls(ca=tmp_path / "gone.pem"), r"log\.tls\.ca \S+gone\.pem: there is no such file"),
        (Tls(certificate=certificate, key=other), r"log\.tls\.key \S+another\.key: cannot be used: .*mismatch"),
        (Tls(certificate=certificate, key=key), r"log\.tls\.key \S+mine\.key: cannot be used"),
        (Tls(certificate=certificate, key=key, key_password=SecretStr("wr0ng")), r"log\.tls\.key \S+mine\.key: cannot be used"),
    ):
        with pytest.raises(SettingsError, match=says) as caught:
            open_log(Connection(url="kafka://127.0.0.1:9", client="librdkafka", tls=tls))
        assert "wr0ng" not in str(caught.value)


class Identity:
    """Stands in for azure-identity: a new token each time, or its error."""

    def __init__(self, lasts):
        self.count, self.lasts, self.error = 0, lasts, None

    def get_token(self, _scope):
        if self.error is not None:
            raise self.error
        self.count += 1
        return SimpleNamespace(token=f"token-{self.count}", expires_on=time.time() + self.lasts)


@pytest.fixture
def by_entra(authority):
    """A double that knows some tokens, who gives them, and a log that logs in by them."""
    with EventHubsDouble(tokens={f"token-{number}" for number in range(20)}, tls=authority.server("127.0.0.1")) as double:
        auth, identity = Entra(kind="entra"), Identity(3600)

        def connected(**more):
            tokens = EntraTokens(auth, double.address, credential=identity)
            return LibrdkafkaLog(to(double, auth=auth, tls=Tls(ca=authority.ca)), tokens=tokens, **more)

        yield double, identity, connected


def test_an_entra_token_logs_in_and_again_before_its_session_ends_without_anybody_noticing(by_entra):
    double, _, connected = by_entra
    double.session_seconds = 2.0
    log = connected()
    number, end = 0, time.monotonic() + 20
    while double.seen["OAUTHBEARER again"] < 2 and time.monotonic() < end:
        log.append([event(number)])
        number += 1
        log.end_positions()
        time.sleep(0.05)
    assert ids(log) == [f"e{each}" for each in range(number)]
    assert double.seen["OAUTHBEARER again"] >= 2
    assert double.seen["OAUTHBEARER refused"] == double.seen["not logged in"] == 0
    log.close()


def test_a_token_is_renewed_and_one_that_cannot_be_had_is_an_outage_that_says_so(by_entra, hasty):
    double, identity, connected = by_entra
    identity.lasts = 1.0
    log = connected()
    log.append([event(1)])
    had = identity.count
    assert poll_until(lambda: appended(log, event(2)) and identity.count > had, timeout=10), "nobody asked for a new one"
    identity.error = RuntimeError("no endpoint answers\nand much more")
    double.tokens = {"others"}
    time.sleep(1.0)
    double.cut()
    with pytest.raises(LogUnavailable, match=r"no Entra token for .*: no endpoint answers; give this workload an identity"):
        poll_until(lambda: not log.append([event(3)]), timeout=20)
    log.close()


def test_rights_are_those_that_the_broker_tells(double, log, kafka):
    assert log.may_write() is None, "Event Hubs does not tell"
    double.denied = {"watchers"}
    with pytest.raises(LogUnavailable, match=r"not permitted .*: give this user the right to read in the group"):
        log.committed("watchers")
    assert log.committed("others") == dict.fromkeys(range(4))
    real = open_log(Connection(url=f"kafka://{kafka}/{make_topic(kafka, 2)}", client="librdkafka"))
    assert real.may_write() is True
    assert real.committed("watchers") == {0: None, 1: None}
    real.close()


def test_reading_needs_no_right_on_any_group(double):
    double.denied = {"driftloop-reader"}
    log = open_log(to(double))
    log.append([event(1)])
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert ids(log) == ["e1"]
    assert double.seen["FindCoordinator"] >= 1
    log.close()


# A member of a group


class Owner:
    def __init__(self, positions=()):
        self.positions, self.told = dict(positions), []

    def assigned(self, partitions):
        self.told.append("assigned")
        return self.positions

    def revoked(self, partitions):
        self.told.append("revoked")

    def lost(self, partitions):
        self.told.append("lost")


def drain(feed, count, timeout=60):
    read = []
    poll_until(lambda: read.extend(feed.poll(100, 0.2)) or len(read) >= count, timeout=timeout)
    return read


def test_a_position_that_is_gone_is_the_oldest_that_is_left_and_that_is_logged(double, log, caplog):
    for number in range(4):
        log.append([event(number)])
    number = log.partition_of("ns/m")
    partition = double.topics["driftloop"][number]
    partition.start, partition.batches = 2, partition.batches[2:]
    feed = open_feed(to(double), log, Owner({number: 1}), group="g", session=2.0)
    assert [record.offset for record in drain(feed, 2)] == [2, 3]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING and "inference" in record.name]
    assert "offset reset (at offset 1" in warning.getMessage()
    feed.close()


def test_who_was_put_out_of_the_group_while_it_was_busy_loses_its_partitions_before_it_reads_on(double, log, monkeypatch):
    owner = Owner()
    log.append([event(number, f"ns/m{number % 6}") for number in range(60)])
    feed = open_feed(to(double), log, owner, group="g", session=2.0)
    assert len(drain(feed, 60)) == 60
    assert feed.owns(0)
    log.append([event(number, f"ns/m{number % 6}") for number in range(60)])
    time.sleep(1.6)
    assert not feed.owns(0), "it can't know"
    # Its next heartbeat would tell, within 0.5 s; the poll comes first.
    group = double.groups["g"]
    double._loop.call_soon_threadsafe(lambda: [group._remove(member) for member in list(group.members.values())])
    assert poll_until(lambda: not group.members)
    assert feed.poll(100, 0.0) == []
    assert owner.told == ["assigned", "lost"]
    assert not feed.owns(0)
    assert len(drain(feed, 120)) == 120, "from the start, as its owner has no positions"
    feed.close()
    assert owner.told == ["assigned", "lost", "assigned", "revoked"]


def test_who_was_busy_and_is_a_member_still_reads_on(double, log):
    owner = Owner()
    feed = open_feed(to(double), log, owner, group="g", session=2.0)
    assert poll_until(lambda: not feed.poll(10, 0.1) and feed.owns(0), timeout=60)
    log.append([event(1)])
    time.sleep(1.6)
    assert not feed.owns(0)
    assert [record.event.id for record in drain(feed, 1)] == ["e1"]
    assert feed.owns(0)
    assert owner.told == ["assigned"]
    feed.close()


def test_an_error_among_the_messages_costs_none_of_them(double, log):
    owner = Owner()
    feed = open_feed(to(double), log, owner, group="g", session=2.0)
    read, errors = [], []

    def poll():
        try:
            read.extend(record.event.id for record in feed.poll(20, 0.1))
        except LogUnavailable as error:
            errors.append(error)

    assert poll_until(lambda: poll() or feed.owns(0), timeout=60)
    for number in range(2):
        log.append([event(100 * number + each, f"ns/m{each % 6}") for each in range(100)])
        double.denied = {"driftloop"}
        assert poll_until(lambda number=number: poll() or len(errors) > number, timeout=60)
        double.denied = set()
    assert poll_until(lambda: poll() or len(read) >= 200, timeout=60)
    assert sorted(read) == sorted(f"e{number}" for number in range(200))
    assert "not permitted" in str(errors[0])
    feed.close()


def test_a_feed_of_a_topic_that_is_not_there_says_so_and_leaves_nothing_behind(double):
    with pytest.raises(LogUnavailable, match="there is no topic 'nowhere'"):
        LibrdkafkaFeed(to(double, "nowhere"), "g", Owner())
    assert poll_until(lambda: not double._open, timeout=5)


def test_commits_come_once_a_second_and_only_for_what_is_owned(double, log, monkeypatch):
    monkeypatch.setattr(librdkafka_feed, "_COMMIT_SECONDS", 0.5)
    feed = open_feed(to(double), log, Owner(), group="g", session=2.0)
    feed.commit({0: 1})
    assert poll_until(lambda: not feed.poll(10, 0.05) and feed.owns(0), timeout=60)
    end = time.monotonic() + 1.7
    while time.monotonic() < end:
        feed.commit({0: 1, 77: 5})
        feed.poll(10, 0.02)
    feed.close()
    feed.commit({0: 2})
    assert {place: offset for place, (offset, _) in double.groups["g"].offsets.items()} == {("driftloop", 0): 1}
    assert 3 <= double.seen["OffsetCommit"] <= 5
