"""The sliding window of a stretch of time: the rows of the last `length` seconds by event time, judged each `slide`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt

from streaming.core.reference import Column, Floats, Values
from streaming.core.verdict import Span
from streaming.core.window import Rows, SlidingWindow, as_plain, from_plain

_ROOM = 256
_RATE_TOLD_BY = 1000


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """A window of the rows of the last `length` seconds of event time; a verdict falls due at each multiple of `slide` seconds since 1970
    that the watermark passes, if a row came since the one before.

    The watermark is the newest event time minus `lateness` (streaming/core/watermark.py); what is older when it comes is late and left
    out. A window of fewer than `min_rows` rows is not judged at its slide. At most `max_rows` rows are in the window, and about as many
    wait for the watermark. An event time more than `ahead` seconds after the append time is none: the append time stands for it.
    """

    length: float
    slide: float
    lateness: float = 0.0
    min_rows: int = 30
    max_rows: int = 100_000
    ahead: float = 60.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.slide <= self.length:
            raise ValueError(f"window.slide must be from 1 second to window.length ({self.length:g}s), not {self.slide:g}s")
        if self.lateness < 0 or self.ahead < 0:
            raise ValueError(f"window.lateness must not be negative: {self.lateness:g}s")
        if not 1 <= self.min_rows <= self.max_rows:
            raise ValueError(f"window.min_rows must be from 1 to window.max_rows ({self.max_rows}), not {self.min_rows}")

    @property
    def size(self) -> int:
        """From how many rows on their rate can be told: what stands for a count window's size where no window is at hand."""
        return min(_RATE_TOLD_BY, self.max_rows)

    @property
    def settings(self) -> tuple[int | float | str, ...]:
        """All of its settings, for a fingerprint."""
        return "time", self.length, self.slide, self.lateness, self.min_rows, self.max_rows, self.ahead

    def build(self, columns: Sequence[Column]) -> "TimedWindow":
        return TimedWindow(self, columns)

    def boundaries(self, times: Floats) -> Floats:
        """The first multiple of `slide` behind each of these times: at that slide such a row is judged first."""
        found = (np.floor(times / self.slide) + 1.0) * self.slide
        # A quotient may be rounded down below a whole number.
        bounds: Floats = np.where(found <= times, found + self.slide, found)
        return bounds


class _State(BaseModel):
    rows: NonNegativeInt
    cells: list[bytes | list[str | None]]
    offsets: bytes
    times: bytes
    occurred: bytes


class TimedWindow(SlidingWindow):
    """Rows in order of event time. Memory: as many as are in the window, at most `max_rows`, up to four times over."""

    def __init__(self, spec: TimeWindow, columns: Sequence[Column]) -> None:
        self.spec = spec
        self._count = 0
        super().__init__(columns, _ROOM)

    def _allocate(self, room: int) -> None:
        super()._allocate(room)
        self._occurred: Floats = np.zeros(room, dtype=np.float64)

    def __len__(self) -> int:
        return self._count

    def _held(self) -> tuple[Values, ...]:
        return *super()._held(), self._occurred

    def _told(self, rows: Rows) -> tuple[Values, ...]:
        return *super()._told(rows), rows.when

    def reach(self, rows: Rows) -> tuple[NDArray[np.int64], int]:
        """Of each of these rows, the next to be put: how many rows of the stream lie before the window of which it is the newest; and how
        many rows will have been crowded out by then, that is have left before their time because there were more than `max_rows`."""
        when, first = np.concatenate([self._occurred[self._view()], rows.when]), self.rows - len(self)
        since = when.searchsorted(rows.when - self.spec.length).astype(np.int64) + first
        most = np.arange(self.rows + 1, self.rows + len(rows) + 1, dtype=np.int64) - self.spec.max_rows
        return np.maximum(since, most), int(np.count_nonzero(most > since))

    def put(self, rows: Rows) -> None:
        """Add the next rows in order of event time. They are in the window, and what they crowd out or is too old for the newest is not."""
        self._make_room(len(rows))
        super().put(rows)
        self._count += len(rows)
        self.look(float(rows.when[-1]))

    def look(self, until: float) -> None:
        """Leave in the window what is no older than its length before this time."""
        gone = int(self._occurred[self._view()].searchsorted(until - self.spec.length))
        self._count = min(self._count - gone, self.spec.max_rows)

    def _make_room(self, count: int) -> None:
        """Room for twice as many as there are, so that rows move to the front once in as many."""
        needed = 2 * (len(self) + count)
        if self._end + count <= self._room or needed <= self._room:
            return
        codes, arrays = self.codes.copy(), [array[self._view()].copy() for array in self._held()]
        self._allocate(needed)
        self._end = len(self)
        self._codes[:, : self._end] = codes
        for array, kept in zip(self._held(), arrays, strict=True):
            array[: self._end] = kept

    def span(self, partition: int, first: int = 0) -> Span:
        """The stretch of the log that holds the window's rows from number `first` (0 = oldest) on."""
        offsets, times = self._offsets[self._view()][first:], self._times[self._view()][first:]
        return Span(partition, int(offsets.min()), int(offsets.max()), float(times.min()), float(times.max()))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "occurred": as_plain(self._occurred[self._view()])}

    def restore(self, state: Mapping[str, Any]) -> None:
        known = _State.model_validate(state)
        held = len(known.occurred) // self._occurred.itemsize
        occurred = from_plain(known.occurred, self._occurred.dtype, held)
        if held > min(known.rows, self.spec.max_rows) or not np.isfinite(occurred).all() or (np.diff(occurred) < 0).any():
            raise ValueError(f"{held} event times that are no order of {known.rows} rows")
        self._make_room(held)
        self.rows, self._count = known.rows, held
        self._fill([*known.cells, known.offsets, known.times, known.occurred], held)
