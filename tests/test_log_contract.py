"""What every event log keeps, the embedded one and a topic of a real Kafka alike."""

import threading
import time
import uuid

import pytest
from pydantic import SecretStr

from inference.errors import EventError, LogUnavailable
from inference.event import Event
from inference.log import open_log
from inference.log.address import KafkaAddress, is_eventhubs
from inference.log.connection import Connection, ConnectionString, Tls
from streaming.reader import everything

MODELS = [f"ns/model-{number}" for number in range(6)]


def event(model, number, data=b"{}"):
    namespace, _, name = model.partition("/")
    extensions = {"namespace": namespace, "inferenceservicename": name, "metadata": '{"A":["ü %41"]}'}
    return Event(f"e{number}", "pod-1", "io.driftloop.label", "2026-10-01T00:00:00Z", "application/json", extensions, data)


def make_topic(bootstrap, name, partitions=4):
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1)])
    admin.close()


def embedded(request):
    return Connection(url=str(request.getfixturevalue("tmp_path") / "log.db"))


def topic_of(client):
    def make(request):
        bootstrap = request.getfixturevalue("kafka")
        topic = f"t-{uuid.uuid4().hex[:12]}"
        make_topic(bootstrap, topic)
        return Connection(url=f"kafka://{bootstrap}/{topic}", client=client)

    return make


def event_hub(request):
    return request.getfixturevalue("event_hub")


@pytest.fixture
def namespace(authority):
    """A double of Event Hubs' Kafka endpoint, who may log in, and whom to trust."""
    from eventhubs_double import EventHubsDouble

    text = "Endpoint=sb://127.0.0.1/;SharedAccessKeyName=all;SharedAccessKey=s3cret"
    with EventHubsDouble(users={"$ConnectionString": text}, tls=authority.server("127.0.0.1")) as double:
        yield double.address, ConnectionString(connection_string=SecretStr(text)), Tls(ca=authority.ca)


def endpoint_by(client):
    def make(request):
        address, auth, tls = request.getfixturevalue("namespace")
        return Connection(url=f"kafka://{address}", client=client, auth=auth, tls=tls)

    return make


MEMBERS = {
    "embedded": embedded,
    "kafka-python": topic_of("kafka-python"),
    "librdkafka": topic_of("librdkafka"),
    "eventhubs": event_hub,
    "eventhubs by kafka-python": endpoint_by("kafka-python"),
    "eventhubs by librdkafka": endpoint_by("librdkafka"),
}
"""The kinds of log: each makes an empty one, and gives the connection to it."""


@pytest.fixture(params=MEMBERS)
def url(request):
    return MEMBERS[request.param](request)


@pytest.fixture
def log(url):
    opened = open_log(url)
    yield opened
    opened.close()


def test_what_was_appended_is_read_back_equal_and_in_order_per_model(log, url):
    events = [event(MODELS[number % 6], number, bytes([number % 256]) * (number % 40)) for number in range(300)]
    places = [place for start in range(0, 300, 70) for place in log.append(events[start : start + 70])]
    read = [record for batch in everything(log) for record in batch]
    assert [partition for partition, _ in places] == [log.partition_of(one.model) for one in events]
    if is_eventhubs(url.url):
        assert {offset for _, offset in places} == {-1}, "its service does not tell them"
    else:
        assert sorted((r.partition, r.offset) for r in read) == sorted(places)
    for model in MODELS:
        assert [r.event for r in read if r.event.model == model] == [e for e in events if e.model == model]
        assert {r.partition for r in read if r.event.model == model} == {log.partition_of(model)}
    assert all(abs(time.time() - r.timestamp) < 60 for r in read)


def test_everything_ends_where_the_log_ended_when_it_was_asked_for(log):
    log.append([event(MODELS[0], number) for number in range(5)])
    batches = everything(log)
    first = next(batches)
    log.append([event(MODELS[0], number) for number in range(5, 9)])
    assert [record.event.id for record in first] + [r.event.id for batch in batches for r in batch] == [f"e{n}" for n in range(5)]


def test_an_empty_log_reads_as_empty_at_once(log):
    began = time.monotonic()
    assert list(everything(log)) == []
    assert log.read(log.start_positions()) == []
    assert log.append([]) == []
    assert time.monotonic() - began < 5


def test_reading_goes_on_from_any_position_and_may_go_back(log):
    log.append([event(MODELS[0], number) for number in range(10)])
    partition = log.partition_of(MODELS[0])
    start, end = log.start_positions()[partition], log.end_positions()[partition]
    assert end - start == 10

    def ids(offset, limit=100):
        return [record.event.id for record in log.read({partition: start + offset}, limit)]

    assert ids(0, 3) == ["e0", "e1", "e2"]
    assert ids(3, 3) == ["e3", "e4", "e5"]
    assert ids(8) == ["e8", "e9"]
    assert ids(2, 1) == ["e2"]
    assert ids(10) == []


