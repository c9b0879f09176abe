"""Whole batches for kafka-python's producer: byte for byte what its own `send` would make, in order, and known when only some arrive."""

import time
import uuid

import pytest
from gateways import recorded
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import EventError
from inference.event import Event, Message, from_http, to_kafka
from inference.log import open_log

pytest.importorskip("kafka", reason="kafka-python is not installed (extra `kafka`)")

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.record.default_records import DefaultRecordBatchBuilder

from inference.log import kafka_batches
from inference.log.kafka_batches import append_batches, encode


def event(number, model="m", size=10):
    return Event(f"e{number}", "pod", "t", extensions={"namespace": "ns", "inferenceservicename": model}, data=b"x" * size)


def recorded_events():
    taken = [(headers, body) for _, headers, body in recorded() if "content-type" in headers]
    return [from_http([(name.encode(), value.encode()) for name, value in headers.items()], body) for headers, body in taken]


def as_the_library_writes(events):
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 100_000_000)
    for offset, one in enumerate(events):
        key, headers, value = to_kafka(one)
        builder.append(offset, 1_000, key, value, headers)
    return bytes(builder._buffer[DefaultRecordBatchBuilder.HEADER_STRUCT.size :])


text = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=300)
events = st.builds(
    Event,
    id=text,
    source=text,
    type=text,
    time=text,
    datacontenttype=st.none() | text,
    extensions=st.dictionaries(st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True), text, max_size=70),
    data=st.binary(max_size=300) | st.integers(60, 70_000).map(bytes),
)


@given(st.lists(events, max_size=5))
def test_a_record_is_byte_for_byte_the_librarys(batch):
    assert b"".join(encode(Message.of(one), delta) for delta, one in enumerate(batch)) == as_the_library_writes(batch)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 5000])
def test_a_batch_of_recorded_events_is_byte_for_byte_the_librarys(count):
    batch = (recorded_events() * 25)[:count]
    assert b"".join(encode(Message.of(one), delta) for delta, one in enumerate(batch)) == as_the_library_writes(batch)


@pytest.fixture(scope="module")
def topic(kafka):
    name = f"t-{uuid.uuid4().hex[:12]}"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=1)])
    admin.close()
    return name


@pytest.fixture
def producer(kafka):
    made = KafkaProducer(
        bootstrap_servers=kafka,
        acks="all",
        enable_idempotence=False,
        max_in_flight_requests_per_connection=1,
        request_timeout_ms=1_000,
        delivery_timeout_ms=2_000,
    )
    yield made
    made.close(timeout=1)


def appended(producer, topic, batch, *, timestamp_ms=1, timeout=10):
    return append_batches(producer, topic, [Message.of(one) for one in batch], place_of, timestamp_ms, timeout)


def place_of(model):
    return {"ns/a": 0, "ns/b": 1, "ns/c": 2, "ns/nowhere": 77}[model]


def ends(kafka, topic):
    consumer = KafkaConsumer(bootstrap_servers=kafka)
    found = {place.partition: offset for place, offset in consumer.end_offsets([TopicPartition(topic, n) for n in range(3)]).items()}
    consumer.close()
    return found


def read_from(kafka, topic, positions):
    log = open_log(f"kafka://{kafka}/{topic}")
    found = []
    while records := log.read(positions, 1000):
        found += records
        positions = positions | {record.partition: record.offset + 1 for record in records}
    log.close()
    return found


def test_what_is_appended_is_read_back_at_the_places_that_were_told(kafka, topic, producer):
    start = ends(kafka, topic)
    batch = [event(number, "abc"[number % 3], size=number * 10) for number in range(200)]
    places = appended(producer, topic, batch, timestamp_ms=1_234_567)
    found = {(record.partition, record.offset): record for record in read_from(kafka, topic, start)}
    assert found.keys() == set(places)
    assert [found[place].event for place in places] == batch
    assert {record.timestamp for record in found.values()} == {1_234.567}


