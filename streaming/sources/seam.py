"""What a source is: events in batches, the stretch of it that is asked for, and what of it could not be read."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from inference.errors import SettingsError
from inference.log import Record

BATCH = 2000
"""Records that a source gives at a time."""

_PLACE = re.compile(r"(\d{1,9}):(\d{1,18})")
_TOLD = 100
_FORMS = "a time (2026-10-01, 2026-10-01T12:00:00Z) or PARTITION:OFFSET"


class Unreadable:
    """How many records could not be read, and where the first of them stand, with the reason."""

    def __init__(self) -> None:
        self.total = 0
        self.places: list[dict[str, str]] = []

    def add(self, place: str, reason: str, count: int = 1) -> None:
        """`place` is what a person can go to: FILE:LINE, PARTITION:OFFSET."""
        self.total += count
        if len(self.places) < _TOLD:
            self.places.append({"place": place, "reason": reason[:300]})

    def as_dict(self, *, more: int = 0) -> dict[str, Any]:
        """The count, with `more` that have no place, and the places."""
        return {"count": self.total + more, "places": self.places}


class EventSource(Protocol):
    """A stretch of history as events, which can be read once.

    `name` is what it is called, without credentials; `unreadable` and `notes` (what people should know of it) grow as it is read.
    """

    name: str
    unreadable: Unreadable
    notes: list[str]

    def __iter__(self) -> Iterator[list[Record]]:
        """Batches in the log's order, offsets rising within a partition. SettingsError or LogError: it can't be read at all."""
        ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """Which records are asked for: from `since` to before `until`, by time of append (seconds since 1970) or by offset.

    Where offsets are given, partitions that none is given for are left out.
    """

    since: float = -math.inf
    until: float = math.inf
    first: Mapping[int, int] = field(default_factory=dict)
    end: Mapping[int, int] = field(default_factory=dict)
    told: tuple[str | None, str | None] = (None, None)

    @classmethod
    def of(cls, since: Sequence[str] = (), until: Sequence[str] = ()) -> "Stretch":
        """From what was written: one time, or offsets of different partitions, several of them with commas or one by one. SettingsError
        says what will do."""
        since, until = ([one for text in texts for one in text.split(",")] for texts in (since, until))
        (time_since, first), (time_until, end) = _bound("--since", since), _bound("--until", until)
        told = (" ".join(since) or None, " ".join(until) or None)
        stretch = cls(-math.inf if time_since is None else time_since, math.inf if time_until is None else time_until, first, end, told)
        empty = stretch.since >= stretch.until or any(first[number] >= end[number] for number in first.keys() & end.keys())
        if empty:
            raise SettingsError([f"--since {told[0]} --until {told[1]}: there is nothing in between; --until is the later one"])
        return stretch

    @property
    def whole(self) -> bool:
        """Whether everything is asked for."""
        return self.since == -math.inf and self.until == math.inf and not self.by_offset

    @property
    def by_offset(self) -> bool:
        return bool(self.first or self.end)

    def of_partition(self, number: int) -> bool:
        """Whether anything of the partition is asked for."""
        return not self.by_offset or number in self.first or number in self.end

    def kept(self, records: list[Record]) -> list[Record]:
        """Those of the records that are asked for."""
        if self.whole:
            return records
        since, until = self.since, self.until
        if not self.by_offset:
            return [record for record in records if since <= record.timestamp < until]
        first, end = self.first, self.end
        return [
            record
            for record in records
            if self.of_partition(record.partition)
            and first.get(record.partition, 0) <= record.offset < end.get(record.partition, record.offset + 1)
            and since <= record.timestamp < until
        ]

    def as_dict(self) -> dict[str, Any]:
        return {"since": self.told[0], "until": self.told[1]}


def _bound(option: str, texts: Sequence[str]) -> tuple[float | None, dict[int, int]]:
    """The time, or the offsets by partition."""
    places = [_PLACE.fullmatch(text) for text in texts]
    if texts and all(places):
        offsets = {int(place[1]): int(place[2]) for place in places if place}
        if len(offsets) < len(texts):
            raise SettingsError([f"{option} {' '.join(texts)}: a partition is there twice"])
        return None, offsets
    if len(texts) > 1:
        raise SettingsError([f"{option} {' '.join(texts)}: several are PARTITION:OFFSET each"])
    return (_time(option, texts[0]) if texts else None), {}


def _time(option: str, text: str) -> float:
    try:
        if not re.match(r"\d{4}-\d\d-\d\d", text):
            raise ValueError
        time = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError([f"{option} {text}: must be {_FORMS}; a time without a zone is UTC"]) from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
