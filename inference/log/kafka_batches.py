"""Whole batches of events for kafka-python's producer: a tenth of the work of its `send`, and no batch overtakes another.

`send` makes several objects for each event and encodes its headers byte by byte, which costs more than all else that the
gateway does with it. Here a partition's events become a batch of Kafka's record format v2 at once; the batch then goes the
producer's own way: leaders, retries, time-outs, throttling and TLS stay the library's.

Source of the format: Apache Kafka's documentation, Message Format, "Record Batch" and "Record".
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.producer.future import FutureRecordMetadata
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from inference.event import Message

BATCH_BYTES = 500_000
"""A batch is closed before it is larger than this, unless one event is."""
_OVERHEAD = 100
"""Bytes of a batch beside its records, and some."""


def append_batches(
    producer: Any, topic: str, messages: Sequence[Message], place_of: Callable[[str], int], timestamp_ms: int, timeout: float
) -> list[tuple[int, int]]:
    """Have all messages acknowledged; gives (partition, offset) of each. `place_of` tells a model's partition.

    A partition's next batch is sent when the one before it is there: none may overtake one that has to be sent again. `timeout`
    (seconds) is for all of them. A KafkaError has `appended`: the indexes of those that are on the topic
    for certain. MessageSizeTooLargeError: one is larger than the producer may send; nothing was sent.
    """
    queues = _encoded(messages, place_of, producer.config["max_request_size"])
    places: dict[int, tuple[int, int]] = {}
    deadline = time.monotonic() + timeout
    try:
        producer.partitions_for(topic)  # waits for the topic's metadata
        while queues:
            left = deadline - time.monotonic()
            if left <= 0:
                raise KafkaTimeoutError(f"{len(places)} of {len(messages)} events were acknowledged within {timeout:g} s")
            sent = [(partition, queue.popleft()) for partition, queue in queues.items()]
            futures = [_enqueue(producer, TopicPartition(topic, partition), batch, timestamp_ms) for partition, batch in sent]
            try:
                producer.flush(timeout=left)
            finally:
                for (partition, batch), future in zip(sent, futures, strict=True):
                    if future.succeeded():
                        first = future.value.offset
                        places.update((index, (partition, first + delta)) for delta, index in enumerate(batch.indexes))
            for future in futures:
                future.get(timeout=0.0)  # raises what went wrong with it
            queues = {partition: queue for partition, queue in queues.items() if queue}
    except KafkaError as error:
        error.appended = frozenset(places)
        raise
    return [places[index] for index in range(len(messages))]


class _Batch:
    """Records of one partition, and which events they are."""

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.records: list[bytes] = []
        self.size = 0


def _encoded(messages: Sequence[Message], place_of: Callable[[str], int], most: int) -> dict[int, deque[_Batch]]:
    """The batches of each partition, in order."""
    partitions: dict[str, int] = {}
    queues: dict[int, deque[_Batch]] = {}
    for index, message in enumerate(messages):
        if (partition := partitions.get(message.key)) is None:
            partition = partitions[message.key] = place_of(message.key)
            queues.setdefault(partition, deque([_Batch()]))
        batch = queues[partition][-1]
        record = encode(message, len(batch.indexes))
        if batch.size + len(record) > BATCH_BYTES and batch.indexes:
            batch = _Batch()
            queues[partition].append(batch)
            record = encode(message, 0)
        if len(record) + _OVERHEAD > most:
            raise MessageSizeTooLargeError(f"an event of {len(record)} bytes with its headers; the producer may send {most} bytes")
        batch.indexes.append(index)
        batch.records.append(record)
        batch.size += len(record)
    return queues


def encode(message: Message, delta: int) -> bytes:
    """The message as the record that stands `delta` after its batch's first, with the batch's own timestamp."""
    key, headers, value = message.key.encode(), message.headers, message.value
    # No attributes, no difference in time; a length is in front of each part.
    parts = [b"\0\0", _varint(delta), _varint(len(key)), key, _varint(len(value)), value, _varint(len(headers))]
    add = parts.append
    for name, text in headers:
        raw = text.encode()
        add(_names.get(name) or _name(name))
        add(_varint(len(raw)))
        add(raw)
    record = b"".join(parts)
    return _varint(len(record)) + record


def _enqueue(producer: Any, place: TopicPartition, batch: _Batch, timestamp_ms: int) -> FutureRecordMetadata:
    """Hand the batch to the producer; the future is that of its first record."""
    count = len(batch.records)
    records = MemoryRecordsBuilder(2, 0, 0)
    builder = records._builder
    builder._buffer += b"".join(batch.records)
    builder._first_timestamp = builder._max_timestamp = timestamp_ms
    builder._num_records = records._next_offset = count
    builder._last_offset = count - 1
    whole = _WholeBatch(place, records)
    future = FutureRecordMetadata(whole.produce_future, 0, timestamp_ms, None, -1, -1, -1)
    accumulator = producer._accumulator
    with accumulator._tp_lock(place):
        accumulator._batches[place].append(whole)
        accumulator._incomplete.add(whole)
    producer._sender.wakeup()
    return future


class _WholeBatch(ProducerBatch):  # type: ignore[misc]  # kafka-python is not followed by the type checker
    """A batch that says it is one record: the library splits one that is too large for the broker, and would lose our future."""

    record_count = 1


def _zigzag(number: int) -> bytes:
    number <<= 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SHORT = [_zigzag(number) for number in range(4096)]
_names: dict[str, bytes] = {}


def _varint(number: int) -> bytes:
    return _SHORT[number] if number < 4096 else _zigzag(number)


def _name(name: str) -> bytes:
    raw = name.encode()
    encoded = _varint(len(raw)) + raw
    if len(_names) < 1000:
        _names[name] = encoded
    return encoded
