"""The reference sample of one model version, prepared once so that each window is measured against it quickly."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.payload import category
from inference.versions import PREDICTION, Feature, Kind, Schema

Floats = NDArray[np.float64]
Values = NDArray[Any]
Codes = NDArray[np.int32]
"""Cells as whole numbers: where a value stands among the reference's different values (see `codes` of both columns)."""


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """A numeric column's reference: `values` finite and sorted, `rows` before missing ones were dropped.

    `distinct` are its different values, `below` tells of each how many values are smaller, with their number at the end.
    `ends`: what known values are clipped to, where they are (see `winsorized`).
    """

    name: str
    values: Floats
    rows: int
    std: float
    distinct: Floats
    below: NDArray[np.int64]
    ends: tuple[float, float] | None = None

    @classmethod
    def of(cls, name: str, values: Floats, rows: int, ends: tuple[float, float] | None = None) -> "NumericColumn":
        """From its finite values, sorted."""
        # Evidently takes the population's standard deviation.
        std = float(np.std(values)) if len(values) else 0.0
        distinct, counts = np.unique(values, return_counts=True)
        below = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(name, values, rows, std, distinct, below, ends)

    @property
    def kind(self) -> Kind:
        return "numeric"

    @property
    def n(self) -> int:
        """Values left after NaN and infinities were dropped."""
        return len(self.values)

    def array(self, values: Sequence[float | None]) -> Values:
        """Cells as the window keeps them: float64, NaN for missing."""
        return np.array(values, dtype=np.float64)

    def known(self, window: Values) -> Floats:
        """The finite values of a window of this column, clipped where the column is winsorized."""
        known: Floats = window[np.isfinite(window)]
        return known if self.ends is None else known.clip(*self.ends)

    @property
    def missing(self) -> int:
        """The code of a missing value, the largest there is."""
        return 2 * len(self.distinct) + 1

    def codes(self, window: Values) -> Codes:
        """2 i + 1 for a value equal to the i-th different one, 2 i for one between its predecessor and it; infinities are at the ends."""
        places = self.distinct.searchsorted(window)
        codes = 2 * places
        if len(self.distinct):
            codes += self.distinct.take(places, mode="clip") == window
        codes[np.isnan(window)] = self.missing
        return codes.astype(np.int32)

    def ranks(self, codes: Codes) -> Floats:
        """The mid-rank of each value in the reference, in [0, 1]; NaN where the value is missing.

        For a value drawn from the reference's distribution this is close to uniform, whatever its scale (probability
        integral transform); infinities rank as the ends.
        """
        if not self.n:
            return np.full(len(codes), np.nan)
        places = codes >> 1
        low = self.below.take(places, mode="clip")
        high = np.where(codes & 1, self.below.take(places + 1, mode="clip"), low)
        ranks: Floats = np.where(codes == self.missing, np.nan, (low + high) / (2.0 * self.n))
        return ranks

    def unseen(self, codes: Codes) -> NDArray[np.bool_]:
        """Which values the reference does not hold."""
        hits: NDArray[np.bool_] = codes & 1 == 0
        return hits

    def outside(self, codes: Codes) -> NDArray[np.bool_]:
        """Which values lie below the reference's smallest or above its largest, infinities among them."""
        hits: NDArray[np.bool_] = (codes == 0) | (codes == self.missing - 1)
        return hits


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """A categorical column's reference: how often each category occurs, missing ones left out, most frequent first."""

    name: str
    counts: Mapping[str, int]
    rows: int
    middles: Floats
    numbers: Mapping[str, int]

    @property
    def kind(self) -> Kind:
        return "categorical"

    @property
    def n(self) -> int:
        """Values left after missing ones were dropped."""
        return sum(self.counts.values())

    def array(self, values: Sequence[str | None]) -> Values:
        """Cells as the window keeps them: objects, None for missing."""
        cells = np.empty(len(values), dtype=object)
        cells[:] = values
        return cells

    def known(self, window: Values) -> Values:
        """The values of a window that are not missing."""
        known: Values = window[np.array([value is not None for value in window], dtype=bool)]
        return known

    @property
    def missing(self) -> int:
        """The code of a missing value, the largest there is."""
        return len(self.counts) + 1

    def codes(self, window: Values) -> Codes:
        """The number of each category, 0 for the most frequent; those never seen in the reference share the number behind the last."""
        number, unseen, missing = self.numbers.get, len(self.counts), self.missing
        return np.array([missing if value is None else number(value, unseen) for value in window.tolist()], dtype=np.int32)

    def ranks(self, codes: Codes) -> Floats:
        """Each category's middle in the cumulated shares of the reference, most frequent first; 1 when never seen there."""
        return self.middles[codes]

    def unseen(self, codes: Codes) -> NDArray[np.bool_]:
        """Which values the reference does not hold."""
        hits: NDArray[np.bool_] = codes == self.missing - 1
        return hits


