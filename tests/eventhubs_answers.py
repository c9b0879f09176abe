"""What the double of Event Hubs answers: a method for each of Kafka's requests that the service knows."""

import asyncio
import re
import struct
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kafka.protocol import consumer, metadata, producer, sasl

VERSIONS = {
    "Produce": (0, 7),
    "Fetch": (4, 6),
    "ListOffsets": (0, 8),
    "Metadata": (0, 5),
    "OffsetCommit": (0, 8),
    "OffsetFetch": (0, 8),
    "FindCoordinator": (0, 4),
    "JoinGroup": (0, 9),
    "Heartbeat": (0, 4),
    "LeaveGroup": (0, 5),
    "SyncGroup": (0, 5),
    "SaslHandshake": (0, 1),
    "ApiVersions": (0, 2),
    "SaslAuthenticate": (0, 1),
}
"""Like Event Hubs' own table: of Kafka's releases it is 1.0 in some requests, and as new as 3.2 in others."""
REQUESTS = {
    getattr(module, f"{name}Request").API_KEY: (name, getattr(module, f"{name}Request"), getattr(module, f"{name}Response"))
    for module in (consumer, metadata, producer, sasl)
    for name in VERSIONS
    if hasattr(module, f"{name}Request")
}
BEFORE_LOGIN = ("ApiVersions", "SaslHandshake", "SaslAuthenticate")
OUT_OF_RANGE, UNKNOWN_TOPIC, TOO_LARGE, METADATA_TOO_LARGE, TOPIC_DENIED, GROUP_DENIED = 1, 3, 10, 12, 29, 30
NO_MECHANISM, UNSUPPORTED_VERSION, POLICY_VIOLATION, LOGIN_FAILED, COMPRESSED = 33, 35, 44, 58, 76
Fields = dict[str, Any]


class HangUp(Exception):
    """The connection is closed without an answer; the message is what is counted."""


