"""Kolmogorov-Smirnov and Wasserstein of many numeric columns in a few passes over all of them: a tenth of the cost of one by one.

Both equal the functions of statistics.py, which take any window; here every cell of the window must be finite.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import lcm

import numpy as np
from numpy.typing import NDArray

from streaming.core import statistics
from streaming.core.reference import Codes, Floats, NumericColumn


class ColumnwiseKs:
    """The p-values of columns; their windows come as codes, columns x rows."""

    def __init__(self, columns: Sequence[NumericColumn]) -> None:
        self._sizes = [column.n for column in columns]
        places = [np.arange(column.missing) for column in columns]
        self._low = np.concatenate([column.below[codes >> 1] for column, codes in zip(columns, places, strict=True)])
        self._high = np.concatenate([column.below[(codes + 1) >> 1] for column, codes in zip(columns, places, strict=True)])
        self._starts = np.cumsum([0, *(len(codes) for codes in places[:-1])])[:, None]

    def scores(self, codes: Codes) -> list[float]:
        ordered = np.sort(codes, axis=1)
        rows = ordered.shape[1]
        steps = [lcm(size, rows) for size in self._sizes]
        of_reference = np.array([step // size for step, size in zip(steps, self._sizes, strict=True)])[:, None]
        of_window = np.array([step // rows for step in steps])[:, None] * _places(rows + 1)
        places = ordered + self._starts
        at = self._high.take(places)
        at *= of_reference
        at -= of_window[:, 1:]
        before = self._low.take(places)
        before *= of_reference
        before -= of_window[:, :-1]
        # At a value that occurs several times, the first of its kind counts before it and the last at it.
        differ = ordered[:, 1:] != ordered[:, :-1]
        at[:, :-1] *= differ
        before[:, 1:] *= differ
        heights = np.maximum(np.maximum(at.max(axis=1), -at.min(axis=1)), np.maximum(before.max(axis=1), -before.min(axis=1)))
        return [statistics.ks_p(size, rows, height) for size, height in zip(self._sizes, heights.tolist(), strict=True)]


class ColumnwiseWasserstein:
    """The distances of columns with equally many values in the reference; their windows come as values, columns x rows."""

    def __init__(self, columns: Sequence[NumericColumn]) -> None:
        self._values = np.array([column.values for column in columns])
        self._deviations = np.array([max(column.std, 0.001) for column in columns])
        self._at: tuple[int, Floats] = (0, self._values)

    def scores(self, values: Floats) -> list[float]:
        ordered = np.sort(values, axis=1)
        rows = ordered.shape[1]
        of_reference, of_window, widths = statistics.quantile_cells(self._values.shape[1], rows)
        if self._at[0] != rows:
            self._at = (rows, self._values[:, of_reference])
        gaps = ordered.take(of_window, axis=1)
        np.subtract(self._at[1], gaps, out=gaps)
        np.abs(gaps, out=gaps)
        if widths is not None:
            gaps *= widths
        distances = gaps.sum(axis=1) if widths is not None else gaps.mean(axis=1)
        scores: list[float] = (distances / self._deviations).tolist()
        return scores


@lru_cache(maxsize=64)
def _places(size: int) -> NDArray[np.int64]:
    return np.arange(size)
