"""kafka-python against a double of Event Hubs' Kafka endpoint: who we are, and the quirks that a real Kafka does not have."""

import asyncio
import logging
import random
import threading
import time
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

pytest.importorskip("kafka", reason="kafka-python is not installed (extra `kafka`)")

from eventhubs_double import KEY, STRING, USERS, EventHubsDouble, Partition, event, ids
from eventhubs_groups import Group

from inference.errors import EventError, LogThrottled, LogUnavailable
from inference.log import kafka_settings, open_feed, open_log
from inference.log.connection import Connection, ConnectionString, Entra, Sasl, Tls
from inference.log.credentials import EntraTokens
from inference.log.kafka import KafkaLog
from streaming.testing import poll_until


def string(text=STRING):
    return ConnectionString(connection_string=SecretStr(text))


@pytest.fixture(scope="module")
def trusting(authority):
    return Tls(ca=authority.ca)


@pytest.fixture
def hasty(monkeypatch):
    """Tries to connect are given up sooner, for the sake of the tests' time."""
    monkeypatch.setattr(kafka_settings, "CONNECT_SECONDS", 0.9)
    monkeypatch.setattr(kafka_settings, "_AGAIN_SECONDS", 0.6)


@pytest.fixture
def double():
    with EventHubsDouble() as opened:
        yield opened


@pytest.fixture
def log(double):
    opened = KafkaLog(Connection(url=f"kafka://{double.address}"), patience=6.0)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def secured(authority):
    with EventHubsDouble(users=USERS, tokens={"token-1"}, tls=authority.server("127.0.0.1")) as opened:
        yield opened


class Identity:
    """Stands in for azure-identity: says the same token until told another."""

    def __init__(self, token):
        self.given = token

    def get_token(self, _scope):
        return SimpleNamespace(token=self.given, expires_on=time.time() + 3600)


def by_entra(address, tls, identity, **more):
    auth = Entra(kind="entra")
    tokens = EntraTokens(auth, address, credential=identity)
    return KafkaLog(Connection(url=f"kafka://{address}", auth=auth, tls=tls), tokens=tokens, **more)


# Who we are


@pytest.mark.parametrize(
    "auth", [string(f"{STRING}\n"), Sasl(kind="sasl", mechanism="PLAIN", username="alice", password=SecretStr("wonderland"))]
)
def test_a_connection_string_or_a_password_logs_in_over_tls(secured, trusting, auth, caplog):
    before = secured.seen["PLAIN in"]
    with caplog.at_level(logging.DEBUG, "inference"):
        log = open_log(Connection(url=f"kafka://{secured.address}", auth=auth, tls=trusting))
        start = log.end_positions()
        log.append([event(number, f"ns/m{number % 3}") for number in range(30)])
        read = log.read(start, 100)
        log.close()
    assert sorted(record.event.id for record in read) == sorted(f"e{number}" for number in range(30))
    assert secured.seen["PLAIN in"] > before
    assert KEY not in caplog.text
    assert "wonderland" not in caplog.text


def test_an_entra_token_logs_in_and_again_before_its_session_ends_without_anybody_noticing(authority, trusting):
    with EventHubsDouble(tokens={"token-1", "token-2"}, tls=authority.server("127.0.0.1"), session_seconds=2.0) as double:
        identity = Identity("token-1")
        log = by_entra(double.address, trusting, identity, patience=6.0)
        number, end = 0, time.monotonic() + 20
        while double.seen["OAUTHBEARER again"] < 2 and time.monotonic() < end:
            log.append([event(number)])
            number += 1
            time.sleep(0.05)
            log.end_positions()
        assert ids(log) == [f"e{each}" for each in range(number)]
        log.close()
        assert double.seen["OAUTHBEARER again"] >= 2
        assert double.seen["OAUTHBEARER refused"] == double.seen["not logged in"] == 0


def test_credentials_that_are_refused_while_it_runs_are_an_outage_that_ends_with_them(secured, trusting):
    log = KafkaLog(Connection(url=f"kafka://{secured.address}", auth=string(), tls=trusting), patience=2.0)
    start = log.end_positions()
    log.append([event(1)])
    del secured.users["$ConnectionString"]
    try:
        secured.cut()
        with pytest.raises(LogUnavailable, match=r"refused the credentials: check `log\.auth`") as caught:
            log.append([event(2)])
        assert KEY not in str(caught.value)
    finally:
        secured.users["$ConnectionString"] = STRING
    assert poll_until(lambda: works(lambda: log.append([event(3)])))
    assert [record.event.id for record in log.read(start)][-1] == "e3"
    log.close()


def works(call):
    try:
        call()
    except LogUnavailable:
        return False
    return True