def test_only_the_partitions_that_were_asked_for_are_read(log):
    log.append([event(model, number) for number, model in enumerate(MODELS * 5)])
    start = log.start_positions()
    for model in MODELS:
        partition = log.partition_of(model)
        mine = [number for number, other in enumerate(MODELS * 5) if log.partition_of(other) == partition]
        positions, read = {partition: start[partition]}, []
        while records := log.read(positions, 4):
            read += records
            positions = {partition: records[-1].offset + 1}
        assert [record.event.id for record in read] == [f"e{number}" for number in mine]
    assert len({r.event.id for batch in everything(log) for r in batch}) == 30


def test_a_time_is_found_as_a_position_on_every_partition(log):
    log.append([event(model, number) for number, model in enumerate(MODELS)])
    time.sleep(0.02)
    log.append([event(model, 10 + number) for number, model in enumerate(MODELS)])
    time.sleep(0.02)
    log.append([event(MODELS[0], 20)])
    everyone = [record for batch in everything(log) for record in batch]
    starts, ends = log.start_positions(), log.end_positions()
    assert log.positions_at(0.0) == starts
    assert log.positions_at(time.time() + 60) == ends
    for at in sorted({record.timestamp for record in everyone}):
        first = {number: [r.offset for r in everyone if r.partition == number and r.timestamp >= at] for number in starts}
        assert log.positions_at(at) == {number: min(offsets, default=ends[number]) for number, offsets in first.items()}
        assert log.positions_at(at + 0.0004) == log.positions_at(at + 0.0008), "a moment later is behind it"
    assert len({record.timestamp for record in everyone}) >= 3


def test_waiting_ends_with_the_next_event_and_not_before(log, url):
    positions = log.end_positions()
    assert log.wait_for(positions, 0.2) is False
    writer = open_log(url)
    threading.Timer(0.3, lambda: writer.append([event(MODELS[0], 1)])).start()
    assert log.wait_for(positions, 10.0) is True
    assert [record.event.id for record in log.read(positions)] == ["e1"]
    writer.close()


def test_a_second_writer_continues_where_the_first_ended(log, url):
    first = log.append([event(MODELS[0], 1)])
    other = open_log(url)
    second = other.append([event(MODELS[0], 2)])
    other.close()
    assert second[0][0] == first[0][0]
    assert is_eventhubs(url.url) or second[0][1] > first[0][1]
    assert [record.event.id for batch in everything(log) for record in batch] == ["e1", "e2"]


def test_garbage_in_a_topic_keeps_its_place_and_hides_nothing(kafka):
    from kafka import KafkaProducer

    topic = f"t-{uuid.uuid4().hex[:12]}"
    make_topic(kafka, topic, partitions=1)
    log = open_log(f"kafka://{kafka}/{topic}")
    log.append([event(MODELS[0], 1)])
    producer = KafkaProducer(bootstrap_servers=kafka, enable_idempotence=False)
    producer.send(topic, b"no event at all")
    producer.send(topic, None, key=b"k", headers=[("ce_id", b"\xff")])
    producer.send(topic, b'{"id": "s", "specversion": "1.0"}', headers=[("content-type", b"application/cloudevents+json")])
    producer.flush()
    producer.close()
    log.append([event(MODELS[0], 2)])
    read = [record for batch in everything(log) for record in batch]
    assert [record.event.id for record in read if record.event.model == MODELS[0]] == ["e1", "e2"]
    assert [record.event.extensions["reason"] for record in read if record.event.model == "/"] == [
        "missing_specversion",
        "attribute_not_utf8",
        "missing_source",
    ]
    assert [record.offset for record in read] == [0, 1, 2, 3, 4]
    log.close()


def test_an_event_that_is_too_large_for_kafka_is_refused_and_the_log_goes_on(kafka):
    topic = f"t-{uuid.uuid4().hex[:12]}"
    make_topic(kafka, topic)
    log = open_log(f"kafka://{kafka}/{topic}")
    with pytest.raises(EventError, match="larger than the broker takes"):
        log.append([event(MODELS[0], 1, b"x" * 2_000_000)])
    log.append([event(MODELS[0], 2)])
    assert [record.event.id for batch in everything(log) for record in batch] == ["e2"]
    log.close()


def test_a_topic_that_is_not_there_and_a_broker_that_is_not_there_say_so_within_seconds(kafka):
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match="there is no topic 'nowhere'"):
        open_log(f"kafka://{kafka}/nowhere")
    with pytest.raises(LogUnavailable, match="is the broker up"):
        open_log("kafka://127.0.0.1:9/topic")
    assert time.monotonic() - began < 25


@pytest.mark.parametrize("wrong", ["kafka://", "kafka:///topic", "kafka://user:s3cret@host:1/t", "kafka://host/a/b", "kafka://host/t?x=1"])
def test_an_address_that_will_not_do_says_what_one_looks_like(wrong):
    with pytest.raises(Exception, match=r"kafka://HOST:PORT") as caught:
        open_log(wrong)
    assert "s3cret" not in str(caught.value)


def test_an_address_is_read_with_its_defaults():
    assert str(KafkaAddress.parse("kafka://a,b:1")) == "kafka://a:9092,b:1/driftloop"
