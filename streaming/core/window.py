"""The sliding count window: the newest `size` predictions by column, judged each `slide` of them."""

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
    """Predictions in arrival order, by column of the reference: cells as `Column.array` makes them, codes (columns x rows), and the
    log offset and append time of each."""

    cells: tuple[Values, ...]
    codes: Codes
    offsets: NDArray[np.int64]
    times: Floats

    @classmethod
    def of(
        cls, columns: Sequence[Column], cells: Sequence[Values], offsets: Sequence[int] | Values, times: Sequence[float] | Values
    ) -> "Rows":
        """From one array per column as `Column.array` makes them."""
        codes = np.array([column.codes(values) for column, values in zip(columns, cells, strict=True)], dtype=np.int32)
        return cls(tuple(cells), codes, np.asarray(offsets, dtype=np.int64), np.asarray(times, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.offsets)

    def part(self, start: int, stop: int) -> "Rows":
        place = slice(start, stop)
        return Rows(tuple([cells[place] for cells in self.cells]), self.codes[:, place], self.offsets[place], self.times[place])


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

    def build(self, columns: Sequence[Column]) -> "SlidingWindow":
        return SlidingWindow(self, columns)


class _State(BaseModel):
    rows: NonNegativeInt
    cells: list[bytes | list[str | None]]
    offsets: bytes
    times: bytes


class SlidingWindow:
    """Rows of one model version in arrival order. Memory: two windows' cells, whatever the stream's length.

    Each column is an array of twice the window's size; when it is full its last window moves to the front, so that the
    window is always one contiguous view.
    """

    def __init__(self, spec: CountWindow, columns: Sequence[Column]) -> None:
        self.spec = spec
        self.rows = 0
        self._columns = tuple(columns)
        length = 2 * spec.size
        self._codes: Codes = np.zeros((len(columns), length), dtype=np.int32)
        # The numeric columns' cells in one block, of which `_cells` has the rows.
        self._places = np.cumsum([not isinstance(column, CategoricalColumn) for column in columns]) - 1
        self._numbers: Floats = np.empty((int(self._places[-1]) + 1, length), dtype=np.float64)
        self._cells: list[Values] = [
            np.empty(length, dtype=object) if isinstance(column, CategoricalColumn) else self._numbers[place]
            for column, place in zip(columns, self._places, strict=True)
        ]
        self._offsets: NDArray[np.int64] = np.zeros(length, dtype=np.int64)
        self._times: Floats = np.zeros(length, dtype=np.float64)
        self._end = 0

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

    def put(self, rows: Rows) -> None:
        """Add rows, at most as many as the window holds."""
        size, count = self.spec.size, len(rows)
        if self._end + count > 2 * size:
            kept = min(size, self._end)
            for array in (*self._cells, self._offsets, self._times):
                array[:kept] = array[self._end - kept : self._end].copy()
            self._codes[:, :kept] = self._codes[:, self._end - kept : self._end].copy()
            self._end = kept
        place = slice(self._end, self._end + count)
        for array, cells in zip((*self._cells, self._offsets, self._times), (*rows.cells, rows.offsets, rows.times), strict=True):
            array[place] = cells
        self._codes[:, place] = rows.codes
        self._end += count
        self.rows += count

    def _view(self) -> slice:
        return slice(self._end - min(self.rows, self.spec.size), self._end)

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
            "cells": [_plain(cells[view]) for cells in self._cells],
            "offsets": _plain(self._offsets[view]),
            "times": _plain(self._times[view]),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on a window of the same columns and size that has no rows yet; ValueError when it gave
        no such thing."""
        known = _State.model_validate(state)
        held = min(known.rows, self.spec.size)
        stored = [*known.cells, known.offsets, known.times]
        for array, cells in zip((*self._cells, self._offsets, self._times), stored, strict=True):
            array[:held] = _array(cells, array.dtype, held)
        for codes, column, array in zip(self._codes, self._columns, self._cells, strict=True):
            codes[:held] = column.codes(array[:held])
        self.rows, self._end = known.rows, held

    def evidence(self) -> dict[str, tuple[Any, ...]]:
        """The window by column as plain values, None for missing."""
        return {
            column.name: tuple(None if cell is None or cell != cell else cell for cell in self.values(index).tolist())
            for index, column in enumerate(self._columns)
        }


def _plain(cells: Values) -> bytes | list[str | None]:
    return cells.tolist() if cells.dtype == object else cells.astype(cells.dtype.newbyteorder("<")).tobytes()


def _array(stored: bytes | list[str | None], dtype: np.dtype[Any], rows: int) -> Values:
    if isinstance(stored, bytes) == (dtype.kind == "O"):
        raise ValueError(f"{type(stored).__name__} for a column of {dtype}")
    cells = np.frombuffer(stored, dtype.newbyteorder("<")) if isinstance(stored, bytes) else np.array(stored, dtype=object)
    if len(cells) != rows:
        raise ValueError(f"{len(cells)} cells for {rows} rows")
    return cells
