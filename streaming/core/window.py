"""Sliding windows: rows by column, and the window of the newest `size` of them, judged each `slide`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, NonNegativeInt

from streaming.core.reference import CategoricalColumn, Codes, Column, Floats, Values
from streaming.core.verdict import Span


@dataclass(frozen=True, slots=True)
class Rows:
    """Predictions in order, by column of the reference: cells as `Column.array` makes them, codes (columns x rows), and the log offset
    and append time of each.

    `occurred`: the event times, seconds since 1970, NaN where an event does not tell; None stands for the append times.
    `since` is for windows of a stretch of time, set where they are judged: how many rows of the window's stream lie before the
    window of which this row is the newest. None: the window is of a fixed number of rows.
    """

    cells: tuple[Values, ...]
    codes: Codes
    offsets: NDArray[np.int64]
    times: Floats
    occurred: Floats | None = None
    since: NDArray[np.int64] | None = None

    @classmethod
    def of(
        cls,
        columns: Sequence[Column],
        cells: Sequence[Values],
        offsets: Sequence[int] | Values,
        times: Sequence[float] | Values,
        occurred: Sequence[float] | Values | None = None,
    ) -> "Rows":
        """From one array per column as `Column.array` makes them."""
        codes = np.array([column.codes(values) for column, values in zip(columns, cells, strict=True)], dtype=np.int32)
        when = None if occurred is None else np.asarray(occurred, dtype=np.float64)
        return cls(tuple(cells), codes, np.asarray(offsets, dtype=np.int64), np.asarray(times, dtype=np.float64), when)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def when(self) -> Floats:
        """The event times, append times where nobody asked for them."""
        return self.times if self.occurred is None else self.occurred

    def part(self, start: int, stop: int) -> "Rows":
        return self.pick(slice(start, stop))

    def pick(self, place: slice | NDArray[np.int64]) -> "Rows":
        """The rows at these places."""
        occurred = None if self.occurred is None else self.occurred[place]
        since = None if self.since is None else self.since[place]
        cells = tuple([cells[place] for cells in self.cells])
        return Rows(cells, self.codes[:, place], self.offsets[place], self.times[place], occurred, since)


@dataclass(frozen=True, slots=True)
class CountWindow:
    """A window of the last `size` rows; the first verdict comes when it is full, the next each `slide` rows."""

    size: int
    slide: int

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"window.size must be at least 2, not {self.size}")
        if not 1 <= self.slide <= self.size:
            raise ValueError(f"window.slide must be from 1 to window.size ({self.size}), not {self.slide}")

    @property
    def settings(self) -> tuple[int | float | str, ...]:
        """All of its settings, for a fingerprint."""
        return self.size, self.slide

    def build(self, columns: Sequence[Column]) -> "CountedWindow":
        return CountedWindow(self, columns)


class _State(BaseModel):
    rows: NonNegativeInt
    cells: list[bytes | list[str | None]]
    offsets: bytes
    times: bytes


class SlidingWindow(ABC):
    """The newest rows of one stream, oldest first; how many of them is the subclass's to say (`len`).

    Each column is an array with room for more than the window; when it is full what is in the window moves to the front, so that
    the window is always one contiguous view. `rows` counts all that were put.
    """

    def __init__(self, columns: Sequence[Column], room: int) -> None:
        self.rows = 0
        self._columns = tuple(columns)
        # The numeric columns' cells in one block, of which `_cells` has the rows.
        self._places = np.cumsum([not isinstance(column, CategoricalColumn) for column in columns]) - 1
        self._end = 0
        self._allocate(room)

    def _allocate(self, room: int) -> None:
        self._room = room
        self._codes: Codes = np.zeros((len(self._columns), room), dtype=np.int32)
        self._numbers: Floats = np.empty((int(self._places[-1]) + 1, room), dtype=np.float64)
        self._cells: list[Values] = [
            np.empty(room, dtype=object) if isinstance(column, CategoricalColumn) else self._numbers[place]
            for column, place in zip(self._columns, self._places, strict=True)
        ]
        self._offsets: NDArray[np.int64] = np.zeros(room, dtype=np.int64)
        self._times: Floats = np.zeros(room, dtype=np.float64)

    @abstractmethod
    def __len__(self) -> int:
        """Rows in the window."""

    def _held(self) -> tuple[Values, ...]:
        """All arrays with an entry a row, but for the codes, in the order in which `_told` gives a stretch's."""
        return *self._cells, self._offsets, self._times

    def _told(self, rows: Rows) -> tuple[Values, ...]:
        return *rows.cells, rows.offsets, rows.times

    def put(self, rows: Rows) -> None:
        """Add rows, of which there must be room for beside the window's."""
        count = len(rows)
        if self._end + count > self._room:
            self._to_front()
        place = slice(self._end, self._end + count)
        for array, cells in zip(self._held(), self._told(rows), strict=True):
            array[place] = cells
        self._codes[:, place] = rows.codes
        self._end += count
        self.rows += count

    def _to_front(self) -> None:
        kept = min(len(self), self._end)
        for array in self._held():
            array[:kept] = array[self._end - kept : self._end].copy()
        self._codes[:, :kept] = self._codes[:, self._end - kept : self._end].copy()
        self._end = kept

    def _view(self) -> slice:
        return slice(self._end - len(self), self._end)

    @property
    def codes(self) -> Codes:
        """The window's codes, columns x rows, oldest first (a view: copy it to keep it)."""
        return self._codes[:, self._view()]

    def values(self, index: int) -> Values:
        """The window's cells of one column, oldest first (a view: copy it to keep it)."""
        return self._cells[index][self._view()]

    def numbers(self, indexes: Sequence[int]) -> Floats:
        """The window's cells of these numeric columns, columns x rows, oldest first (a copy)."""
        return self._numbers[self._places[indexes], self._view()]

    def span(self, partition: int, first: int = 0) -> Span:
        """The stretch of the log that the window's rows from number `first` (0 = oldest) came from."""
        offsets, times = self._offsets[self._view()], self._times[self._view()]
        return Span(partition, int(offsets[first]), int(offsets[-1]), float(times[first]), float(times[-1]))

    def state(self) -> dict[str, Any]:
        """The window as plain values, for `restore`: numbers as little-endian 8-byte arrays, categories as lists."""
        view = self._view()
        return {
            "rows": self.rows,
            "cells": [as_plain(cells[view]) for cells in self._cells],
            "offsets": as_plain(self._offsets[view]),
            "times": as_plain(self._times[view]),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on a window of the same columns and size that has no rows yet; ValueError when it gave
        no such thing."""
        known = _State.model_validate(state)
        self.rows = known.rows
        self._fill([*known.cells, known.offsets, known.times], len(self))

    def _fill(self, stored: Sequence[bytes | list[str | None]], held: int) -> None:
        for array, cells in zip(self._held(), stored, strict=True):
            array[:held] = from_plain(cells, array.dtype, held)
        for codes, column, array in zip(self._codes, self._columns, self._cells, strict=True):
            codes[:held] = column.codes(array[:held])
        self._end = held

    def evidence(self) -> dict[str, tuple[Any, ...]]:
        """The window by column as plain values, None for missing."""
        return {
            column.name: tuple(None if cell is None or cell != cell else cell for cell in self.values(index).tolist())
            for index, column in enumerate(self._columns)
        }


class CountedWindow(SlidingWindow):
    """The newest `size` rows in arrival order. Memory: two windows' cells, whatever the stream's length."""

    def __init__(self, spec: CountWindow, columns: Sequence[Column]) -> None:
        self.spec = spec
        super().__init__(columns, 2 * spec.size)

    def __len__(self) -> int:
        return min(self.rows, self.spec.size)

    @property
    def until_due(self) -> int:
        """Rows until the next verdict falls due, at least 1."""
        if self.rows < self.spec.size:
            return self.spec.size - self.rows
        return self.spec.slide - (self.rows - self.spec.size) % self.spec.slide

    @property
    def due(self) -> bool:
        """Whether the newest row completed a slide of a full window."""
        return self.rows >= self.spec.size and (self.rows - self.spec.size) % self.spec.slide == 0


def as_plain(cells: Values) -> bytes | list[str | None]:
    """Cells for a state: numbers as little-endian 8-byte arrays, categories as lists."""
    return cells.tolist() if cells.dtype == object else cells.astype(cells.dtype.newbyteorder("<")).tobytes()


def from_plain(stored: bytes | list[str | None], dtype: np.dtype[Any], rows: int) -> Values:
    """What `as_plain` gave of so many rows; ValueError when it is no such thing."""
    if isinstance(stored, bytes) == (dtype.kind == "O"):
        raise ValueError(f"{type(stored).__name__} for a column of {dtype}")
    cells = np.frombuffer(stored, dtype.newbyteorder("<")) if isinstance(stored, bytes) else np.array(stored, dtype=object)
    if len(cells) != rows:
        raise ValueError(f"{len(cells)} cells for {rows} rows")
    return cells