class Connection:
    """What was said on one connection to the `double`, and the answers: each method gives the fields of its response."""

    def __init__(self, double: Any) -> None:
        self._double = double
        self._mechanism = ""
        self._raw = False
        self._login = float("-inf") if double.secured else float("inf")

    async def answer(self, frame: bytes) -> bytes:
        if self._raw:  # the oldest handshake: what follows it has no header
            self._raw = False
            if not self._known(frame):
                raise HangUp("login refused")
            return struct.pack(">i", 0)
        key, version, correlation = struct.unpack_from(">hhi", frame)
        name, request_type, response_type = REQUESTS.get(key, ("", None, None))
        low, high = VERSIONS.get(name, (0, -1))
        if name == "ApiVersions" and version > high and self._double.modern:
            return _encoded(response_type, 0, correlation, {"error_code": UNSUPPORTED_VERSION, **self.api_versions()})
        if not low <= version <= high:
            raise HangUp("unsupported")
        if name not in BEFORE_LOGIN and not self._logged_in():
            raise HangUp("not logged in")
        self._double.seen[name] += 1
        fields = getattr(self, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())(request_type.decode(frame, version=version, header=True))
        return _encoded(response_type, version, correlation, await fields if asyncio.iscoroutine(fields) else fields)

    def api_versions(self, _request: Any = None) -> Fields:
        known = [(key, *VERSIONS[name]) for key, (name, *_) in REQUESTS.items()]
        return {"api_keys": [{"api_key": key, "min_version": low, "max_version": high} for key, low, high in known]}

    # Who it is

    def sasl_handshake(self, request: Any) -> Fields:
        mechanisms = ["PLAIN"] * bool(self._double.users) + ["OAUTHBEARER"] * bool(self._double.tokens)
        self._mechanism, self._raw = request.mechanism, request.API_VERSION == 0
        return {"error_code": 0 if request.mechanism in mechanisms else NO_MECHANISM, "mechanisms": mechanisms}

    def sasl_authenticate(self, request: Any) -> Fields:
        if not self._known(bytes(request.auth_bytes)):
            return {"error_code": LOGIN_FAILED, "error_message": "the namespace does not know them"}
        return {"session_lifetime_ms": int(self._double.session_seconds * 1000)}

    def _known(self, said: bytes) -> bool:
        if self._mechanism == "PLAIN":
            _, user, password = said.decode().split("\0")
            good = self._double.users.get(user) == password
        else:
            good = said.decode().removeprefix("n,,\x01auth=Bearer ").rstrip("\x01") in self._double.tokens
        self._double.seen[f"{self._mechanism} {'refused' if not good else 'again' if self._login > 0 else 'in'}"] += 1
        self._login = time.monotonic() if good else float("-inf")
        return good

    def _logged_in(self) -> bool:
        lasts = self._double.session_seconds or float("inf")
        return time.monotonic() < self._login + lasts

    # What is there

    def metadata(self, request: Any) -> Fields:
        node = {"leader_id": 0, "replica_nodes": [0], "isr_nodes": [0]}
        found = []
        everything = request.topics is None or (request.API_VERSION == 0 and not request.topics)
        for name in self._double.topics if everything else [topic.name for topic in request.topics]:
            partitions = [{"partition_index": number, **node} for number in range(len(self._double.topics.get(name, ())))]
            error = self._error(name)
            # Many brokers make a topic for whoever asks for one that is not there, unless he says that he does not want it.
            self._double.seen["would be made"] += error == UNKNOWN_TOPIC and request.allow_auto_topic_creation
            found.append({"error_code": error, "name": name, "partitions": [] if error else partitions})
        return {"brokers": [self._here()], "cluster_id": "double", "controller_id": 0, "topics": found}

    def list_offsets(self, request: Any) -> Fields:
        def one(topic: str, asked: Any) -> Fields:
            if error := self._error(topic, asked.partition_index):
                return {"partition_index": asked.partition_index, "error_code": error}
            partition = self._double.topics[topic][asked.partition_index]
            after = [(first, newest) for first, _, newest, _ in partition.batches if newest >= asked.timestamp]
            offset, timestamp = {-1: (partition.end, -1), -2: (partition.start, -1)}.get(asked.timestamp, (after or [(-1, -1)])[0])
            return {"partition_index": asked.partition_index, "offset": offset, "timestamp": timestamp}

        return {"topics": _each(request.topics, one)}

    def _here(self) -> Fields:
        host, port = self._double.advertised or ("127.0.0.1", self._double.port)
        return {"node_id": 0, "host": host, "port": port}

    def _error(self, topic: str, partition: int = 0) -> int:
        if topic in self._double.denied:
            return TOPIC_DENIED
        return 0 if partition < len(self._double.topics.get(topic, ())) else UNKNOWN_TOPIC

    # Events

    async def produce(self, request: Any) -> Fields:
        double = self._double
        size = sum(len(each.records) for topic in request.topic_data for each in topic.partition_data)
        held = await double.throttled(size, request.timeout_ms)

        def one(topic: str, given: Any) -> Fields:
            batch = bytes(given.records)
            error = POLICY_VIOLATION if held is None else self._error(topic, given.index)
            error = error or (TOO_LARGE if len(batch) > double.event_bytes else COMPRESSED if batch[22] & 7 else 0)
            return {"index": given.index, "error_code": error, "base_offset": -1 if error else double.append(topic, given.index, batch)}

        answers = [
            {"name": each.name, "partition_responses": [one(each.name, it) for it in each.partition_data]} for each in request.topic_data
        ]
        return {"responses": answers, "throttle_time_ms": int((held or 0.0) * 1000)}

    async def fetch(self, request: Any) -> Fields:
        double, deadline = self._double, time.monotonic() + request.max_wait_ms / 1000

        def one(topic: str, asked: Any) -> Fields:
            answer = {"partition_index": asked.partition, "high_watermark": -1, "records": b"", "aborted_transactions": []}
            if error := self._error(topic, asked.partition):
                return {**answer, "error_code": error}
            partition = double.topics[topic][asked.partition]
            answer |= {"high_watermark": partition.end, "last_stable_offset": partition.end, "log_start_offset": partition.start}
            if not partition.start <= asked.fetch_offset <= partition.end:
                return {**answer, "error_code": OUT_OF_RANGE}
            return {**answer, "error_code": 0, "records": partition.read(asked.fetch_offset, asked.partition_max_bytes)}

        while True:
            grown = double.grown
            answers = [{"topic": each.topic, "partitions": [one(each.topic, it) for it in each.partitions]} for each in request.topics]
            told = [it for each in answers for it in each["partitions"]]
            enough = sum(len(it["records"]) for it in told) >= request.min_bytes or any(it["error_code"] for it in told)
            if enough or time.monotonic() >= deadline:
                held = await double.throttled(0, request.max_wait_ms + 60_000) or 0.0
                return {"responses": answers, "throttle_time_ms": int(held * 1000)}
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline - time.monotonic()):
                    await grown.wait()

    # Groups

    def find_coordinator(self, request: Any) -> Fields:
        def error(group: str) -> int:
            return GROUP_DENIED if group in self._double.denied else 0

        found = [{"key": key, **self._here(), "error_code": error(key)} for key in request.coordinator_keys or ()]
        return {"coordinators": found} if found else {**self._here(), "error_code": error(request.key)}

    async def join_group(self, request: Any) -> Fields:
        return await self._double.groups[request.group_id].join(request)

    async def sync_group(self, request: Any) -> Fields:
        return await self._double.groups[request.group_id].sync(request)

    def heartbeat(self, request: Any) -> Fields:
        return {"error_code": self._double.groups[request.group_id].check(request)}

    def leave_group(self, request: Any) -> Fields:
        group = self._double.groups[request.group_id]
        gone = [(one.member_id, one.group_instance_id) for one in request.members or ()] or [(request.member_id, None)]
        left = [{"member_id": id_, "group_instance_id": instance, "error_code": group.leave(id_, instance)} for id_, instance in gone]
        return {"error_code": 0 if request.members else left[0]["error_code"], "members": left}

    def offset_commit(self, request: Any) -> Fields:
        group, now = self._double.groups[request.group_id], time.monotonic()
        wrong = group.check(request) if request.generation_id_or_member_epoch >= 0 else 0

        def one(topic: str, asked: Any) -> Fields:
            lately = self._double.commits[request.group_id, topic, asked.partition_index]
            while lately and now - lately[0] >= 1.0:
                lately.popleft()
            error = wrong or self._error(topic, asked.partition_index)
            error = error or (METADATA_TOO_LARGE if len(asked.committed_metadata or "") > 1024 else 0)
            if not error and len(lately) >= self._double.commits_a_second:
                self._double.seen["commits refused"] += 1
                error = POLICY_VIOLATION
            if not error:
                lately.append(now)
                group.offsets[topic, asked.partition_index] = (asked.committed_offset, asked.committed_metadata or "")
            return {"partition_index": asked.partition_index, "error_code": error}

        return {"topics": _each(request.topics, one)}

    def offset_fetch(self, request: Any) -> Fields:
        def told(group_id: str, topics: Any) -> list[Fields]:
            offsets = self._double.groups[group_id].offsets
            wanted = offsets if topics is None else [(topic.name, number) for topic in topics for number in topic.partition_indexes]
            found: defaultdict[str, list[Fields]] = defaultdict(list)
            for name, number in wanted:
                offset, text = offsets.get((name, number), (-1, ""))
                found[name].append({"partition_index": number, "committed_offset": offset, "metadata": text})
            return [{"name": name, "partitions": partitions} for name, partitions in found.items()]

        if request.groups:
            return {"groups": [{"group_id": each.group_id, "topics": told(each.group_id, each.topics)} for each in request.groups]}
        return {"topics": told(request.group_id, request.topics)}


def _each(topics: Any, one: Any) -> list[Fields]:
    return [{"name": topic.name, "partitions": [one(topic.name, partition) for partition in topic.partitions]} for topic in topics]


def _encoded(kind: Any, version: int, correlation: int, fields: Fields) -> bytes:
    response = _made(kind, fields, version=version)
    response.with_header(correlation_id=correlation)
    return bytes(response.encode(header=True, framed=True))


def _made(kind: Any, fields: Mapping[str, Any], **more: Any) -> Any:
    """A protocol object from plain dictionaries; what is left out has the protocol's default."""

    def value(name: str, given: Any) -> Any:
        if isinstance(given, list) and given and isinstance(given[0], dict):
            return [_made(getattr(kind, kind.fields[name].type_str), each) for each in given]
        return given

    return kind(**{name: value(name, given) for name, given in fields.items()}, **more)