def test_a_client_certificate_says_who_we_are_where_the_broker_asks(authority, hasty):
    certificate, key = authority.files("client", password="öpen")
    with EventHubsDouble(tls=authority.server("127.0.0.1", wants_certificate=True)) as double:
        url = f"kafka://{double.address}"
        tls = Tls(ca=authority.ca, certificate=certificate, key=key, key_password=SecretStr("öpen"))
        log = open_log(Connection(url=url, tls=tls))
        log.append([event(1)])
        assert ids(log) == ["e1"]
        log.close()
        with pytest.raises(LogUnavailable, match=r"the broker hung up: does that port want .* a certificate of ours"):
            open_log(Connection(url=url, tls=Tls(ca=authority.ca)))


# Versions


def test_a_broker_that_hangs_up_on_newer_versions_is_spoken_to_as_1_0(hasty, caplog):
    with EventHubsDouble(modern=False) as double, caplog.at_level(logging.INFO, "inference"):
        log = open_log(f"kafka://{double.address}")
        assert "spoken to as Kafka 1.0" in caplog.text
        tries = double.seen["unsupported"]
        log.append([event(1)])
        assert ids(log) == ["e1"]
        log.close()
        assert tries > 0
        assert double.seen["unsupported"] == tries, "what worked is remembered"


def test_a_version_that_is_given_is_used_as_it_is(double, hasty):
    log = open_log(Connection(url=f"kafka://{double.address}", api_version="1.0"))
    log.append([event(1)])
    assert ids(log) == ["e1"]
    log.close()
    assert double.seen["unsupported"] == 0
    for newer in ("2.1", "2.3"):
        with pytest.raises(LogUnavailable, match=r"the broker hung up: .* an older `api_version`"):
            open_log(Connection(url=f"kafka://{double.address}", api_version=newer))


# Throttling


def test_the_settings_are_those_that_the_service_bears(double, log):
    log.append([event(1)])
    producer, consumer = log._producer.config, log._consumer.config
    for config in (producer, consumer):
        assert config["metadata_max_age_ms"] == config["connections_max_idle_ms"] == 180_000
    assert consumer["request_timeout_ms"] == 60_000
    assert (producer["enable_idempotence"], producer["acks"], producer["compression_type"]) == (False, -1, None)
    assert producer["max_request_size"] < 1_046_528
    defaults = KafkaLog(Connection(url=f"kafka://{double.address}"))
    defaults.append([event(2)])
    assert defaults._producer.config["request_timeout_ms"] == 60_000
    assert defaults._producer.config["delivery_timeout_ms"] > 60_000
    defaults.close()


def test_a_broker_that_makes_us_wait_is_slow_and_not_away(double, log):
    double.hold = 0.4
    log.append([event(number) for number in range(5)])
    assert ids(log) == [f"e{number}" for number in range(5)]
    assert double.seen["throttled"] >= 2
    assert double.seen["refused"] == 0


def test_a_quota_is_kept_to_without_an_error(double, log):
    double.quota = 150_000.0
    began = time.monotonic()
    log.append([event(number, size=10_000) for number in range(40)])
    assert time.monotonic() - began > 1.5
    assert ids(log) == [f"e{number}" for number in range(40)]
    assert double.seen["refused"] == 0


def test_what_the_quota_does_not_let_through_in_time_is_throttled_and_what_was_let_through_is_known(double):
    log = KafkaLog(Connection(url=f"kafka://{double.address}"), patience=2.0)
    double.hold = 0.4
    with pytest.raises(LogThrottled, match="throttled by the broker") as caught:
        log.append([event(number, size=240_000) for number in range(30)])
    double.hold = 0.0
    known = {f"e{number}" for number in caught.value.appended}
    assert 0 < len(known) < 30
    time.sleep(1.0)
    # What was under way may have arrived; nothing else does behind the caller's back.
    assert known <= set(ids(log))
    assert len(set(ids(log)) - known) <= 2
    log.append([event(number) for number in range(30) if number not in caught.value.appended])
    assert {f"e{number}" for number in range(30)} == set(ids(log))
    log.close()


def test_error_44_is_a_throttle_and_spoils_nothing_that_comes_after(double, log):
    double.refusals = 1
    with pytest.raises(LogThrottled, match=r"throttled by the broker .*; send less, or have more throughput units") as caught:
        log.append([event(1)])
    assert caught.value.appended == frozenset()
    log.append([event(2)])
    assert ids(log) == ["e2"]


def test_waiting_longer_than_the_service_bears_is_error_44(double, log):
    double.quota, double.patience = 1_000.0, 0.5
    with pytest.raises(LogThrottled):
        log.append([event(1, size=5_000)])
    assert double.seen["refused"] == 1


# Connections, sizes, topics


