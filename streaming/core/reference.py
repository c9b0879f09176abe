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


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """A numeric column's reference: `values` finite and sorted, `rows` before missing ones were dropped."""

    name: str
    values: Floats
    rows: int
    std: float
    distinct: Floats

    @property
    def kind(self) -> Kind:
        return "numeric"

    @property
    def n(self) -> int:
        """Values left after NaN and infinities were dropped."""
        return len(self.values)

    def array(self, values: Sequence[float | None]) -> Values:
        """Cells as the window keeps them: float64, NaN for missing."""
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def known(self, window: Values) -> Floats:
        """The finite values of a window of this column."""
        known: Floats = window[np.isfinite(window)]
        return known

    def ranks(self, window: Values) -> Floats:
        """The mid-rank of each value in the reference, in [0, 1]; NaN where the value is missing.

        For a value drawn from the reference's distribution this is close to uniform, whatever its scale (probability
        integral transform); infinities rank as the ends.
        """
        if not self.n:
            return np.full(len(window), np.nan)
        low = np.searchsorted(self.values, window, side="left")
        high = np.searchsorted(self.values, window, side="right")
        ranks: Floats = np.where(np.isnan(window), np.nan, (low + high) / (2.0 * self.n))
        return ranks


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """A categorical column's reference: how often each category occurs, missing ones left out."""

    name: str
    counts: Mapping[str, int]
    rows: int
    middles: Mapping[str, float]

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

    def ranks(self, window: Values) -> Floats:
        """Each category's middle in the cumulated shares of the reference, most frequent first; 1 when never seen there."""
        return np.array([np.nan if value is None else self.middles.get(value, 1.0) for value in window], dtype=np.float64)


Column = NumericColumn | CategoricalColumn


@dataclass(frozen=True, slots=True)
class Reference:
    """What one version was trained on: its columns in the schema's order, the prediction last."""

    model: str
    version: str
    schema: Schema
    columns: tuple[Column, ...]


def prepare(model: str, version: str, schema: Schema, sample: Mapping[str, Sequence[Any]]) -> Reference:
    """A reference from columns of plain values (None or NaN = missing), as `Version.load_reference` gives them."""
    features = [*schema.features, Feature(PREDICTION, schema.prediction)]
    return Reference(model, version, schema, tuple(_column(feature, sample[feature.name]) for feature in features))


def _column(feature: Feature, cells: Sequence[Any]) -> Column:
    if feature.kind == "numeric":
        values = np.array([np.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)
        values = np.sort(values[np.isfinite(values)])
        # Evidently takes the population's standard deviation.
        std = float(np.std(values)) if len(values) else 0.0
        return NumericColumn(feature.name, values, len(cells), std, np.unique(values))
    counts = Counter(text for text in map(category, cells) if text is not None)
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    total = sum(ordered.values())
    middles: dict[str, float] = {}
    seen = 0
    for name, count in ordered.items():
        middles[name] = (seen + count / 2) / total
        seen += count
    return CategoricalColumn(feature.name, ordered, len(cells), middles)
