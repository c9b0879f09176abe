"""The two halves of a prediction joined: a request and its response, in whichever order they arrive.

KServe's logger gives both halves the same id, posts them side by side (some responses arrive first), posts a response
only when the model answered with 200, and repeats nothing. A log may deliver an event twice.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

import msgspec
import orjson
from pydantic import BaseModel, Field

from inference.event import REQUEST, RESPONSE, Event
from inference.log import Record

ANNOTATION = "driftloop.io/model-version"
"""The pod annotation that names the model's version; KServe sends it along when `metadataAnnotations` lists it."""

_DIGEST = 16
_SEPARATOR = "\x1f"
_NOTHING = blake2b(digest_size=_DIGEST)

MAX_SAME_ID = 64
"""Halves of one id that wait at the same time: a client that gives every request the same Ce-Id fills no more."""


class Pair(msgspec.Struct, frozen=True, gc=False):
    """Both halves of one prediction. `version` is the model version that its annotation names, or ""."""

    request: Record
    response: Record
    version: str

    @property
    def id(self) -> str:
        return self.request.event.id

    @property
    def source(self) -> str:
        return self.request.event.source

    @property
    def completed_by(self) -> Record:
        """The half that came later: where on the log the prediction stands."""
        return self.response if self.response.offset > self.request.offset else self.request


@dataclass(frozen=True, slots=True)
class Counts:
    """How halves fared so far, and how many wait now. An orphan was given up: its other half never came in time."""

    paired: int
    duplicates: int
    orphan_requests: int
    orphan_responses: int
    waiting_requests: int
    waiting_responses: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class _Half(msgspec.Struct, gc=False):
    """A half that waits; later ones have a higher `serial`, and did not arrive earlier."""

    serial: int
    record: Record
    key: str
    arrived: float


class Identities:
    """The last `horizon` different identities, as digests of 16 bytes, so that this memory does not depend on how long ids are."""

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self._known: set[bytes] = set()
        self._order: deque[bytes] = deque()

    def repeats(self, *identity: str) -> bool:
        """Whether it is one of them; if not, it is from now on."""
        return self.repeats_text(_one_text(*identity))

    def repeats_text(self, text: str) -> bool:
        """As `repeats`, of an identity as one text that no other has."""
        digester = _NOTHING.copy()  # half the price of a new one
        digester.update(text.encode("utf-8", "surrogatepass"))
        digest = digester.digest()
        if digest in self._known:
            return True
        self._known.add(digest)
        self._order.append(digest)
        if len(self._order) > self._horizon:
            self._known.remove(self._order.popleft())
        return False

    def state(self) -> bytes:
        """The digests, oldest first."""
        return b"".join(self._order)

    def restore(self, state: bytes) -> None:
        """Remember what `state` gave; ValueError when it gave no such thing."""
        whole, rest = divmod(len(state), _DIGEST)
        digests = [state[place * _DIGEST : (place + 1) * _DIGEST] for place in range(max(0, whole - self._horizon), whole)]
        self._known, self._order = set(digests), deque(digests)
        if rest or len(self._known) != len(digests):
            raise ValueError(f"{len(state)} bytes that are no different digests of {_DIGEST} bytes each")


class _Waiting(NamedTuple):
    """A half that waits, as a row of plain values."""

    serial: int
    arrived: float
    partition: int
    offset: Annotated[int, Field(ge=0, lt=2**63)]
    timestamp: float
    id: str
    source: str
    type: str
    time: str
    datacontenttype: str | None
    extensions: dict[str, str]
    data: bytes


class _State(BaseModel):
    now: float
    seen: bytes
    serial: int
    halves: list[_Waiting]
    orphan_requests: int
    orphan_responses: int
    paired: int
    duplicates: int