def test_idle_connections_are_cut_and_nothing_is_lost_or_doubled(double, log):
    double.idle_seconds = 0.25
    double.cut()
    for number in range(9):
        log.append([event(number)])
        time.sleep(random.uniform(0.05, 0.5))
        log.end_positions()
    assert double.seen["idle"] >= 2
    assert ids(log) == [f"e{number}" for number in range(9)]


def test_reading_goes_on_while_connections_break(double, log):
    writer = open_log(f"kafka://{double.address}")
    read, positions = [], log.start_positions()
    for number in range(6):
        assert poll_until(lambda number=number: works(lambda: writer.append([event(number)])))
        double.cut()

        def all_read(number=number):
            try:
                for record in log.read(positions):
                    read.append(record.event.id)
                    positions[record.partition] = record.offset + 1
            except LogUnavailable:
                return False
            return f"e{number}" in read

        assert poll_until(all_read)
    writer.close()
    assert list(dict.fromkeys(read)) == [f"e{number}" for number in range(6)]


def test_a_broker_that_is_gone_is_noticed_before_one_that_makes_us_wait_would_be_given_up(monkeypatch):
    monkeypatch.setattr(kafka_settings, "_AWAY_SECONDS", 1.0)
    with EventHubsDouble() as double:
        log = KafkaLog(Connection(url=f"kafka://{double.address}"), patience=60.0)
        log.append([event(1)])
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match="nothing listens there"):
        log.append([event(2)])
    assert time.monotonic() - began < 8
    assert poll_until(lambda: not [thread for thread in threading.enumerate() if thread.name.endswith("-network-thread")])
    log.close()


def test_many_large_events_go_out_in_requests_that_the_service_bears(double, log):
    log.append([event(number, f"ns/m{number % 6}", size=150_000) for number in range(40)])
    assert len(ids(log)) == 40
    assert double.seen["oversized"] == 0


@pytest.mark.parametrize(("limit", "size"), [(1_046_528, 1_100_000), (100_000, 150_000)])
def test_an_event_that_is_too_large_is_refused_and_the_log_goes_on(double, log, limit, size):
    double.event_bytes = limit
    with pytest.raises(EventError, match="an event is larger than the broker takes") as caught:
        log.append([event(1, size=size)])
    assert caught.value.reason == "too_large"
    log.append([event(2)])
    assert ids(log) == ["e2"]


def test_a_right_that_is_missing_is_named(double, log):
    double.denied = {"watchers"}
    with pytest.raises(LogUnavailable, match="not permitted: give this user the right to read in the group 'watchers'"):
        log.committed("watchers")
    assert log.committed("others") == dict.fromkeys(range(4))
    double.denied = {"driftloop"}
    for call in (lambda: log.append([event(1)]), lambda: log.read({0: 0}), lambda: open_log(f"kafka://{double.address}")):
        with pytest.raises(LogUnavailable, match=r"not permitted .*: give this user the rights to read and write the topic 'driftloop'"):
            call()


@pytest.mark.parametrize("client", ["kafka-python", "librdkafka"])
def test_a_group_commits_no_more_often_than_the_service_bears(double, client):
    if client == "librdkafka":
        pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed (extra `librdkafka`)")
    connection = Connection(url=f"kafka://{double.address}", client=client)
    log = open_log(connection)
    log.append([event(number, f"ns/m{number % 6}") for number in range(60)])
    owner = SimpleNamespace(assigned=lambda _: {}, revoked=lambda _: None, lost=lambda _: None)
    feed, positions = open_feed(connection, log, owner, group="g", session=6.0), {}
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        for record in feed.poll(10, 0.05):
            positions[record.partition] = record.offset + 1
        feed.commit(positions)
    feed.close()
    log.close()
    assert sum(positions.values()) == 60
    assert double.groups["g"].offsets
    assert double.seen["commits refused"] == 0


def test_a_group_that_answers_slower_than_a_poll_waits_is_joined_all_the_same(double, monkeypatch):
    at_once = Group.sync

    async def later(self, request):
        await asyncio.sleep(0.3)
        return await at_once(self, request)

    monkeypatch.setattr(Group, "sync", later)
    owner = SimpleNamespace(assigned=lambda _: {}, revoked=lambda _: None, lost=lambda _: None)
    feed = open_feed(Connection(url=f"kafka://{double.address}"), None, owner, group="g", session=6.0)
    assert poll_until(lambda: feed.poll(10, 0.1) or double.seen["Heartbeat"] > 1)
    double.topics["driftloop"].append(Partition())  # the topic grows, and the group is joined anew
    feed._consumer._cluster.request_update()
    assert poll_until(lambda: feed.poll(10, 0.1) or double.seen["JoinGroup"] > 2)
    beats = double.seen["Heartbeat"]
    assert poll_until(lambda: feed.poll(10, 0.1) or double.seen["Heartbeat"] > beats + 1)
    feed.close()