def test_many_small_batches_of_a_partition_keep_its_order(kafka, topic, producer, monkeypatch):
    monkeypatch.setattr(kafka_batches, "BATCH_BYTES", 2_000)
    start = ends(kafka, topic)
    batch = [event(number, "ab"[number % 2], size=300) for number in range(100)]
    places = appended(producer, topic, batch)
    for model, partition in (("ns/a", 0), ("ns/b", 1)):
        mine = [place for place, one in zip(places, batch, strict=True) if one.model == model]
        assert mine == [(partition, start[partition] + n) for n in range(50)]
    assert [r.event for r in read_from(kafka, topic, start) if r.partition == 0] == [one for one in batch if one.model == "ns/a"]


def test_an_event_larger_than_the_producer_may_send_is_told_before_anything_is_sent(kafka, topic, producer):
    start = ends(kafka, topic)
    with pytest.raises(MessageSizeTooLargeError, match="the producer may send 1048576 bytes"):
        appended(producer, topic, [event(1, "a"), event(2, "a", size=1_048_576)])
    assert ends(kafka, topic) == start


def test_a_batch_that_is_too_large_for_the_broker_fails_as_a_whole(kafka, producer):
    """The library would split it on its own, and nobody would learn what became of it."""

    name = f"t-{uuid.uuid4().hex[:12]}"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=1, topic_configs={"max.message.bytes": "2000"})])
    admin.close()
    with pytest.raises(KafkaError) as caught:
        appended(producer, name, [event(n, "a", size=100) for n in range(50)])
    assert type(caught.value).__name__ in ("MessageSizeTooLargeError", "RecordListTooLargeError")
    assert caught.value.appended == frozenset()
    assert appended(producer, name, [event(n, "a", size=100) for n in range(5)])[0] == (0, 0)


def test_of_an_append_that_fails_it_is_known_what_arrived(kafka, topic, producer):
    start = ends(kafka, topic)
    batch = [event(number, "nowhere" if number % 3 == 1 else "a") for number in range(9)]
    with pytest.raises(KafkaError) as caught:
        appended(producer, topic, batch, timeout=5)
    assert caught.value.appended == {0, 2, 3, 5, 6, 8}
    assert ends(kafka, topic)[0] == start[0] + 6


def test_a_later_batch_does_not_overtake_one_that_failed(kafka, topic, producer, monkeypatch):
    monkeypatch.setattr(kafka_batches, "BATCH_BYTES", 400)
    start = ends(kafka, topic)
    batch = [event(0, "nowhere", 300), event(1, "nowhere", 300), event(2, "a", 300), event(3, "a", 300), event(4, "a", 300)]
    with pytest.raises(KafkaError) as caught:
        appended(producer, topic, batch, timeout=5)
    assert caught.value.appended == {2}, "the first batch of each partition"
    assert ends(kafka, topic)[0] == start[0] + 1


def test_the_time_is_for_all_batches_together(kafka, topic, producer, monkeypatch):
    monkeypatch.setattr(kafka_batches, "BATCH_BYTES", 400)
    flush = producer.flush
    monkeypatch.setattr(producer, "flush", lambda timeout: (time.sleep(0.3), flush(timeout)))
    with pytest.raises(KafkaTimeoutError, match=r"3 of 50 events were acknowledged within 0\.8 s") as caught:
        appended(producer, topic, [event(number, "a", 300) for number in range(50)], timeout=0.8)
    assert caught.value.appended == {0, 1, 2}


def test_the_log_takes_events_in_whole_batches_and_tells_what_is_too_large(kafka, topic):
    log = open_log(f"kafka://{kafka}/{topic}")
    try:
        batch = recorded_events()
        places = log.append(batch)
        start = {places[0][0]: places[0][1]}
        assert [record.event for record in log.read(start, 1000)][: len(batch)] == batch
        with pytest.raises(EventError) as caught:
            log.append([event(1), event(2, size=1_050_000)])
        assert caught.value.reason == "too_large"
        assert log.append([event(3)])
    finally:
        log.close()