class Pairing:
    """Joins the halves on one partition of the log. What it gives depends on the records and their order alone.

    A half waits `wait` seconds of log time (the records' timestamps); at most `capacity` halves and `capacity_bytes` of
    bodies wait, the oldest is given up first. A record whose source, id, type and ce-time were among the last `horizon`
    different ones is a duplicate and changes nothing. The same id with another ce-time is a client that reuses its
    Ce-Id: a new prediction.

    With `model` it is told that all records are of that one, and does not look.

    The default horizon is far more than can come between an event and its repeat: KServe's logger repeats nothing, and
    the gateway's forwarder repeats after a crash at most the batch that was not acknowledged, whose events stand next to
    each other on the log.
    """

    def __init__(
        self,
        *,
        wait: float = 300.0,
        capacity: int = 50_000,
        horizon: int = 50_000,
        annotation: str = ANNOTATION,
        capacity_bytes: int = 256 * 1024 * 1024,
        model: str = "",
    ) -> None:
        if wait <= 0 or capacity < 1 or horizon < 1 or capacity_bytes < 1:
            raise ValueError(f"wait {wait}, capacity {capacity}, horizon {horizon} and capacity_bytes {capacity_bytes} must be above 0")
        self._wait = wait
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._annotation = annotation
        self._model = model
        self._now = float("-inf")
        self._seen = Identities(horizon)
        self._serial = 0
        self._halves: OrderedDict[int, _Half] = OrderedDict()
        # None of them arrived before.
        self._oldest = float("-inf")
        self._bytes = 0
        self._by_key: dict[str, dict[str, list[_Half]]] = {REQUEST: {}, RESPONSE: {}}
        self._waiting = {REQUEST: 0, RESPONSE: 0}
        self._orphans = {REQUEST: 0, RESPONSE: 0}
        self._paired = 0
        self._duplicates = 0
        self._last_version = ("", "")

    @property
    def counts(self) -> Counts:
        return Counts(
            paired=self._paired,
            duplicates=self._duplicates,
            orphan_requests=self._orphans[REQUEST],
            orphan_responses=self._orphans[RESPONSE],
            waiting_requests=self._waiting[REQUEST],
            waiting_responses=self._waiting[RESPONSE],
        )

    def add(self, record: Record) -> Pair | None:
        """Take the next record of the partition, a request or a response; the pair it completes, if it does."""
        event = record.event
        kind = event.type
        if kind not in self._orphans:
            raise ValueError(f"only {REQUEST} and {RESPONSE} have another half, not {kind}")
        model, source, id_ = self._model or event.model, event.source, event.id
        key = f"{model}{_SEPARATOR}{source}{_SEPARATOR}{id_}"
        identity = f"{key}{_SEPARATOR}{kind}{_SEPARATOR}{event.time}"
        if identity.count(_SEPARATOR) != 4:
            key, identity = _one_text(model, source, id_), _one_text(model, source, id_, kind, event.time)
        if self._seen.repeats_text(identity):
            self._duplicates += 1
            return None
        if record.timestamp > self._now:
            self._now = record.timestamp
        if self._now - self._oldest > self._wait:
            self._expire()
        waiting = self._by_key[RESPONSE if kind == REQUEST else REQUEST].get(key)
        half = self._partner(event, waiting) if waiting else None
        if half is None:
            self._keep(record, key)
            return None
        self._release(half)
        self._paired += 1
        request, response = (record, half.record) if kind == REQUEST else (half.record, record)
        return Pair(request, response, self._version(response.event) or self._version(request.event))

    def state(self) -> dict[str, Any]:
        """All that its next answers depend on, as plain values."""
        return {
            "now": self._now,
            "seen": self._seen.state(),
            "serial": self._serial,
            "halves": [_as_row(half) for half in self._halves.values()],
            "orphan_requests": self._orphans[REQUEST],
            "orphan_responses": self._orphans[RESPONSE],
            "paired": self._paired,
            "duplicates": self._duplicates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on an object that has taken nothing yet; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        self._now = known.now
        self._seen.restore(known.seen)
        for row in known.halves:
            if row.type not in self._orphans or row.serial <= self._serial:
                raise ValueError(f"a half of type {row.type} and number {row.serial} after number {self._serial}")
            event = Event(row.id, row.source, row.type, row.time, row.datacontenttype, row.extensions, row.data)
            self._serial = row.serial
            record = Record(row.partition, row.offset, row.timestamp, event)
            self._hold(_Half(row.serial, record, _one_text(event.model, event.source, event.id), row.arrived))
        if known.serial < self._serial:
            raise ValueError(f"{known.serial} halves were numbered and there is number {self._serial}")
        self._serial = known.serial
        self._orphans = {REQUEST: known.orphan_requests, RESPONSE: known.orphan_responses}
        self._paired, self._duplicates = known.paired, known.duplicates

    def _expire(self) -> None:
        while self._halves:
            half = self._first()
            if self._now - half.arrived <= self._wait:
                self._oldest = half.arrived
                return
            self._give_up(half)

    def _partner(self, event: Event, waiting: list[_Half]) -> _Half | None:
        """The waiting half that fits best: the last request before this response, or the first response after this request."""
        own = _occurred(event)
        is_request = event.type == REQUEST
        if len(waiting) == 1:
            other = _occurred(waiting[0].record.event)
            fits = not own or not other or (own <= other if is_request else other <= own)
            return waiting[0] if fits else None
        times = [(_occurred(half.record.event), half.serial, half) for half in waiting]
        if is_request:
            return _half(min((one for one in times if not own or not one[0] or own <= one[0]), default=None))
        return _half(max((one for one in times if not own or not one[0] or one[0] <= own), default=None))

    def _keep(self, record: Record, key: str) -> None:
        self._serial += 1
        same = self._hold(_Half(self._serial, record, key, self._now))
        if len(same) > MAX_SAME_ID:
            self._give_up(same[0])
        while len(self._halves) > self._capacity or self._bytes > self._capacity_bytes:
            self._give_up(self._first())

    def _first(self) -> _Half:
        return self._halves[next(iter(self._halves))]

    def _hold(self, half: _Half) -> list[_Half]:
        """Let it wait as the newest; those of its kind and id that wait."""
        event = half.record.event
        if not self._halves:
            self._oldest = half.arrived
        self._halves[half.serial] = half
        self._bytes += len(event.data)
        self._waiting[event.type] += 1
        known = self._by_key[event.type]
        same = known.get(half.key)
        if same is None:
            known[half.key] = same = [half]
        else:
            same.append(half)
        return same

    def _give_up(self, half: _Half) -> None:
        self._release(half)
        self._orphans[half.record.event.type] += 1

    def _release(self, half: _Half) -> None:
        event = half.record.event
        del self._halves[half.serial]
        self._bytes -= len(event.data)
        self._waiting[event.type] -= 1
        known = self._by_key[event.type]
        same = known[half.key]
        if len(same) == 1:
            del known[half.key]
        else:
            same.remove(half)

    def _version(self, event: Event) -> str:
        """The version that `ce-annotations` names; "" without it. One pod says the same in each event: the last is kept."""
        text: Any = event.extensions.get("annotations")
        if not text:
            return ""
        if text != self._last_version[0]:
            try:
                annotations = orjson.loads(text)
            except orjson.JSONDecodeError:
                annotations = None
            version = annotations.get(self._annotation) if isinstance(annotations, dict) else None
            self._last_version = (text, version if isinstance(version, str) else "")
        return self._last_version[1]


def _one_text(*parts: str) -> str:
    """The parts as a text that no others have."""
    text = _SEPARATOR.join(parts)
    return text if text.count(_SEPARATOR) == len(parts) - 1 else repr(parts)


def _as_row(half: _Half) -> list[Any]:
    record, event = half.record, half.record.event
    place = [record.partition, record.offset, record.timestamp]
    return [
        half.serial,
        half.arrived,
        *place,
        event.id,
        event.source,
        event.type,
        event.time,
        event.datacontenttype,
        dict(event.extensions),
        event.data,
    ]


def _occurred(event: Event) -> str:
    """When the half occurred, as text in time's order; "" when ce-time does not tell.

    Before KServe 0.18 ce-time was when the event was sent, and halves overtake each other; since then there is
    `ce-recordedtime` beside it. Without its Z, Go's RFC 3339 text, whose fraction has no trailing zeros, sorts by time.
    """
    time = event.time
    return time[:-1] if time.endswith("Z") and "recordedtime" in event.extensions else ""


def _half(found: tuple[str, int, _Half] | None) -> _Half | None:
    return None if found is None else found[2]