Column = NumericColumn | CategoricalColumn


_TAILS = (0.05, 0.01, 0.001, 0.0)


def winsorized(column: NumericColumn) -> NumericColumn:
    """The same with outliers pulled in: all values, the window's too (`known`), clipped to the reference's range without its outliers.

    Outliers lie further out than the span between the 5 % and the 95 % quantile on either side of it (of a normal law 4.9 standard
    deviations, 1 value in a million); where both are one value, those of 1 and 99 %, of 0.1 and 99.9 %, or the ends. Quantiles are
    not moved by outliers, as long as those are fewer than the tail. The ends of the range are values of the reference.
    """
    if not column.n:
        return column
    for tail in _TAILS:
        places = np.array([tail, 1.0 - tail]) * (column.n - 1)
        low, high = column.values[int(np.floor(places[0]))], column.values[int(np.ceil(places[1]))]
        if low < high:
            break
    # In quarters, so that nothing overflows.
    span = high / 4.0 - low / 4.0
    kept = column.values[(column.values / 4.0 >= low / 4.0 - span) & (column.values / 4.0 <= high / 4.0 + span)]
    ends = float(kept[0]), float(kept[-1])
    return NumericColumn.of(column.name, column.values.clip(*ends), column.rows, ends)


@dataclass(frozen=True, slots=True)
class Reference:
    """What one version was trained on: its columns in the schema's order, the prediction last.

    `codes`: its rows as they were stored, in time order where the training data had one, by column.
    """

    model: str
    version: str
    schema: Schema
    columns: tuple[Column, ...]
    codes: Codes


def prepare(model: str, version: str, schema: Schema, sample: Mapping[str, Sequence[Any] | Values]) -> Reference:
    """A reference from columns of plain values (None or NaN = missing), as `Version.load_reference` gives them.

    A sample without the prediction's column gives a reference of the features alone.
    """
    features = [*schema.features, *([Feature(PREDICTION, schema.prediction)] if PREDICTION in sample else [])]
    prepared = [_column(feature, sample[feature.name]) for feature in features]
    codes = np.array([column.codes(cells) for column, cells in prepared], dtype=np.int32)
    return Reference(model, version, schema, tuple(column for column, _ in prepared), codes)


def _column(feature: Feature, cells: Sequence[Any] | Values) -> tuple[Column, Values]:
    """The prepared column, and its cells as a window keeps them."""
    if feature.kind == "numeric":
        stored = np.array([np.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)
        return NumericColumn.of(feature.name, np.sort(stored[np.isfinite(stored)]), len(cells)), stored
    names = [category(cell) for cell in cells]
    ordered = dict(sorted(Counter(name for name in names if name is not None).items(), key=lambda item: (-item[1], item[0])))
    shares = np.array([*ordered.values()], dtype=np.float64)
    middles = (np.cumsum(shares) - shares / 2) / max(1.0, shares.sum())
    numbers = {name: number for number, name in enumerate(ordered)}
    column = CategoricalColumn(feature.name, ordered, len(cells), np.concatenate([middles, [1.0, np.nan]]), numbers)
    return column, column.array(names)
