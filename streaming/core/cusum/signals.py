"""From codes to signals: what is watched of each column and each pair, centred and scaled by the reference.

| signal    | of which columns              | value                                                                                |
|-----------|-------------------------------|--------------------------------------------------------------------------------------|
| level     | numeric                       | z, the normal score of the value's mid-rank in the reference                         |
| spread    | numeric                       | (z^2 - 1) / sqrt 2, at most 4                                                        |
| category  | categorical                   | whether it is the category, for each with a share of 2 % or more                     |
| rare      | categorical                   | whether it is any other known category                                               |
| unseen    | categorical, numeric with few values | whether the reference does not know the value                                 |
| missing   | all                           | whether there is no value                                                            |
| pair      | two numeric, up to 30 of them | the product of both levels, each clipped at 2.5                                      |

Ranks make all of it free of scales, and no single value can be far out: an outlier is one more value at the end. A missing value
leaves the other signals of its column at 0. The probability of an indicator is that of the reference, at least 3 / rows; that of
a value never seen is Good's (1953) estimate with room for its error, (N1 + 2 sqrt(N1 + 1) + 1) / rows, N1 = values seen once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from streaming.core.reference import CategoricalColumn, Codes, Column, Floats, NumericColumn

Kind = Literal["level", "spread", "category", "rare", "unseen", "missing", "pair"]

COMMON = 0.02
"""Categories with at least this share in the reference are watched one by one, the others together."""
_FEW_VALUES = 50
CAP = 4.0
_MOSTLY = 0.5
_PAIRED_UP_TO = 0.95
CLIP = 2.5
_CONSTANT = 1e-9
MOST_PAIRED = 30
"""Numeric columns of which all pairs are watched; of more than these, none."""


@dataclass(frozen=True, slots=True)
class Signal:
    """`columns`: the number of its column, or of both. `both`: whether a fall is watched like a rise."""

    kind: Kind
    columns: tuple[int, ...]
    category: str = ""
    both: bool = True


@dataclass(frozen=True, slots=True)
class Law:
    """A signal's distribution where nothing has changed: values and their probabilities."""

    values: Floats
    shares: Floats


class Signals:
    """All signals of a reference. Those of one column are a table by code; those of pairs come last, neither centred nor scaled."""

    def __init__(self, columns: Sequence[Column]) -> None:
        tables = [made for number, column in enumerate(columns) for made in _of_column(number, column)]
        self.singles = [signal for signal, _, _ in tables]
        self.laws = [law for _, _, law in tables]
        self._flat = np.concatenate([table for _, table, _ in tables])
        starts = np.cumsum([0, *(len(table) for _, table, _ in tables[:-1])])
        self._columns = np.array([signal.columns[0] for signal in self.singles])
        self._starts = starts.astype(np.int32)[:, None]
        levels = [
            number
            for number, signal in enumerate(self.singles)
            if signal.kind == "level" and _commonest(columns[signal.columns[0]]) <= _PAIRED_UP_TO
        ]
        self._levels = np.array(levels if 2 <= len(levels) <= MOST_PAIRED else [], dtype=np.int64)
        self._paired = np.triu_indices(len(self._levels), 1)
        columns_of = [self.singles[number].columns for number in self._levels]
        self.pairs = [Signal("pair", (*columns_of[first], *columns_of[second])) for first, second in zip(*self._paired, strict=True)]

    def of(self, codes: Codes) -> Floats:
        """The signals of each row, rows x signals, from codes (columns x rows)."""
        values = np.empty((codes.shape[1], len(self.singles) + len(self.pairs)))
        count = len(self.singles)
        values[:, :count] = self._flat.take(codes[self._columns] + self._starts).T
        if self.pairs:
            levels = values[:, self._levels].clip(-CLIP, CLIP)
            first, second = self._paired
            np.multiply(levels.take(first, axis=1), levels.take(second, axis=1), out=values[:, count:])
        return values

    def alone(self, values: Floats) -> Floats:
        """The mean square that each pair would have if its two columns did not depend on each other."""
        squares = (values[:, self._levels].clip(-CLIP, CLIP) ** 2).mean(axis=0)
        first, second = self._paired
        alone: Floats = squares[first] * squares[second]
        return alone


