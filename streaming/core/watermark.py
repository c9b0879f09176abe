"""The watermark: rows wait until no older ones are to be expected, and go on in order of event time; what comes behind it is late.

It is the newest event time minus the lateness, looked at after each row of the log. A row older than the watermark is late; one
that the watermark has passed is released. Rows are thus released in order of (event time, arrival), wherever batches are cut.

So that what waits is bounded, at most `max_rows` rows and a hundredth wait: each time a hundredth of `max_rows` has come, the oldest
of what is too many goes on before the lateness has passed, and the watermark with it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt

from streaming.core.reference import Column, Floats
from streaming.core.window import Rows, as_plain, from_plain

_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Lateness:
    """How long rows wait for older ones, seconds; how many at most; and how far an event time may be ahead of the append time."""

    lateness: float
    max_rows: int
    ahead: float

    def build(self, columns: Sequence[Column], counts: Counter[str]) -> "Waiting":
        return Waiting(self, columns, counts)


class Released(NamedTuple):
    """Rows in order of event time, with the number of the row of the batch (from 0) at which each was released.

    `watermarks` are those after the batch's rows from number `start` on.
    """

    rows: Rows
    places: NDArray[np.int64]
    start: int
    watermarks: Floats


class _State(BaseModel):
    arrived: NonNegativeInt
    newest: float
    watermark: float
    cells: list[bytes | list[str | None]]
    offsets: bytes
    times: bytes
    occurred: bytes


class Waiting:
    """The rows of one stream that wait.

    `counts` gets what was "late", what came with an event time too far "ahead", and what went on "early" because too many waited.
    """

    def __init__(self, spec: Lateness, columns: Sequence[Column], counts: Counter[str]) -> None:
        self.arrived = 0
        self._spec = spec
        self._columns = tuple(columns)
        self._counts = counts
        self._looked = max(1, spec.max_rows // 100)
        self._newest = self._watermark = -np.inf
        # Each in order of event time, and of no row that arrived after one of the next's.
        self._chunks: list[Rows] = []

    @property
    def rows(self) -> int:
        """How many wait."""
        return sum(len(chunk) for chunk in self._chunks)

    def take(self, rows: Rows) -> list[Released]:
        """The next rows of the stream, in arrival order; what is released by them."""
        rows = self._bounded(rows)
        released, start = [], 0
        while start < len(rows):
            stop = min(len(rows), start + self._looked - self.arrived % self._looked)
            released.append(self._passed(rows.part(start, stop), start))
            self.arrived += stop - start
            start = stop
            if self.arrived % self._looked == 0 and self.rows > self._spec.max_rows:
                released.append(self._hurried(stop - 1))
        return released

    def _bounded(self, rows: Rows) -> Rows:
        """With an event time each, none of them too far ahead."""
        when = rows.when
        ahead = when > rows.times + self._spec.ahead
        if ahead.any():
            self._counts["ahead"] += int(np.count_nonzero(ahead))
        untold = ahead | ~np.isfinite(when)
        when = np.where(untold, rows.times, when) if untold.any() else when
        return Rows(rows.cells, rows.codes, rows.offsets, rows.times, when)

    def _passed(self, rows: Rows, start: int) -> Released:
        newest = np.maximum(np.maximum.accumulate(rows.when), self._newest)
        watermarks = np.maximum(newest - self._spec.lateness, self._watermark)
        self._newest, self._watermark = float(newest[-1]), float(watermarks[-1])
        late = rows.when < watermarks
        if late.any():
            self._counts["late"] += int(np.count_nonzero(late))
            rows = rows.pick(np.flatnonzero(~late))
        if len(rows):
            self._keep(rows)
        released = self._released(self._watermark)
        places = watermarks.searchsorted(released.when, side="right").astype(np.int64) + start
        return Released(released, places, start, watermarks)

    def _keep(self, rows: Rows) -> None:
        self._chunks.append(_ordered(rows))
        if len(self._chunks) > _CHUNKS:
            self._chunks = [self._together()]

    def _released(self, before: float) -> Rows:
        """Take out what is older than this."""
        parts, left = [], []
        for chunk in self._chunks:
            count = int(chunk.when.searchsorted(before))
            if count:
                parts.append(chunk.part(0, count))
            if count < len(chunk):
                left.append(chunk.part(count, len(chunk)) if count else chunk)
        self._chunks = left
        return _ordered(joined(parts, self._columns))

    def _hurried(self, place: int) -> Released:
        """Take out the oldest of those that are too many."""
        count = self.rows - self._spec.max_rows
        whole = self._together()
        self._chunks = [whole.part(count, len(whole))]
        self._counts["early"] += count
        self._watermark = max(self._watermark, float(whole.when[count - 1]))
        return Released(whole.part(0, count), np.full(count, place, dtype=np.int64), place, np.array([self._watermark]))

    def _together(self) -> Rows:
        return _ordered(joined(self._chunks, self._columns))

    def state(self) -> dict[str, Any]:
        """All that its next answers depend on, as plain values; the counts are their owner's."""
        waiting = self._together()
        return {
            "arrived": self.arrived,
            "newest": self._newest,
            "watermark": self._watermark,
            "cells": [as_plain(cells) for cells in waiting.cells],
            "offsets": as_plain(waiting.offsets),
            "times": as_plain(waiting.times),
            "occurred": as_plain(waiting.when),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, where nothing has arrived yet; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        count = len(known.offsets) // 8
        empty = [column.array([]).dtype for column in self._columns]
        cells = [from_plain(stored, dtype, count) for stored, dtype in zip(known.cells, empty, strict=True)]
        offsets = from_plain(known.offsets, np.dtype(np.int64), count)
        times, occurred = (from_plain(stored, np.dtype(np.float64), count) for stored in (known.times, known.occurred))
        if np.isnan([known.newest, known.watermark]).any() or not (np.isfinite(occurred) & (occurred >= known.watermark)).all():
            raise ValueError("a memory of rows that wait behind the watermark")
        self.arrived, self._newest, self._watermark = known.arrived, known.newest, known.watermark
        self._chunks = [_ordered(Rows.of(self._columns, cells, offsets, times, occurred))] if count else []


def joined(parts: Sequence[Rows], columns: Sequence[Column]) -> Rows:
    """The rows of all of these, one after the other."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Rows.of(columns, [column.array([]) for column in columns], [], [], [])
    return Rows(
        tuple([np.concatenate(cells) for cells in zip(*(part.cells for part in parts), strict=True)]),
        np.concatenate([part.codes for part in parts], axis=1),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.when for part in parts]),
    )


def _ordered(rows: Rows) -> Rows:
    """In order of event time, those of the same as they stand."""
    when = rows.when
    return rows if (when[:-1] <= when[1:]).all() else rows.pick(np.argsort(when, kind="stable"))