def _commonest(column: Column) -> float:
    """The share of a numeric column's commonest value; "missing" is one of them."""
    held = int(np.diff(column.below).max()) if isinstance(column, NumericColumn) else 0
    return max(held, column.rows - column.n) / column.rows


def _of_column(number: int, column: Column) -> Iterator[tuple[Signal, Floats, Law]]:
    """The column's signals with their tables, a value for each code, and their laws."""
    if not column.rows:
        return
    if isinstance(column, NumericColumn):
        yield from _of_numbers(number, column)
    else:
        yield from _of_categories(number, column)
    missing = np.zeros(column.missing + 1)
    missing[-1] = 1.0
    share = 1.0 - column.n / column.rows
    yield from _indicator(Signal("missing", (number,), both=share > 0), missing, _told_by(share, column.rows))


def _of_numbers(number: int, column: NumericColumn) -> Iterator[tuple[Signal, Floats, Law]]:
    if not column.n:
        return
    places = np.arange(column.missing) >> 1
    counts = np.diff(column.below)
    high = column.below[(np.arange(column.missing) + 1) >> 1]
    scores = ndtri((column.below[places] + high + 1) / (2.0 * (column.n + 1)))
    level = _standardised(scores, counts)
    if level is not None:
        yield Signal("level", (number,)), np.append(level, 0.0), Law(level[1::2], counts / column.n)
        spread = _standardised(np.minimum((level**2 - 1.0) / sqrt(2.0), CAP), counts)
        if spread is not None:
            yield Signal("spread", (number,)), np.append(spread, 0.0), Law(spread[1::2], counts / column.n)
    if len(column.distinct) <= _FEW_VALUES:
        unseen = np.zeros(column.missing + 1)
        unseen[:-1:2] = 1.0
        yield from _indicator(Signal("unseen", (number,), both=False), unseen, _never_seen(counts, column.n))


def _of_categories(number: int, column: CategoricalColumn) -> Iterator[tuple[Signal, Floats, Law]]:
    counts = np.array([*column.counts.values()], dtype=np.int64)
    shares = counts / column.rows
    common = [place for place, share in enumerate(shares) if share >= COMMON]
    if len(counts) > 1:
        # Of two categories, one tells all.
        for place in common if len(counts) > 2 else common[:1]:
            hits = np.zeros(column.missing + 1)
            hits[place] = 1.0
            yield from _indicator(Signal("category", (number,), [*column.counts][place]), hits, _told_by(shares[place], column.rows))
        if len(common) < len(counts):
            hits = np.zeros(column.missing + 1)
            hits[len(common) : len(counts)] = 1.0
            # Of what occurred once, as much again is to be expected of what did not occur: it comes as unseen instead (Good 1953).
            known = shares[len(common) :].sum() - (counts == 1).sum() / column.rows
            yield from _indicator(Signal("rare", (number,)), hits, _told_by(known, column.rows))
    if len(counts):
        unseen = np.zeros(column.missing + 1)
        unseen[len(counts)] = 1.0
        yield from _indicator(Signal("unseen", (number,), both=False), unseen, _never_seen(counts, column.n))


def _indicator(signal: Signal, hits: Floats, share: float) -> Iterator[tuple[Signal, Floats, Law]]:
    if 0.0 < share < 1.0:
        deviation = sqrt(share * (1.0 - share))
        law = Law(np.array([-share, 1.0 - share]) / deviation, np.array([1.0 - share, share]))
        yield signal, (hits - share) / deviation, law


def _told_by(share: float, rows: int) -> float:
    """A share, no nearer to 0 or 1 than that many rows can tell."""
    least = min(0.5, 3.0 / rows)
    return min(max(share, least), 1.0 - least)


def _never_seen(counts: NDArray[np.int64], total: int) -> float:
    """The share of values to be expected that the reference does not hold; 1, and no signal, where most of its own occur once."""
    once = int((counts == 1).sum())
    share = (once + 2.0 * sqrt(once + 1.0) + 1.0) / total
    return share if share < _MOSTLY else 1.0


def _standardised(table: Floats, counts: NDArray[np.int64]) -> Floats | None:
    """With mean 0 and variance 1 over the reference's own values, which stand at the odd codes; None for a constant."""
    own = table[1::2]
    mean = np.average(own, weights=counts)
    deviation = sqrt(np.average((own - mean) ** 2, weights=counts))
    return (table - mean) / deviation if deviation > _CONSTANT else None
